"""The runner, on tiny notebooks in a project of their own."""

import json
import sys
import types

import nbformat
import pytest
from typer.testing import CliRunner

from acs_lib import paths, runner

APPEND = "with open('../data/runs/tiny/log.txt', 'a') as file:\n    file.write('{} ' + profile + '\\n')"


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
    """An empty project; its profile is called `tiny`, its report page says nothing."""
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
    (paths.PROFILES / "tiny.yaml").write_text("name: tiny\nsampling: {seed: 7}\nsplits: [{seed: 1}, {seed: 2}]\n")
    (paths.LIBRARY / "boxes.py").write_text("SIZE = 1\n")
    page = types.ModuleType("acs_lib.report.html")
    page.build = lambda profile: paths.reports(profile) / "index.html"
    monkeypatch.setitem(sys.modules, "acs_lib.report.html", page)
    return tmp_path


@pytest.fixture
def finished(project):
    """Three notebooks that are stamped as finished, without having been run."""
    for stem in ("01_one", "02_two", "03_three"):
        write_notebook(paths.NOTEBOOKS / f"{stem}.ipynb")
    previous = ""
    for stage in runner.make_stages("tiny"):
        stage.folder.mkdir(parents=True, exist_ok=True)
        output = stage.output(".html")
        output.write_text("")
        digest = runner._chain(stage.digests, previous)
        stamp = {
            "digest": digest,
            "digests": stage.digests,
            "outputs": [runner._from_root(output)],
            "seconds": stage.number,
        }
        stage.output(".stamp.json").write_text(json.dumps(stamp))
        previous = digest
    return project


def invoke(*arguments):
    return CliRunner().invoke(runner.app, ["--profile", "tiny", *arguments])


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
    write_notebook(paths.NOTEBOOKS / "01_first_thing.ipynb", APPEND.format("01"), "print(2 * 21)")
    write_notebook(paths.NOTEBOOKS / "07_extra.ipynb", APPEND.format("07"))  # not of a profile that does not name it

    result = invoke()
    assert result.exit_code == 0, result.output
    assert log() == ["01 tiny", "02 tiny"]
    assert "index.html" in result.output.splitlines()[-1]
    folder = paths.reports("tiny") / "notebooks"
    executed = nbformat.read(folder / "01_first_thing.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "42\n"
    assert str(project) not in json.dumps(executed.metadata)
    assert "42" in (folder / "01_first_thing.html").read_text()
    assert not list(folder.glob(".*"))
    seconds = json.loads((paths.reports("tiny") / "manifest.json").read_text())["seconds"]

    result = invoke()
    assert result.output.splitlines()[:2] == ["01 first thing: reused", "02 second thing: reused"]
    assert log() == ["01 tiny", "02 tiny"]
    manifest = json.loads((paths.reports("tiny") / "manifest.json").read_text())
    assert manifest["seconds"] == seconds
    assert manifest["seeds"] == {"sampling.seed": 7, "splits.0.seed": 1, "splits.1.seed": 2}
    assert manifest["git"] == {"commit": None, "dirty": None}

    write_notebook(paths.NOTEBOOKS / "02_second_thing.ipynb", APPEND.format("02 changed"))
    assert plan() == {"01": "reused", "02": "would run (the notebook changed)"}
    result = invoke()
    assert result.exit_code == 0, result.output
    assert log() == ["01 tiny", "02 tiny", "02 changed tiny"]

    assert invoke("--from", "2").exit_code == 0
    assert log()[2:] == ["02 changed tiny", "02 changed tiny"]


def test_a_failure_names_the_notebook_the_cell_and_the_cause_and_stops(project):
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", "1", "raise ValueError('the annotation file is gone')")
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", APPEND.format("02"))
    result = invoke()
    assert result.exit_code == 1
    # cells are counted as in the executed copy: parameters, injected parameters, 1, and the failing one
    assert "01_one.ipynb failed in cell [4] with ValueError: the annotation file is gone" in result.output
    assert "Traceback" not in result.output
    assert (paths.reports("tiny") / "notebooks" / "01_one.failed.ipynb").exists()
    assert not (paths.reports("tiny") / "notebooks" / "01_one.ipynb").exists()
    assert not (paths.runs("tiny") / "log.txt").exists()
    assert plan()["01"] == "would run (not finished yet)"


@pytest.mark.parametrize(
    ("source", "message"), [("import os; os._exit(9)", "the kernel died"), ("raise MemoryError", "out of memory")]
)
def test_out_of_memory_has_its_own_message(project, source, message):
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", source)
    result = invoke()
    assert result.exit_code == 1
    assert "01_one.ipynb" in result.output
    assert message in result.output
    assert "batch_queries" in result.output


def test_a_misspelt_parameter_is_refused_before_anything_runs(project):
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", APPEND.format("01"))
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", parameters='profil = "smoke"')
    result = invoke()
    assert result.exit_code == 1
    assert "02_two.ipynb has no parameter 'profile'" in result.output
    assert "'profil'" in result.output
    assert not (paths.runs("tiny") / "log.txt").exists()


def test_engine_and_limit_go_where_there_is_such_a_parameter(project):
    write_notebook(paths.NOTEBOOKS / "01_one.ipynb", parameters='profile = "smoke"\nengine = "local"\nlimit = None')
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb")
    stages = runner.make_stages("tiny", runner.Engine.ray, 5)
    assert [stage.parameters for stage in stages] == [
        {"profile": "tiny", "engine": "ray", "limit": 5},
        {"profile": "tiny"},
    ]
    (paths.PROFILES / "tiny.yaml").write_text("notebooks: ['02']\n")
    result = invoke("--limit", "5")
    assert (result.exit_code, "limit" in result.output) == (2, True)


def test_a_profile_may_name_its_notebooks_by_number_or_stem(project):
    for stem in ("00_zero", "01_one", "07_seven", "08_eight"):
        write_notebook(paths.NOTEBOOKS / f"{stem}.ipynb")
    profile = {"notebooks": ["08", "07_seven", 0]}
    assert [path.stem for path in runner.select_notebooks(profile)] == ["00_zero", "07_seven", "08_eight"]
    assert [path.stem for path in runner.select_notebooks({})] == ["01_one"]
    with pytest.raises(runner.RunError, match="05"):
        runner.select_notebooks({"notebooks": ["05"]})


def test_nothing_changed_nothing_runs(finished):
    assert set(plan().values()) == {"reused"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("acs_lib/boxes.py", "the library"),
        ("acs_lib/new.py", "the library"),
        ("acs_lib/profiles/tiny.yaml", "the profile"),
        ("data/embedded/model.safetensors", "the weights"),
    ],
)
def test_what_all_notebooks_depend_on_makes_all_of_them_stale(finished, path, reason):
    (finished / path).write_text("name: changed\n")
    follows = "would run (follows)"
    assert plan() == {"01": f"would run ({reason} changed)", "02": follows, "03": follows}


def test_a_stale_notebook_takes_the_later_ones_with_it(finished):
    write_notebook(paths.NOTEBOOKS / "02_two.ipynb", "1")
    assert plan() == {"01": "reused", "02": "would run (the notebook changed)", "03": "would run (follows)"}
    # had notebook 02 alone been run since, 03 would still come from the old one
    first, second, _ = runner.make_stages("tiny")
    digest = runner._chain(second.digests, first.read_stamp()["digest"])
    stamp = second.read_stamp() | {"digest": digest, "digests": second.digests}
    second.output(".stamp.json").write_text(json.dumps(stamp))
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


def test_from_takes_earlier_notebooks_as_they_are_and_refuses_unfinished_ones(finished):
    assert plan("--from", "03") == {"01": "reused", "02": "reused", "03": "would run (--from)"}
    (paths.LIBRARY / "boxes.py").write_text("SIZE = 2\n")
    assert plan("--from", "03")["01"] == "reused, although the library changed"
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


def test_bad_usage_is_told_in_one_sentence(project):
    result = CliRunner().invoke(runner.app, ["--profile", "tinny"])
    assert (result.exit_code, "valid ones: tiny" in result.output) == (2, True)
    (paths.PROFILES / "tiny.yaml").write_text("a: [")
    result = invoke()
    assert result.exit_code == 2
    assert result.output.startswith("error: tiny.yaml is not valid YAML")
    assert len(result.output.splitlines()) == 1


def test_a_page_that_cannot_be_made_is_told_apart(finished, monkeypatch):
    def build(profile):
        raise ValueError("no tables")

    monkeypatch.setattr(sys.modules["acs_lib.report.html"], "build", build)
    result = invoke()
    assert result.exit_code == 1
    assert "all notebooks are finished, but the report page could not be made (ValueError: no tables)" in result.output


def test_dataset_digests_are_found(project):
    folder = paths.DATA / "scenes" / "test-10-0"
    folder.mkdir(parents=True)
    (folder / "annotations.json").write_text('{"info": {"digest": "abc"}}')
    assert runner.dataset_digests() == {"data/scenes/test-10-0/annotations.json": "abc"}
