"""The laptop profile where nothing of it was run: what it asks, what it fetches, and its plan on this machine."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from acs_lib import paths
from acs_lib.cli import app
from acs_lib.datasets.splits import load_split
from acs_lib.evaluation import published
from acs_lib.lvlms.configurations import CONFIGS, published_config
from acs_lib.lvlms.load import adapter_of
from acs_lib.profiles import load_profile
from acs_lib.runs import plan

LAPTOP = load_profile("laptop")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without data, on a machine of 2 cores that multiplies 0.1 TFLOPS and reads 10 GB/s."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RUNS", tmp_path / "data" / "runs")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e12))
    monkeypatch.setattr(plan, "measured_rates", lambda device, dtype: (0.1, 10.0))
    monkeypatch.setattr(plan, "default_device", lambda: "cpu")
    monkeypatch.setattr(plan, "fast_dtype", lambda device: torch.float32)
    monkeypatch.setattr(plan, "cores", lambda: 2)
    monkeypatch.setattr(plan, "machine_memory", lambda: 16.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def photographs(folder, count=400):
    """An annotation file of `count` images of 640x480 px with a small cat and a large dog each."""
    sizes = {1: [9, 9, 128, 120], 2: [300, 9, 200, 300]}  # 5.0 % and 19.5 % of the image
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(count)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 2 * n + which, "image_id": n, "category_id": which, "bbox": box}
            for n in range(count)
            for which, box in sizes.items()
        ],
    }
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def test_its_lvlms_have_adapters_and_stand_beside_no_published_number():
    assert {spec.source for spec in LAPTOP.lvlms} <= set(CONFIGS)
    assert all(re.fullmatch("[0-9a-f]{40}", spec.revision) and spec.dtype == "auto" for spec in LAPTOP.lvlms)
    assert not {spec.name for spec in LAPTOP.lvlms} & {lvlm for lvlm, _ in published.COLUMNS}
    assert LAPTOP.small == LAPTOP.large == 0.05 and LAPTOP.batch_queries == 1


@pytest.mark.parametrize(
    ("spec", "tokens"), list(zip(LAPTOP.lvlms, (16 * 16, 18 * 13))), ids=lambda each: str(each)[:20]
)
def test_an_image_is_one_look_of_few_tokens(spec, tokens):
    """As the profile's comment has it, of 640x480 px; and no other COCO photograph (at most 640x640) has more."""
    config = published_config(spec)
    adapter = adapter_of(config.model_type, spec.source)
    assert adapter.count_tokens(config, 640, 480, **spec.limits).image == tokens
    assert adapter.count_tokens(config, 640, 640, **spec.limits).image <= 256


def test_splits_share_no_image_and_are_taken_of_one_file(project):
    photographs(project / "data" / "coco")
    found = {split: load_split(LAPTOP, LAPTOP.datasets[0], split)[0] for split in LAPTOP.datasets[0].splits}
    images = [set(queries["image_id"]) for queries in found.values()]
    assert not images[0] & images[1] and not images[1] & images[2] and not images[0] & images[2]
    assert set(found["train"]["size"]) == {"small"}, "boxes of exactly 5 % of the image"
    assert found["test"]["size"].value_counts().to_dict() == {"small": len(images[2]), "large": 20}


def test_its_data_are_linked(project, tmp_path_factory):
    mine = photographs(tmp_path_factory.mktemp("mine"), 100)
    (mine / "images").mkdir()
    annotations = mine / "annotations" / "instances_val2017.json"
    asked = ["data", "coco", "--profile", "laptop", "--annotations", str(annotations), "--images", str(mine / "images")]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 1 and "images that the queries need: 100, there and whole: 0" in found.output
    assert (project / "data" / "coco" / "val2017").resolve() == (mine / "images").resolve()


def test_the_plan_is_of_this_machine(project):
    text = plan.say(LAPTOP)
    assert "measured for a second on this machine, 2 cores, float32" in text and "0.1 TFLOPS" in text
    assert "together: 960 queries, 10560 answers, " in text and "GPU" not in text.replace("less on a GPU", "")
    splits, lvlms = plan.make(LAPTOP, plan.here())
    slow, _ = plan.make(LAPTOP, plan.here().model_copy(update={"tflops": 0.05, "bandwidth": 5.0}))
    assert (slow["hours"] / splits["hours"]).tolist() == pytest.approx([2] * 6)
    assert lvlms["weights_gb"].tolist() == pytest.approx([2.12, 4.26], rel=0.01), "fetched in bfloat16"
    assert (lvlms["memory_gb"] > 2 * lvlms["weights_gb"]).all(), "computed in float32"
    # A token of 11 answers reads the decoder (0.6 of 1.1 billion numbers, 0.16 of them the output layer) at 10 GB/s.
    by_hand = 64 * (0.596e9 * 4) / 10e9 / 3600
    found = splits[(splits["lvlm"] == "InternVL-3.5-1B") & (splits["split"] == "train")].iloc[0]
    assert 300 * by_hand < found["hours"] < 2 * 300 * by_hand, "the rest is the prefill"


def test_a_machine_that_is_too_small_is_told(project, monkeypatch):
    assert "does not fit" not in plan.say(LAPTOP)
    monkeypatch.setattr(plan, "machine_memory", lambda: 8.0)
    assert "does not fit into 8 GB (this machine, 2 cores, float32)" in plan.say(LAPTOP)
