"""The same scenes with more detail and without: by hand, and that the profiles name the same scenes."""

import numpy as np
import pandas as pd
import pytest
from test_accuracy import candidates

from acs_lib.datasets.splits import load_split
from acs_lib.profiles import load_profile
from acs_lib.study import renderings

NAN = [np.nan] * 4
TRUTH = {"s-test/1/1": np.array([0, 0, 10, 10.0]), "s-test/2/5": np.array([0, 0, 10, 10.0])}


class Answered:
    """Two small objects: of one the greedy answer is right, of the other a sample alone."""

    profile = type("Profile", (), {"pool": "sampled"})
    run = type("Run", (), {"truth": TRUTH})
    small = pd.DataFrame({"query_id": list(TRUTH), "image_id": [1, 2]})
    predictions = pd.DataFrame({
        "query_id": ["s-test/1/1", "s-test/2/5", "s-test/2/9"], "iou": [1.0, 0.9, 0.1], "predicted_iou": [0.9, 0.8, 0.5]
    })  # fmt: skip

    def candidates(self):
        yield candidates("s-test/1/1", [[0, 0, 10, 10], [50, 50, 60, 60]])
        yield candidates("s-test/2/5", [NAN, [0, 0, 10, 9]])


def test_what_is_measured_of_one_rendering():
    objects, answers = renderings.measured(Answered())
    assert objects.loc["1/1"].tolist() == [1, 1, 0] and objects.loc["2/5"].tolist() == [2, 0, 1]
    assert answers["object"].tolist() == ["1/1", "2/5"], "2/9 is no small object"


def frame(*rows):
    return pd.DataFrame(rows, columns=["object", "image_id", "greedy", "oracle"]).set_index("object")


def answers(objects, predicted):
    return pd.DataFrame({"object": objects, "image_id": range(len(objects)), "iou": [0.0, 1.0, 0.5],
                         "predicted_iou": predicted})  # fmt: skip


def test_the_table_by_hand():
    """One object is in the first rendering alone, and counts nowhere."""
    fine = frame(("a", 1, 1, 1), ("b", 2, 1, 1), ("c", 3, 0, 1), ("x", 4, 0, 0))
    coarse = frame(("c", 3, 0, 0), ("b", 2, 0, 1), ("a", 1, 1, 1))
    found = {
        "fine": (fine, answers(["a", "b", "x"], [0.1, 0.9, 0.0])),
        "coarse": (coarse, answers(["a", "b", "c"], [0.1, 0.9, 0.5])),
    }
    table = renderings.rendering_rows(found, 400)
    assert (table["n"] == 3).all()
    assert table["greedy"].tolist() == pytest.approx([2 / 3, 1 / 3]) and table["oracle"].tolist() == pytest.approx(
        [1, 2 / 3]
    )
    assert table.loc["coarse", ["delta_greedy", "delta_oracle"]].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert table.loc["fine", ["delta_greedy", "delta_greedy_lo", "delta_oracle_hi"]].tolist() == [0, 0, 0]
    assert table["pearson"].tolist() == pytest.approx([1, 1])
    assert (table["delta_greedy_lo"] <= table["delta_greedy"]).all() and table.loc["coarse", "delta_greedy_hi"] == 1


def test_no_other_rendering_no_rows():
    study = type("Study", (), {"profile": load_profile("paper")})
    assert renderings.renderings_table(study, []).empty


@pytest.mark.parametrize("name", ["beyond", "beyond-smoke"])
def test_both_renderings_are_of_the_same_scenes(name):
    """Files for the smallest profile alone; of the other that the settings are the same."""
    profile = load_profile(name)
    finer = next(dataset for dataset in profile.datasets if dataset.name == profile.train_on)
    other = profile.beyond.rendered
    assert other.splits["test"] == finer.splits["test"] and finer.name == f"{other.name}-480"
    if name == "beyond-smoke":
        (fine, _), (coarse, _) = (load_split(profile, dataset, "test") for dataset in (finer, other))
        assert set(fine["width"]) == {480} and set(coarse["width"]) == {160}
        boxes = [frame[["x1", "y1", "x2", "y2"]].to_numpy() for frame in (fine, coarse)]
        assert np.array_equal(boxes[0], 3 * boxes[1]) and fine["category"].tolist() == coarse["category"].tolist()
