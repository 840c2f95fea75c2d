"""Real COCO photographs through image processor, model, sampler and parser, and into maps."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from harness import scripted, written
from PIL import Image

from acs_lib import paths
from acs_lib.core import boxes as bx
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import accuracy_table, make_choices
from acs_lib.lvlms.load import load_spec
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.maps import box_coverage
from acs_lib.method.sampling import sample_candidates
from acs_lib.profiles import Profile, Sampling
from acs_lib.report.tables import write_comparison, write_table
from acs_lib.study import results
from acs_lib.study.stages import Study

ROOT = Path(os.environ.get("ACS_COCO128") or Path(__file__).parents[3] / "shared" / "coco128")


@pytest.fixture(scope="module", params=["landscape", "portrait"])
def photograph(request):
    """(image, category, box [4] in px) of the largest object of one photograph of each orientation."""
    annotations = ROOT / "annotations" / "instances_train2017.json"
    if not annotations.is_file():
        pytest.skip("no COCO photographs: set ACS_COCO128 to a folder with train2017/ and annotations/")
    coco = json.loads(annotations.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    wide = request.param == "landscape"
    image = next(row for row in coco["images"] if (row["width"] > row["height"]) == wide)
    objects = [row for row in coco["annotations"] if row["image_id"] == image["id"] and not row.get("iscrowd")]
    largest = max(objects, key=lambda row: row["bbox"][2] * row["bbox"][3])
    x, y, width, height = largest["bbox"]
    with Image.open(ROOT / "train2017" / Path(image["file_name"]).name) as file:
        photograph = file.convert("RGB")
    assert photograph.size == (image["width"], image["height"])
    return photograph, names[largest["category_id"]], np.array([x, y, x + width, y + height])


def test_a_random_model_answers_without_a_box_and_nothing_is_lost(lvlm, photograph):
    image, category, _ = photograph
    prompt = lvlm.prompt(image, category)
    how = Sampling(samples=4, temperature=1.0, max_new_tokens=12)
    found, records = sample_candidates(lvlm, [prompt], ["photo"], [0], [category], how)[0]
    assert len(found) == len(records) == 5
    assert found.maps.shape == (5, 4, lvlm.layers, lvlm.heads, *prompt.grid.cells.shape)
    for index, record in enumerate(records):
        assert (not record["failure"]) == found.parsed[index] == np.isfinite(found.maps[index]).all()
        for values in (found.logprobs, found.entropies, found.mean_log_vp, found.top20_logprob):
            assert len(values[index]) == len(record["token_ids"]) and np.isfinite(values[index]).all()
        assert lvlm.image_token_id not in record["token_ids"]


def test_the_true_box_comes_back_with_its_maps(family, lvlm, photograph):
    image, category, box = photograph
    prompt = lvlm.prompt(image, category)
    text, half = written(family, box, lvlm.image_processor, *image.size)
    with scripted(lvlm, text):
        how = Sampling(samples=2, max_new_tokens=120)
        found, records = sample_candidates(lvlm, [prompt], ["photo"], [0], [category], how)[0]
    assert [record["text"] for record in records] == [text] * 3 and found.parsed.all()
    assert (np.abs(found.boxes - box) <= half + 1e-9).all()
    assert (bx.iou(found.boxes, box) > 0.97).all()
    rows, columns = prompt.grid.cells.shape
    assert found.maps.shape == (3, 4, lvlm.layers, lvlm.heads, rows, columns)
    assert np.isfinite(found.maps).all() and (found.maps >= 0).all()
    assert (found.maps.sum((-1, -2)) <= 1 + 1e-5).all()
    entropy, mass, inside, peak = np.moveaxis(found.statistics, -1, 0)
    assert (entropy >= 0).all() and (entropy <= np.log(rows * columns) + 1e-5).all()
    assert np.allclose(mass, found.maps.sum((-1, -2)), atol=1e-5)
    assert (inside <= mass + 1e-6).all() and (peak >= 1 / (rows * columns)).all() and (peak <= 1).all()
    covered = box_coverage(found.boxes[:1], *image.size, (rows, columns)).sum() / (rows * columns)
    assert covered == pytest.approx(bx.area_fraction(found.boxes[0], *image.size), rel=1e-6)


@pytest.fixture
def study(family, lvlm, tmp_path, monkeypatch) -> Study:
    """The paper's settings for a tiny model as it is published, in bfloat16, and six queries of coco128; in folders of
    its own. Its LVLM and dataset have the names of one of the paper's columns."""
    if not (ROOT / "annotations" / "instances_train2017.json").is_file():
        pytest.skip("no COCO photographs: set ACS_COCO128 to a folder with train2017/ and annotations/")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "reports")
    lvlm.model.save_pretrained(tmp_path / "lvlm")
    lvlm.tokenizer.save_pretrained(tmp_path / "lvlm")
    (tmp_path / "lvlm" / "preprocessor_config.json").write_text(json.dumps(family.hub_processor))
    test = {
        "annotations": str(ROOT / "annotations" / "instances_train2017.json"), "folder": str(ROOT / "train2017"),
        "queries": {"small": 3, "large": 3},
    }  # fmt: skip
    profile = Profile(
        name="photographs", description="", duration="", train_on="COCO", heads={"layers": [2]}, batch_queries=4,
        lvlms=[{"name": "InternVL-3.5-8B", "source": str(tmp_path / "lvlm"), "dtype": "bfloat16"}],
        datasets=[{"name": "COCO", "kind": "coco", "splits": {"test": test}}], map_side=8, bootstrap=100,
        sampling={"samples": 3, "temperature": 0.7, "max_new_tokens": 120},
    )  # fmt: skip
    return Study(profile)


def test_photographs_go_all_the_way_into_the_reports_tables(family, study):
    (lvlm, dataset), folder = study.columns[0], paths.reports("photographs")
    with scripted(load_spec(lvlm), family.answer.format(x1=100, y1=100, x2=300, y2=250)):
        runs = study.runs()
    assert [names[:3] for names in runs] == [("InternVL-3.5-8B", "COCO", "test")]
    run = study.run(lvlm, dataset, "test")
    assert run.queries["size"].value_counts().to_dict() == {"small": 3, "large": 3}
    assert len(run.records()) == 6 * 4 and (run.records()["failure"] == "").all()
    images = dict(zip(run.queries["query_id"], run.queries["image"]))
    for found in run.candidates(maps=True):
        with Image.open(images[found.query_id]) as photograph:
            assert photograph.size == (found.width, found.height)
        assert 4 < min(found.maps.shape[-2:]) <= max(found.maps.shape[-2:]) == 8, "at most map_side"
        assert np.isfinite(found.maps).all() and (found.maps > 0).any()
        assert np.isfinite(found.statistics).all()
        assert found.boxes[0, 2] <= found.width and found.boxes[0, 3] <= found.height

    choices = make_choices(run.candidates(maps=True), run.truth, SELECTORS.values(), study.profile.pool)
    rates = accuracy_table(choices, run.queries, draws=100)
    main = published.beside(rates.assign(lvlm=lvlm.name, dataset=dataset.name))
    assert list(main["method"]) and set(SELECTORS) < set(main["method"]) and (main["n_queries"] == 6).all()
    greedy = main.set_index("method").loc["greedy"]
    truth = [bx.iou(found.boxes[0], run.truth[found.query_id]) for found in run.candidates()]
    assert greedy["miou"] == pytest.approx(np.mean(truth)) and greedy["published_acc50"] == 0.491
    write_table(main, paths.reports(study.profile.name), "main_results", "measured")
    assert results.failures(runs)["failure"].tolist() == ["none"]
    assert write_comparison(study.profile, folder)
    text = (folder / "tables" / "published_and_measured.md").read_text()
    assert text.count("not run") == 14, "all cells but greedy's and the best sampling baseline's of one column"
    assert "n = 6" in text
