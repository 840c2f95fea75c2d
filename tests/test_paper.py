"""The paper profile where nothing of it was run: its plan, its pinned checkpoints, its report."""

import json
import re
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from acs_lib import paths, runner
from acs_lib.cli import app
from acs_lib.core.errors import UserError
from acs_lib.evaluation import published
from acs_lib.lvlms.configurations import CONFIGS
from acs_lib.profiles import Profile, load_profile
from acs_lib.report.tables import write_comparison, write_table
from acs_lib.runs import plan

PAPER = load_profile("paper")


def acs(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """A project without data, runs or reports."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RUNS", tmp_path / "data" / "runs")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e12))
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    paths.NOTEBOOKS.mkdir()
    for number in PAPER.notebooks:
        cell = nbformat.v4.new_code_cell("profile = 'smoke'\nengine = 'local'", metadata={"tags": ["parameters"]})
        notebook = nbformat.v4.new_notebook(cells=[cell])
        notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
        nbformat.write(notebook, paths.NOTEBOOKS / f"{number}_stage.ipynb")
    return tmp_path / "reports"


def test_the_profile_is_the_papers_table_and_its_checkpoints_are_pinned():
    columns = {(lvlm.name, dataset.name) for lvlm in PAPER.lvlms for dataset in PAPER.datasets}
    assert columns == set(published.COLUMNS)
    assert {lvlm.name: lvlm.source for lvlm in PAPER.lvlms} == {
        "Qwen2.5-VL-7B": "Qwen/Qwen2.5-VL-7B-Instruct", "InternVL-3.5-8B": "OpenGVLab/InternVL3_5-8B-HF",
    }  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{40}", lvlm.revision) for lvlm in PAPER.lvlms)
    assert {lvlm.dtype for lvlm in PAPER.lvlms} == {"bfloat16"}
    assert {lvlm.source for lvlm in PAPER.lvlms} <= set(CONFIGS)


def test_small_goes_up_to_five_percent_and_nothing_is_medium():
    assert PAPER.small == PAPER.large == 0.05
    sizes = {size for dataset in PAPER.datasets for split in dataset.splits.values() for size in split.queries}
    assert sizes == {"small", "large"}


def test_the_plan_is_printed_before_anything_runs(reports):
    result = acs("run", "--profile", "paper", "--limit", "5", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    first = next(number for number, line in enumerate(lines) if "would run" in line)
    assert lines[0] == "plan of the profile paper-first-5" and first > 8
    assert "together: 60 queries, 660 answers, " in result.output  # 2 LVLMs x (5 + 5 + 10 + 10)
    assert "assumed, not measured: one A100" in result.output and "`acs data`" in result.output
    assert not reports.exists(), "a dry run writes nothing"


def test_a_broken_annotation_file_is_one_sentence_of_the_plan(reports):
    folder = paths.ROOT / "data" / "coco" / "annotations"
    folder.mkdir(parents=True)
    (folder / "instances_val2017.json").write_text("{")
    result = acs("run", "--profile", "paper", "--dry-run")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert result.output.startswith("error: ") and "instances_val2017.json is not JSON" in result.output


@pytest.mark.parametrize(("cuda", "reason"), [("13.0", "it is built for CUDA 13.0"), (None, "built without CUDA")])
def test_without_a_gpu_nothing_runs(reports, monkeypatch, cuda, reason):
    ran = []
    monkeypatch.setattr(runner, "run_stage", lambda stage: ran.append(stage) or stop())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for name in ("ACS_CPU", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    arguments = ("run", "--profile", "paper", "--limit", "5")
    result = acs(*arguments)
    assert result.exit_code == 1 and not ran and not reports.exists()
    assert "'paper-first-5' needs a GPU" in result.output and reason in result.output
    assert "mend: install a build of torch for your driver" in result.output
    assert acs(*arguments, "--engine", "ray").exit_code == 1, "workers of this machine"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    acs(*arguments)
    assert not ran
    acs(*arguments, "--engine", "ray")
    assert len(ran) == 1, "the workers have GPUs, this machine need not"
    monkeypatch.setenv("ACS_CPU", "1")
    acs(*arguments)
    assert len(ran) == 2


def stop():
    raise UserError("stopped by the test")


def coco_file(folder, name, count):
    """`count` images of 600x400 px with one small object each; every other image is on disk."""
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 600, "height": 400} for n in range(count)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [9, 9, 20, 20]} for n in range(count)],
    }
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / name).write_text(json.dumps(content))
    images = folder / name.removeprefix("instances_").removesuffix(".json")
    images.mkdir(exist_ok=True)
    for n in range(0, count, 2):
        (images / f"{n}.jpg").touch()


def test_the_plan_counts_the_queries_and_images_that_are_there(reports):
    coco_file(paths.ROOT / "data" / "coco", "instances_val2017.json", 7)
    splits, lvlms = plan.make(PAPER, PAPER.gpu)
    rows = splits.set_index(["lvlm", "dataset", "split"])
    found = rows.loc["Qwen2.5-VL-7B", "COCO", "test"]
    assert (found["queries"], found["answers"], found["images"], found["counted"]) == (7, 77, "4 of 7", True)
    assert found["image_tokens"] == 21 * 14  # 600x400 becomes 588x392
    other = rows.loc["InternVL-3.5-8B", "Objects365", "test"]
    assert (other["queries"], other["counted"], other["image_tokens"]) == (3500, False, 13 * 256)
    assert (lvlms["memory_gb"] > lvlms["weights_gb"]).all()
    text = plan.say(PAPER)
    assert " 7 " in text and "3500 at most" in text


def test_the_plan_says_when_a_gpu_is_too_small_and_its_disk_is_what_a_run_reserves(reports):
    content = PAPER.model_dump()
    content["gpu"] = {"name": "a small one", "memory": 8}
    small = Profile.model_validate(content)
    assert "does not fit into 8 GB (a small one): lower `batch_queries`" in plan.say(small)
    assert "does not fit" not in plan.say(PAPER)
    splits, _ = plan.make(PAPER, PAPER.gpu)
    of_a_query = splits["maps_gb"] * 1e9 / splits["queries"]
    assert of_a_query.iloc[0] == 11 * 4 * 28 * 28 * (2 * 16 * 16 + 16), "maps in float16, four statistics in float32"
    content["map_side"] = None
    whole, _ = plan.make(Profile.model_validate(content), PAPER.gpu)
    assert (whole["maps_gb"] / splits["maps_gb"]).iloc[-1] == pytest.approx((2 * 3072 + 16) / (2 * 256 + 16))


def test_the_plan_is_held_against_this_machine(reports, monkeypatch):
    room = SimpleNamespace(free=545e9)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: room)
    assert f"the disk of {paths.ROOT.name} has 545 GB free: too little" in plan.say(PAPER)
    room.free = 560e9
    assert "too little" not in plan.say(PAPER)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(name="RTX 4090", total_memory=25.4e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert "does not fit" not in plan.say(PAPER)
    card.total_memory = 16e9
    assert "does not fit into 16 GB (RTX 4090)" in plan.say(PAPER)


def test_host_memory_and_the_regressors_time_are_those_that_were_measured(reports):
    lvlms = plan.make(PAPER, PAPER.gpu)[1].set_index("lvlm")
    answers, epochs = 4000 * 11, 5 + 3 * 2
    measured = {"Qwen2.5-VL-7B": 0.012, "InternVL-3.5-8B": 0.017}  # seconds an answer
    for lvlm, seconds in measured.items():
        assert lvlms["regressor_hours"][lvlm] == pytest.approx(answers * epochs * seconds / 3600, rel=0.05)
    shards = 2 * 2 * 64 * 11 * 4 * 36 * 32 * (2 * 16 * 16 + 16)  # two of InternVL's, twice
    assert shards == pytest.approx(2 * 3.3e9, rel=0.05)
    assert plan.host_bytes(1e9, shards / 256) == 4e9 + shards, "more than the weights of a small LVLM"
    assert (lvlms["host_gb"] == 4 + lvlms["weights_gb"]).all()
    text = plan.say(PAPER)
    assert "host memory about 21 GB; regressor about 3.9 h on the CPU (less on a GPU)" in text


def test_an_lvlms_image_settings_are_part_of_its_key_and_of_the_plan(reports):
    plain, tiles = PAPER.lvlms[1], PAPER.lvlms[1].model_copy(update={"max_tiles": 6})
    assert tiles.model_dump() == {**plain.model_dump(), "max_tiles": 6}
    assert "max_tiles" not in plain.model_dump() and "max_pixels" not in plain.model_dump(), "keys of older runs stay"
    small = PAPER.lvlms[0].model_copy(update={"max_pixels": 100_000})
    splits, _ = plan.make(PAPER.model_copy(update={"lvlms": (small, tiles)}), PAPER.gpu)
    assert splits["image_tokens"].unique().tolist() == [9 * 13, 7 * 256]
    wrong = PAPER.lvlms[0].model_copy(update={"max_tiles": 6})
    with pytest.raises(ValueError, match="sets max_tiles, which LVLMs of the type qwen2_5_vl do not have"):
        plan.make(PAPER.model_copy(update={"lvlms": (wrong,)}), PAPER.gpu)
    with pytest.raises(ValueError, match="max_tiles"):
        Profile.model_validate({**PAPER.model_dump(), "lvlms": [{**plain.model_dump(), "max_tiles": 0}]})


def test_the_report_marks_what_was_not_run(reports):
    result = acs("report", "--profile", "paper")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(reports / "paper" / "tables" / "published_and_measured.csv")
    assert len(table) == 16 and set(table["measured_acc50"]) == {"not run"}
    assert table["published_acc50"].max() == 65.3
    page = (reports / "paper" / "index.html").read_text()
    assert page.count("not run") >= 16 and "65.3" in page


def measured_column(lvlm, dataset) -> pd.DataFrame:
    rows = [
        ("greedy", "control", 0.60), ("sequence log-prob", "likelihood", 0.61), ("medoid", "consensus", 0.62),
        ("ACS-Free", "acs-free", 0.63), ("ACS-Learned", "acs-learned", 0.64),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["method", "family", "acc50"]).assign(lvlm=lvlm, dataset=dataset, n_queries=900)
    frame["acc50_lo"], frame["acc50_hi"] = frame["acc50"] - 0.03, frame["acc50"] + 0.03
    return frame


def test_one_column_that_was_run_stands_beside_the_published_ones(reports):
    column = "InternVL-3.5-8B", "COCO"
    write_table(measured_column(*column), reports / "paper", "main_results")
    assert acs("report", "--profile", "paper").exit_code == 0
    table = pd.read_csv(reports / "paper" / "tables" / "published_and_measured.csv", keep_default_na=False)
    run = (table["lvlm"] == column[0]) & (table["dataset"] == column[1])
    assert (table.loc[~run, "measured_acc50"] == "not run").all() and (table.loc[~run, "measured_method"] == "").all()
    rows = table[run].set_index("method")
    assert rows["measured_acc50"]["ACS-Learned"] == "64.0 [61.0, 67.0], n = 900"
    assert rows["published_acc50"]["ACS-Learned"] == 58.6
    assert rows["measured_method"].to_dict() == {
        "greedy": "greedy", "best sampling baseline": "medoid", "ACS-Free": "ACS-Free", "ACS-Learned": "ACS-Learned",
    }  # fmt: skip


def test_a_profile_of_other_lvlms_has_no_such_table(reports):
    assert not write_comparison(load_profile("smoke"), reports / "smoke")
    assert not reports.exists()


def test_the_manifest_names_the_commits_that_were_loaded(offline_hub):
    assert runner.checkpoints(PAPER) == {spec.name: spec.revision for spec in PAPER.lvlms}
    commit = "1" * 40
    (offline_hub("Qwen/Qwen2.5-VL-7B-Instruct", commit) / "config.json").write_text("{}")
    content = PAPER.model_dump()
    content["lvlms"][0]["revision"] = None
    assert runner.checkpoints(Profile.model_validate(content))["Qwen2.5-VL-7B"] == commit, "what `main` was"


def test_a_copied_profile_has_to_change_its_name(tmp_path, monkeypatch):
    """Runs and reports lie under that name: it would write over those of the profile that it was copied from."""
    text = (paths.PROFILES / "paper.yaml").read_text()
    monkeypatch.setattr(paths, "PROFILES", tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match="mine.yaml names itself 'paper'; write name: mine, or rename the file"):
        load_profile("mine")
    (tmp_path / "mine.yaml").write_text(text.replace("name: paper", "name: mine"))
    assert load_profile("mine-first-2").datasets[0].splits["train"].queries == {"small": 2}
