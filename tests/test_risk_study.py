"""Promises of a study: questions about absent objects, calibration over splits, and thresholds as files."""

import json

import numpy as np
import pandas as pd
import pytest

from acs_lib import paths
from acs_lib.datasets import coco
from acs_lib.datasets.splits import load_split, split_files
from acs_lib.embedded.scenes import GROUP
from acs_lib.method.origin import Origin
from acs_lib.method.thresholds import Thresholds, check_sampling, load_thresholds
from acs_lib.profiles import BeyondSpec, Sampling, load_profile
from acs_lib.study import risk
from acs_lib.study.stages import Study

KINDS = [("dog", "animal"), ("cat", "animal"), ("cup", "thing"), ("car", None)]
CONTENT = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 100} for n in range(1, 41)],
    "categories": [
        {"id": 10 * (i + 1), "name": name} | ({} if kin is None else {"supercategory": kin})
        for i, (name, kin) in enumerate(KINDS)
    ],
}


def annotated(*categories):
    """The file with an object of these categories in every image."""
    rows = [
        {"id": 100 * n + c, "image_id": n, "category_id": c, "bbox": [1, 1, 5, 5]}
        for n in range(1, 41)
        for c in categories
    ]
    return coco.indexed({**CONTENT, "annotations": rows})


def absent(*categories):
    content = annotated(*categories)
    queries = pd.DataFrame([
        {"query_id": f"s/{n}/{100 * n + c}", "image_id": n, "image": f"{n}.jpg", "width": 100, "height": 100,
         "category": "?", "x1": 1.0, "y1": 1.0, "x2": 6.0, "y2": 6.0, "area_fraction": 0.0025, "size": "small"}
        for n in range(1, 41) for c in categories
    ])  # fmt: skip
    return coco.absent_queries(content, queries)


def test_an_absent_object_is_one_of_the_kin_of_what_is_there():
    found = absent(10, 30)
    assert len(found) == 40 and set(found["category"]) == {"cat"}, "dog is there, car is no kin"
    assert set(found["size"]) == {"absent"} and found[["x1", "area_fraction"]].isna().all(axis=None)
    assert found["query_id"].tolist()[:2] == ["s/1/absent", "s/2/absent"] and found["query_id"].is_unique
    assert set(absent(10, 20)["category"]) == {"cup", "car"}, "no kin is left: any other one"
    assert absent(10, 20).equals(absent(10, 20))


def test_a_split_asks_for_what_is_absent_only_where_the_profile_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    profile = load_profile("smoke")
    profile = profile.model_copy(update={"beyond": BeyondSpec(absent=4)})
    splits = {name: profile.datasets[0].splits["test"].model_copy(update={"images": 6}) for name in ("train", "test")}
    dataset = profile.datasets[0].model_copy(update={"splits": splits})
    there, _ = load_split(profile, dataset, "test")
    assert "absent" not in set(there["size"])
    asking = risk.about_absent(Study(profile), dataset)
    assert list(asking.splits) == ["test"], "none to train on"
    found, _ = load_split(profile, asking, "test")
    assert len(found) == 4 and set(found["size"]) == {"absent"} and found["image_id"].is_unique
    assert found["query_id"].str.startswith("scenes-test/").all()
    annotated = coco.read_annotations(split_files(dataset, "test")[0])
    for row in found.itertuples():
        names = {annotated.cats[a["category_id"]]["name"] for a in annotated.imgToAnns[row.image_id]}
        groups = {GROUP[name] for name in names}
        kin = [name for name, group in GROUP.items() if group in groups and name not in names]
        assert row.category not in names and (row.category in kin or not kin)


def test_where_everything_is_there_nothing_is_absent():
    assert len(absent(10, 20, 30, 40)) == 0


def made(n=1200, shift=0.0, seed=0, absent_share=0.25):
    """A frame as `risk.asked` gives it, of methods whose score tells right from wrong."""
    rng, parts = np.random.default_rng(seed), []
    images, score = [f"{seed}/{number // 4}" for number in range(n)], rng.normal(0, 1, n)
    present = rng.random(n) >= absent_share
    score -= 2 * ~present
    hit = present & (rng.random(n) < 1 / (1 + np.exp(-1 - 2 * score + shift)))
    for name in risk.METHODS:
        parts.append(pd.DataFrame({"method": name, "score": score, "hit": hit, "present": present, "image": images}))
    return pd.concat(parts, ignore_index=True)


def test_the_promises_hold_over_splits_and_break_under_shift(monkeypatch):
    monkeypatch.setattr(risk, "METHODS", risk.METHODS[:1])
    train, validation = made(seed=1, absent_share=0), made(seed=2)
    table = risk.risk_rows(train, validation, made(seed=3), False, (0.2,), 0.1, 100).set_index("promise")
    wrong, tested = table.loc[risk.CONFORMAL], table.loc[risk.TESTED]
    assert 0.15 < wrong["wrong_over_splits"] < 0.21 and wrong["answered"] > 0.2
    assert tested["above_alpha"] <= 0.1 and tested["answered_over_splits"] > 0.1
    assert wrong["n"] == 1200 and wrong["n_absent"] > 200
    for name in ("auroc", "aurc", *risk.MEASURES):
        assert table[f"{name}_lo"].le(table[name]).all() and table[f"{name}_hi"].ge(table[name]).all()
    shifted = risk.risk_rows(train, validation, made(seed=3, shift=3), True, (0.2,), 0.1, 20).set_index("promise")
    assert shifted.loc[risk.CONFORMAL, "wrong_over_splits"] > 0.25 and shifted.loc[risk.TESTED, "above_alpha"] > 0.1


def test_half_of_the_images_calibrate_and_the_other_half_is_asked():
    frame, seen = made(40)[:40], []

    def find(scores, hit, images):
        seen.append(set(images))
        return 0.0

    found = risk.over_splits(frame, None, find, splits=6)
    assert len(found) == 6 and all(len(images) == 5 for images in seen) and len({*map(frozenset, seen)}) > 1
    whole = risk.over_splits(frame, frame, find, splits=2)
    assert whole["answered"].tolist() == [(frame["score"] >= 0).mean()] * 2


def test_coverage_by_hand():
    frame = pd.DataFrame({"method": "x", "score": [3.0, 2, 1, -np.inf], "image": list("abcd")})
    frame["hit"] = [True, False, True, False]
    table = risk.coverage_rows(frame, 50).set_index("coverage")
    assert table.loc[[0.25, 0.5, 0.75, 1.0], "risk"].tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert (table["n"] == 4).all() and (table["risk_lo"] <= table["risk_hi"]).all()


# ---------------------------------------------------------------------------------------------------------- files

ORIGIN = Origin(weights="w", question="q", sampling=Sampling(samples=10, temperature=0.8))
FOUND = Thresholds(
    lvlm="one", found_on="scenes", questions=9, absent=3, images=4, origin=ORIGIN,
    values={"acs-free": {"0.1": -2.5, "0.01": None}},
)  # fmt: skip


def test_thresholds_come_back_as_they_were(tmp_path):
    FOUND.save(tmp_path / "risk.json")
    found = load_thresholds(tmp_path / "risk.json", "one", "w", "q")
    assert found == FOUND and found.of("acs-free", "f") == {"0.1": -2.5, "0.01": None}
    assert json.loads((tmp_path / "risk.json").read_text())["absent"] == 3
    with pytest.raises(ValueError, match="f has no threshold for medoid; take acs-free"):
        found.of("medoid", "f")
    with pytest.raises(ValueError, match="was found with other weights"):
        load_thresholds(tmp_path / "risk.json", "one", "other", "q")
    (tmp_path / "risk.json").write_text("{}")
    with pytest.raises(ValueError, match=r"risk.json holds no thresholds; make it anew with acs calibrate"):
        load_thresholds(tmp_path / "risk.json", "one", "w", "q")


def test_thresholds_hold_for_their_own_sampling_alone():
    check_sampling("it", ORIGIN.sampling, ORIGIN.sampling.model_copy(update={"seed": 5, "max_new_tokens": 9}))
    with pytest.raises(ValueError, match=r"it was found with samples 10, temperature 0.8, and holds for these alone"):
        check_sampling("it", ORIGIN.sampling, Sampling(samples=4, temperature=0.5))
