"""The runner, on tiny notebooks in a project of their own."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import subprocess

import nbformat
import pytest
from PIL import Image
from typer.testing import CliRunner

from acs_lib import cli, paths, runner
from acs_lib.accept import REPORT, _copy, _for_tests, six_digits
from acs_lib.core import progress
from acs_lib.lvlms.checkpoint import hub_commit
from acs_lib.profiles import load_profile
from acs_lib.report import page
from acs_lib.runs import local

CHECKOUT = paths.ROOT

PROFILE = """\
name: tiny
description: three notebooks that do next to nothing
duration: seconds
lvlms: []
datasets:
  - {name: scenes, kind: scenes, splits: {test: {images: 1, seed: 3, queries: {small: 1}}}}
train_on: scenes
sampling: {temperature: 0.5, seed: 7}
regressor: {seeds: 2}
heads: {layers: [1]}
"""
APPEND = "with open('../data/runs/tiny/log.txt', 'a') as file:\n    file.write('{} ' + profile + '\\n')"
NOISY = """import pathlib, sys
from tqdm import tqdm
print(pathlib.Path.cwd(), file=sys.stderr)
print(sum(tqdm(range(7))) * 2)"""


def write_profile(*notebooks, lvlms=()):
    text = PROFILE.replace("lvlms: []", f"lvlms: {json.dumps(lvlms)}")
    (paths.PROFILES / "tiny.yaml").write_text(f"{text}notebooks: {json.dumps(notebooks)}\n")


def write_notebook(path, *sources, parameters='profile = "other"'):
    """A notebook of a title, a parameters cell and `sources`."""
    cells = [nbformat.v4.new_markdown_cell(f"# {path.stem}"), nbformat.v4.new_code_cell(parameters)]
    cells[1].metadata.tags = ["parameters"]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project; its profile is called `tiny`, its report page is empty."""
    folders = {
        "NOTEBOOKS": "notebooks",
        "DATA": "data",
        "EMBEDDED": "data/embedded",
        "RUNS": "data/runs",
        "REPORTS": "reports",
        "LIBRARY": "acs_lib",
        "PROFILES": "acs_lib/profiles",
    }
    for name, folder in folders.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(paths, name, tmp_path / folder)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    paths.runs("tiny").mkdir()
    write_profile("01", "02")
    (paths.LIBRARY / "boxes.py").write_text("SIZE = 1\n")
    return tmp_path


@pytest.fixture
def finished(project):
    """Three notebooks that are stamped as finished, without having been run: 01 imports a module, 02 reads a log of
    designs, 03 grounds; of an LVLM that lies outside data/embedded."""
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", "from acs_lib import boxes")
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", "from acs_lib.study.training_variants import variant_log")
    write_notebook(paths.NOTEBOOKS / "03_three.ipynb", "from acs_lib import ground")
    write_profile("01", "02", "03", lvlms=[{"name": "mine", "source": "models/mine"}])
    files = {
        "acs_lib/__init__.py": "def __getattr__(name):\n    from acs_lib.grounding import api\n",
        "acs_lib/boxes.py": "def area():\n    from acs_lib.core import low\n",
        "acs_lib/core/low.py": "", "acs_lib/cli.py": "", "acs_lib/study/training_variants.py": "",
        "acs_lib/grounding/api.py": "", "acs_lib/profiles/other.yaml": "",
        "data/embedded/training_variants.csv": "", "data/embedded/samples/images/0.png": "",
        "data/embedded/shipped/loss.csv": "",
        "data/calibrated/someone/mine/head_set.json": "",
        "models/mine/config.json": "", "models/mine/model-00002-of-00002.safetensors": "",
        "models/mine/head_set.json": "", "models/mine/regressor.safetensors": "", "models/mine/loss.csv": "",
    }  # fmt: skip
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (paths.reports("tiny") / "notebooks").mkdir(parents=True)
    for stage in stages():
        stage.output(".html").write_text("")
        stamp(stage)
    return project


def stages():
    return runner.make_stages(load_profile("tiny"), "tiny")


def stamp(stage):
    outputs = [f"reports/tiny/notebooks/{stage.notebook.stem}.html"]
    content = {"digest": stage.digest, "inputs": stage.inputs, "outputs": outputs, "seconds": 1}
    stage.output(".stamp.json").write_text(json.dumps(content))


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["run", "--profile", "tiny", *arguments])


def plan(*arguments):
    """{number: reused, or the reason why it would run}"""
    result = invoke("--dry-run", *arguments)
    assert result.exit_code == 0, result.output
    return {line[:2]: line.partition(": ")[2] for line in result.output.splitlines()}


def log():
    return (paths.runs("tiny") / "log.txt").read_text().split("\n")[:-1]


def test_order_reuse_staleness_and_from(project, monkeypatch):
    monkeypatch.chdir("/")
    write_notebook(paths.NOTEBOOKS / "02_second_thing.ipynb", APPEND.format("02"))
    write_notebook(paths.NOTEBOOKS / "01_first_thing.ipynb", APPEND.format("01"), NOISY)
    write_notebook(paths.NOTEBOOKS / "07_extra.ipynb", APPEND.format("07"))  # not of a profile that does not name it

    result = invoke()
    assert result.exit_code == 0, result.output
    assert log() == ["01 tiny", "02 tiny"]
    assert "index.html" in result.output.splitlines()[-1]
    folder = paths.reports("tiny") / "notebooks"
    executed = nbformat.read(folder / "01_first_thing.ipynb", 4)
    assert [output.text for output in executed.cells[-1].outputs] == ["42\n"], "neither stderr nor a progress bar"
    assert str(paths.NOTEBOOKS) in result.stderr.splitlines(), "it is shown meanwhile"
    assert "42" in (folder / "01_first_thing.html").read_text()
    published = [*folder.glob("*.ipynb"), *folder.glob("*.html"), paths.reports("tiny") / "manifest.json"]
    assert len(published) == 5
    for path in published:
        assert str(project) not in path.read_text(), path.name
    assert not list(folder.glob(".*"))
    seconds = json.loads((paths.reports("tiny") / "manifest.json").read_text())["seconds"]

    result = invoke()
    assert result.output.splitlines()[:2] == ["01 first thing: reused", "02 second thing: reused"]
    assert log() == ["01 tiny", "02 tiny"]
    manifest = json.loads((paths.reports("tiny") / "manifest.json").read_text())
    assert manifest["seconds"] == seconds
    assert manifest["seeds"] == {"sampling": 7, "regressor": [0, 1], "scenes-test": 3}
    assert manifest["profile"]["batch_queries"] == 16, "defaults are written down too"
    assert set(seconds) == {"01_first_thing", "02_second_thing"}
    assert manifest["git"] == {"commit": None, "dirty": None}
    assert (manifest["cores"], len(manifest["load"]), manifest["compared"]) == (os.cpu_count(), 3, None)

    write_notebook(paths.NOTEBOOKS / "02_second_thing.ipynb", APPEND.format("02 changed"))
    assert plan() == {"01": "reused", "02": "would run (the notebook changed)"}
    result = invoke()
    assert result.exit_code == 0, result.output
    assert log() == ["01 tiny", "02 tiny", "02 changed tiny"]


def test_a_failure_names_the_notebook_the_cell_and_the_cause_and_stops(project):
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", "1", "raise ValueError('the annotation file is gone')")
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", APPEND.format("02"))
    result = invoke()
    assert result.exit_code == 1
    # cells are counted as in the executed copy: parameters, injected parameters, 1, and the failing one
    assert "01_one.ipynb failed in cell [4] `raise ValueError('the annotation" in result.output
    assert "ValueError: the annotation file is gone\n" in result.output
    assert "Traceback" not in result.output
    assert (paths.reports("tiny") / "notebooks" / "01_one.failed.ipynb").exists()
    assert not (paths.reports("tiny") / "notebooks" / "01_one.ipynb").exists()
    assert not (paths.runs("tiny") / "log.txt").exists()
    assert plan()["01"] == "would run (not finished yet)"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import os; os._exit(9)", "the kernel died, most likely out of"),
        ("raise MemoryError", "out of memory ("),
    ],
)
def test_out_of_memory_has_its_own_message(project, source, message):
    write_profile("01")
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", source)
    result = invoke()
    assert result.exit_code == 1
    assert f"01_one.ipynb failed in cell [3] `{source}`" in result.output
    assert message in result.output
    assert "batch_queries" in result.output


def test_a_misspelt_parameter_is_refused_before_anything_runs(project):
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", APPEND.format("01"))
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", parameters='profil = "smoke"')
    result = invoke()
    assert result.exit_code == 1
    assert "02_two.ipynb has no parameter 'profile', but profil\n" in result.output
    assert not (paths.runs("tiny") / "log.txt").exists()


SAYS = "with open('../data/runs/tiny/log.txt', 'a') as file:\n    file.write(f'{profile} {engine}\\n')"


def test_the_engine_reaches_the_notebook_that_samples_and_makes_nothing_stale(project, monkeypatch):
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: name)
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", SAYS, parameters='profile = "other"\nengine = "local"')
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", "1")
    result = invoke("--engine", "ray")
    assert result.exit_code == 0, result.output
    assert log() == ["tiny ray"]
    assert set(plan("--engine", "local").values()) == {"reused"}
    assert invoke("--engine", "spark").exit_code == 2


def test_an_engine_that_no_notebook_takes_or_that_is_not_installed_is_refused(finished, monkeypatch):
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: name)
    result = invoke("--engine", "ray", "--dry-run")
    assert (result.exit_code, "no notebook of the profile 'tiny' has the parameter 'engine'" in result.output) == (
        1,
        True,
    )
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    result = invoke("--engine", "ray", "--dry-run")
    assert (result.exit_code, 'mend: python -m pip install "acs-kit[ray]"' in result.output) == (1, True)


def test_a_limit_is_a_profile_of_its_own(project):
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", APPEND.format("01"))
    write_profile("01")
    result = invoke("--limit", "3")
    assert result.exit_code == 0, result.output
    assert log() == ["01 tiny-first-3"]
    manifest = json.loads((paths.reports("tiny-first-3") / "manifest.json").read_text())
    assert manifest["profile"]["name"] == "tiny-first-3"
    assert manifest["checkpoints"] == {}
    assert not paths.reports("tiny").exists()
    assert plan("--limit", "3") == {"01": "reused"}
    assert plan() == {"01": "would run (not finished yet)"}
    assert invoke("--limit", "0").exit_code == 2


def test_the_profile_names_its_notebooks(project):
    for stem in ("00_zero", "01_one", "07_seven", "09_nine"):
        write_notebook(paths.NOTEBOOKS / f"{stem}.ipynb")
    write_profile("09", "00", "07")
    assert [stage.notebook.stem for stage in stages()] == ["00_zero", "07_seven", "09_nine"]
    write_profile("00", "05")
    result = invoke()
    assert (result.exit_code, "names notebook 05" in result.output) == (2, True)


def test_nothing_changed_nothing_runs(finished):
    assert set(plan().values()) == {"reused"}


@pytest.mark.parametrize(
    ("path", "first", "reason"),
    [
        ("acs_lib/profiles/tiny.yaml", 1, "the profile"),
        ("models/mine/config.json", 1, "the LVLM mine"),
        ("models/mine/model-00001-of-00002.safetensors", 1, "the LVLM mine"),
        ("models/mine/model-00002-of-00002.safetensors", 1, "the LVLM mine"),
        ("acs_lib/boxes.py", 1, None),
        ("acs_lib/core/low.py", 1, None),
        ("acs_lib/study/training_variants.py", 2, None),
        ("data/embedded/training_variants.csv", 2, None),
        ("data/embedded/another.csv", 2, None),
        ("acs_lib/grounding/api.py", 3, None),
        ("acs_lib/profiles/other.yaml", 3, None),
        ("data/embedded/samples/images/0.png", 3, None),
        ("data/calibrated/someone/mine/head_set.json", 3, None),
        ("models/mine/head_set.json", 3, None),
        ("models/mine/regressor.safetensors", 3, None),
        ("acs_lib/cli.py", 4, None),
        ("acs_lib/new.py", 4, None),
        ("models/mine/loss.csv", 4, None),
        ("data/embedded/shipped/loss.csv", 4, None),
    ],
)
def test_what_a_notebook_depends_on_makes_it_and_the_later_ones_stale(finished, path, first, reason):
    with (finished / path).open("a") as file:
        file.write("# changed\n")
    expected = ["reused"] * (first - 1) + [f"would run ({reason or path} changed)"] + ["would run (follows)"] * 2
    assert list(plan().values()) == expected[:3]


def test_a_file_that_is_gone_is_named_and_of_many_the_first(finished):
    (finished / "models" / "mine" / "head_set.json").unlink()
    assert plan()["03"] == "would run (models/mine/head_set.json changed)"
    for number in range(5):
        (finished / "data" / "embedded" / f"{number}.csv").write_text("")
    first = " and ".join(f"data/embedded/{number}.csv" for number in range(3))
    assert plan()["02"] == f"would run ({first} and 2 more changed)"


def test_a_notebook_that_is_not_plain_python_depends_on_the_whole_library(finished):
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", "%matplotlib inline")
    stamp(stages()[0])
    (paths.LIBRARY / "cli.py").write_text("# changed\n")
    assert plan()["01"] == "would run (acs_lib/cli.py changed)"


def test_an_lvlm_whose_commit_cannot_be_told_is_refused(finished, offline_hub):
    write_profile("01", "02", "03", lvlms=[{"name": "mine", "source": "someone/model"}])
    result = invoke("--dry-run")
    assert (result.exit_code, "cannot load the LVLM 'someone/model'" in result.output) == (1, True)
    (offline_hub("someone/model", "1" * 40) / "config.json").write_text("{}")
    for stage in stages():
        stamp(stage)
    assert set(plan().values()) == {"reused"}
    offline_hub("someone/model", "2" * 40)
    hub_commit.cache_clear()
    assert invoke("--dry-run").exit_code == 1, "whose files are not there"
    (offline_hub("someone/model", "2" * 40) / "config.json").write_text("{}")
    assert plan()["01"] == "would run (the LVLM mine changed)"


def test_what_our_own_notebooks_depend_on():
    found = {stage.notebook.stem[:2]: set(stage.inputs) for stage in runner.make_stages(load_profile("smoke"), "smoke")}
    assert len(found) == 10, "all but 10, which is of the profile beyond"
    for inputs in found.values():
        assert {"the notebook", "the profile", "the LVLM internvl-embedded", "acs_lib/paths.py"} <= inputs
        assert not {f"acs_lib/{name}.py" for name in ("cli", "runner", "accept")} & inputs

    def with_input(name):
        return [number for number, inputs in found.items() if name in inputs]

    assert with_input("data/embedded/training_variants.csv") == ["08"]
    for name in ("head_set.json", "regressor.safetensors"):
        assert with_input(f"data/embedded/internvl/{name}") == ["07"]
    assert with_input("acs_lib/profiles/embedded.yaml") == ["07"]
    assert with_input("acs_lib/study/seeds.py") == ["06", "11"]
    assert with_input("acs_lib/runs/ray_cluster.py") == ["01"]
    for module in runner.read_by(load_profile("smoke")):
        assert (paths.LIBRARY / module).is_file()


def test_an_image_that_was_missing_makes_the_notebooks_stale(finished):
    on_disk = "{annotations: data/coco/a.json, folder: data/coco/images, queries: {small: 1}}"
    coco = f"- {{name: coco, kind: coco, splits: {{test: {on_disk}}}}}"
    text = (paths.PROFILES / "tiny.yaml").read_text()
    (paths.PROFILES / "tiny.yaml").write_text(text.replace("datasets:\n", f"datasets:\n  {coco}\n"))
    images = paths.DATA / "coco" / "images" / "patch8"
    images.mkdir(parents=True)
    (images / "1.jpg").write_text("one")
    for stage in stages():
        stamp(stage)
    assert set(plan().values()) == {"reused"}
    (images / "2.jpg").write_text("two")
    assert plan()["01"] == "would run (the data changed)"
    for stage in stages():
        stamp(stage)
    (images / "2.jpg").write_text("another one")
    assert plan()["01"] == "would run (the data changed)"


def test_a_stale_notebook_takes_the_later_ones_with_it(finished):
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", "from acs_lib.study.training_variants import variant_log as log")
    assert plan() == {"01": "reused", "02": "would run (the notebook changed)", "03": "would run (follows)"}
    stamp(stages()[1])  # had notebook 02 alone been run since, 03 would still come from the old one
    assert plan() == {"01": "reused", "02": "reused", "03": "would run (the notebook before it changed)"}


def test_outputs_do_not_make_a_notebook_stale(finished):
    path = paths.NOTEBOOKS / "01_one.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[1].execution_count = 5
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="hello")]
    nbformat.write(notebook, path)
    assert set(plan().values()) == {"reused"}


def test_a_missing_output_is_made_again(finished):
    (paths.reports("tiny") / "notebooks" / "02_two.html").unlink()
    assert plan()["02"] == "would run (reports/tiny/notebooks/02_two.html is missing)"


def test_a_truncated_stamp_counts_as_none(finished):
    path = paths.reports("tiny") / "notebooks" / "01_one.stamp.json"
    path.write_text(path.read_text()[:20])
    assert plan()["01"] == "would run (not finished yet)"


def test_a_notebooks_outputs_are_none_of_another_notebook_beside_it(project):
    beside = "open('../reports/tiny/notebooks/02_two.failed.ipynb', 'w').close()"
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", beside, "open('../reports/tiny/table.csv', 'w').close()")
    write_profile("01")
    assert invoke().exit_code == 0
    (stage,) = stages()
    folder = "reports/tiny/notebooks/01_one"
    assert stage.stamp()["outputs"] == [f"{folder}.html", f"{folder}.ipynb", "reports/tiny/table.csv"]


def test_notebooks_06_to_08_go_side_by_side(project, monkeypatch):
    numbers, given = ("05", "06", "07", "09"), []

    @contextlib.contextmanager
    def noted():
        assert log() == ["05 tiny"]
        yield lambda function, items: given.append([item.notebook.stem for item in items]) or map(function, items)

    monkeypatch.setattr(local, "processes", noted)
    for number in numbers:
        write_notebook(paths.NOTEBOOKS / f"{number}_x.ipynb", APPEND.format(number))
    write_profile(*numbers)
    result = invoke()
    assert result.exit_code == 0 and given == [["06_x", "07_x"]] and log()[-1] == "09 tiny"
    assert [line.partition(" (")[0] for line in result.output.splitlines() if "running" in line] == [
        "05 x: running", "06 x: running", "07 x: running", "09 x: running",
    ]  # fmt: skip
    assert result.output.count(": done in") == 4 and invoke().output.count("reused") == 4
    write_profile(*numbers, lvlms=[{"name": "mine", "source": "models/mine"}])
    (project / "models" / "mine").mkdir(parents=True)
    (project / "models" / "mine" / "config.json").write_text("")
    assert invoke().exit_code == 0 and len(given) == 1, "those of a large LVLM would need its memory twice"


def test_from_takes_earlier_notebooks_as_they_are_and_refuses_unfinished_ones(finished):
    assert plan("--from", "03") == {"01": "reused", "02": "reused", "03": "would run (--from)"}
    with (paths.LIBRARY / "boxes.py").open("a") as file:
        file.write("# changed\n")
    assert plan("--from", "03")["01"] == "reused, although acs_lib/boxes.py changed"
    (paths.reports("tiny") / "notebooks" / "02_two.stamp.json").unlink()
    result = invoke("--from", "03")
    assert (result.exit_code, "02 two" in result.output) == (1, True)
    result = invoke("--from", "5")
    assert (result.exit_code, "01, 02, 03" in result.output) == (2, True)


def test_an_interruption_says_that_the_next_run_goes_on(finished, monkeypatch):
    def interrupt(stage):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_execute", interrupt)
    result = invoke("--from", "2")
    assert (result.exit_code, "goes on" in result.output) == (130, True)
    assert plan() == {"01": "reused", "02": "would run (not finished yet)", "03": "would run (follows)"}


def test_a_bad_profile_is_refused_with_its_reason(project):
    result = CliRunner().invoke(cli.app, ["run", "--profile", "tinny"])
    assert (result.exit_code, "choose one of tiny" in result.output) == (2, True)
    for text, cause in (("a: [", "flow node"), (PROFILE + "samples: 3\n", "samples\n  Extra inputs are not permitted")):
        (paths.PROFILES / "tiny.yaml").write_text(text)
        result = invoke()
        assert (result.exit_code, cause in result.output) == (2, True), result.output


def test_dataset_digests_are_found(project):
    folder = paths.DATA / "scenes" / "test-10-0"
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text('{"info": {"digest": "abc"}}')
    assert runner.dataset_digests() == {"data/scenes/test-10-0/annotations.json": "abc"}


# ------------------------------------------------------------------------------------------------- the reference

REPORTS = """import pathlib
from PIL import Image
report = pathlib.Path('../reports') / profile
for name in ('tables', 'figures'):
    (report / name).mkdir(exist_ok=True)
for suffix in ('csv', 'md', 'tex'):
    (report / 'tables' / f'main.{suffix}').write_text('method,acc50\\ngreedy,RATE\\n')
Image.linear_gradient('L').convert('RGB').save(report / 'figures' / 'main.png')
(report / 'figures' / 'main.pdf').write_text('%PDF')"""
SHOWS = """from IPython.display import HTML, Image, display
picture = Image('../reports/tiny/figures/main.png')
display(picture, HTML(f'<img src="data:image/png;base64,{picture._repr_mimebundle_()[0]["image/png"]}">'))
display({'application/vnd.jupyter.widget-view+json': {}, 'text/plain': 'a form'}, raw=True)
profile"""
KEPT = ["figures/main.png", "index.html", "manifest.json", "tables/main.csv", "tables/main.md"]


def git(*arguments):
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", paths.ROOT, *author, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def commit():
    git("add", "-A")
    git("commit", "-qm", "All")


def accept():
    return CliRunner().invoke(cli.app, ["accept", "tiny"])


def in_reference():
    folder = paths.reference("tiny")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["other", "tiny", "tested"])
def checkout(project, request, monkeypatch):
    """A clean git checkout whose notebooks have that default profile; `tested`: the profile is the tests'."""
    if request.param == "tested":
        monkeypatch.setattr("acs_lib.accept.TESTED", "tiny")
    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    shutil.copy(CHECKOUT / ".gitignore", project)
    write_notebook(
        paths.NOTEBOOKS / "01_one.ipynb", REPORTS.replace("RATE", "0.5"), parameters=f'profile = "{request.param}"'
    )
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", SHOWS, parameters=f'profile = "{request.param}"')
    git("init", "-q")
    commit()
    return request.param


def test_a_run_leaves_the_checkout_clean_and_accept_alone_changes_it(checkout):
    assert invoke().exit_code == 0
    assert git("status", "--porcelain") == []
    result = accept()
    assert result.exit_code == 0 and "main.csv is not in the reference" in result.output, result.output
    changed = git("status", "--porcelain", "--untracked-files=all")
    names, kept = ("01_one", "02_two"), [f"?? reports/reference/tiny/{name}" for name in KEPT]
    if checkout == "tested":
        copies = [f"?? tests/notebooks/{name}.ipynb" for name in names]
        assert changed == ["?? reports/reference/tiny/tables/main.csv", *copies]
    else:
        assert changed == [*(f" M notebooks/{name}.ipynb" for name in names if checkout == "tiny"), *kept]
        assert "figures/main.png" not in (paths.reference("tiny") / "index.html").read_text(), "the page holds it"
        assert json.loads((paths.reference("tiny") / "manifest.json").read_text())["compared"] is None
    commit()

    result = invoke()
    assert "running" not in result.output, "nothing that a run depends on was accepted"
    manifest = json.loads((paths.reports("tiny") / "manifest.json").read_text())
    assert (manifest["git"]["dirty"], manifest["compared"]["differences"]) == (False, [])
    told = "against the committed reference: every table as the reference's, up to rounding"
    assert told in result.output and told.endswith(manifest["compared"]["said"])
    assert git("status", "--porcelain") == []


def test_a_reference_keeps_six_digits():
    text = 'n,x,p,told\n1000,0.49288765432,-1.2345678e-05,"0.123456 to 12345678"\n3,0.5,0.0000001234567,a_0.12345678\n'
    rounded = 'n,x,p,told\n1000,0.492888,-1.23457e-05,"0.123456 to 12345678"\n3,0.5,1.23457e-07,a_0.12345678\n'
    assert six_digits(text) == rounded == six_digits(rounded)


@pytest.mark.parametrize("checkout", ["tiny"], indirect=True)
def test_accepted_notebooks_hold_the_outputs_and_nothing_of_papermill(checkout):
    before = nbformat.read(paths.NOTEBOOKS / "02_two.ipynb", 4)
    assert invoke().exit_code == 0 and accept().exit_code == 0
    after = nbformat.read(paths.NOTEBOOKS / "02_two.ipynb", 4)
    assert [(cell.id, cell.source) for cell in after.cells] == [(cell.id, cell.source) for cell in before.cells]
    assert [cell.metadata for cell in after.cells] == [cell.metadata for cell in before.cells]
    assert after.metadata == before.metadata
    assert [cell.execution_count for cell in after.cells[1:]] == [1, 2]
    picture, page, form, value = after.cells[-1].outputs
    assert (form.data, value.data, value.execution_count) == ({"text/plain": "a form"}, {"text/plain": "'tiny'"}, 2)
    shown = Image.open(io.BytesIO(base64.b64decode(picture.data["image/png"])))
    assert shown.mode == "P" and shown.convert("RGB").getpixel((0, 20)) == (17, 17, 17)
    assert picture.data["image/png"] in page.data["text/html"] and set(page.data) == {"text/html"}


@pytest.mark.parametrize("checkout", ["tested"], indirect=True)
def test_copies_for_the_tests_have_their_profile_and_no_pictures(checkout):
    before = (paths.NOTEBOOKS / "02_two.ipynb").read_bytes()
    assert invoke().exit_code == 0 and accept().exit_code == 0
    assert (paths.NOTEBOOKS / "02_two.ipynb").read_bytes() == before
    copy = nbformat.read(paths.ROOT / "tests" / "notebooks" / "02_two.ipynb", 4)
    assert copy.cells[1].source == 'profile = "tiny"'
    picture, page, _, value = copy.cells[-1].outputs
    assert "image/png" not in picture.data and '<img src="">' in page.data["text/html"]
    assert value.data == {"text/plain": "'tiny'"}


@pytest.mark.parametrize("checkout", ["other"], indirect=True)
def test_a_reference_is_replaced_whole_and_says_what_moved(checkout, monkeypatch):
    assert invoke().exit_code == 0 and accept().exit_code == 0
    commit()
    (paths.reference("tiny") / "tables" / "gone.csv").write_text("method\n")
    path = paths.NOTEBOOKS / "01_one.ipynb"
    write_notebook(path, REPORTS.replace("RATE", "0.9"))
    result = accept()
    assert (result.exit_code, "01 one: the notebook changed" in result.output) == (1, True)
    assert "run acs run --profile tiny" in result.output
    assert invoke().exit_code == 0
    manifest = json.loads((paths.reports("tiny") / "manifest.json").read_text())
    assert any("the reference has 0.5" in line for line in manifest["compared"]["differences"])

    def interrupt(*arguments):
        raise KeyboardInterrupt

    old = {name: (paths.reference("tiny") / name).read_bytes() for name in in_reference()}
    with monkeypatch.context() as patched:
        patched.setattr(page, "build", interrupt)
        assert accept().exit_code == 130
    assert old == {name: (paths.reference("tiny") / name).read_bytes() for name in in_reference()}
    assert os.listdir(paths.reference("tiny").parent) == ["tiny"]

    (paths.reports("tiny") / "tables" / "left.csv").write_text("of an earlier run\n")
    result = accept()
    assert result.exit_code == 0 and "uncommitted changes" in result.output and "left.csv" not in result.output
    assert "gone.csv is missing" in result.output and "the reference has 0.5" in result.output
    assert in_reference() == KEPT and os.listdir(paths.reference("tiny").parent) == ["tiny"]


def test_a_long_table_is_kept_as_csv_alone(tmp_path):
    tables = tmp_path / "report" / "tables"
    tables.mkdir(parents=True)
    for name, rows in (("long.md", 101), ("short.md", 100), ("long.csv", 101)):
        (tables / name).write_text("|\n" * rows)
    _copy(tmp_path / "report", tmp_path / "kept", REPORT, set(tables.iterdir()))
    assert sorted(path.name for path in (tmp_path / "kept" / "tables").iterdir()) == ["long.csv", "short.md"]


def test_without_a_finished_run_nothing_is_accepted(finished):
    assert (accept().exit_code, "manifest.json is missing" in accept().output) == (1, True)
    (paths.reports("tiny") / "notebooks" / "02_two.stamp.json").unlink()
    assert "02 two: not finished yet" in accept().output
    assert not paths.reference("tiny").exists()


def test_in_a_log_file_lines_say_how_far_it_is(project):
    working = """from acs_lib.core import progress
progress.EVERY = -1  # at each step
with progress.progress("some LVLM on scenes, test", 3) as told:
    told.update()"""
    write_profile("01")
    write_notebook(paths.NOTEBOOKS / "01_one_thing.ipynb", working)
    result = invoke()
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if "some LVLM" in line]
    assert progress.NOTEBOOK not in os.environ, "no other work is the notebook's"
    assert re.fullmatch(r"01 one thing: some LVLM on scenes, test: 1 of 3 queries, ends about .*\d\d:\d\d", line)


def test_the_tests_copy_has_no_picture_of_any_kind():
    data = {"image/png": "aa", "image/svg+xml": "<svg/>", "text/html": '<img src="data:image/png;base64,aa==">'}
    shown = nbformat.v4.new_output("display_data", data)
    cell = nbformat.v4.new_code_cell("1", outputs=[shown])
    (copy,) = _for_tests(nbformat.v4.new_notebook(cells=[cell]), "smoke").cells
    assert copy.outputs[0].data == {"text/html": '<img src="">'}
