"""Kinds of mistakes on hand-made boxes, and pairs ranked right by hand-made scores."""

import numpy as np
import pandas as pd
import pytest

from acs_lib.evaluation.mistakes import makeup, mistake_kinds, mixed_only, ranked_right
from acs_lib.method.selection import Selector

TRUTH = np.array([0, 0, 10, 10.0])
OTHER = np.array([[20, 20, 40, 40.0]])


class Few:
    """As much of Candidates as a score needs here."""

    def __init__(self, query_id, boxes):
        self.query_id, self.boxes = query_id, np.array(boxes, float)

    def __len__(self):
        return len(self.boxes)


def test_kinds_by_hand():
    boxes = [
        [0, 0, 10, 10],  # the truth
        [0, 0, 10, 5],  # IoU 0.5
        [0, 0, 10, 4.9],  # just below
        [20, 20, 40, 30],  # half of another object
        [20, 20, 30, 25],  # an eighth of it
        [60, 60, 70, 70],
        [np.nan] * 4,
    ]
    expected = ["good", "good", "near miss", "another object", "nothing", "nothing", "nothing"]
    assert mistake_kinds(np.array(boxes), TRUTH, OTHER).tolist() == expected


def test_a_good_box_is_good_even_if_another_object_lies_on_it():
    assert mistake_kinds(TRUTH[None], TRUTH, np.array([[0, 0, 10, 11.0]])).tolist() == ["good"]
    assert mistake_kinds(TRUTH[None], TRUTH, np.empty((0, 4))).tolist() == ["good"]


def test_makeup_leaves_out_greedy_and_mixed_needs_both():
    queries = [Few("a", [TRUTH, TRUTH, OTHER[0]]), Few("b", [OTHER[0], TRUTH, TRUTH]), Few("c", [TRUTH, OTHER[0]])]
    table = makeup(queries, dict.fromkeys("abc", TRUTH), dict.fromkeys("abc", OTHER))
    assert table.values.tolist() == [
        ["a", 1, "good"], ["a", 2, "another object"], ["b", 1, "good"], ["b", 2, "good"], ["c", 1, "another object"],
    ]  # fmt: skip
    assert set(mixed_only(table)["query_id"]) == {"a"}


@pytest.mark.parametrize(
    ("scores", "right"), [([9, 1, 0], 1.0), ([9, 0, 1], 0.0), ([9, 1, 1], 0.5), ([9, 1, 1.000001], 0.5)]
)
def test_ranked_right_counts_pairs_inside_queries(scores, right):
    query = Few("a", [TRUTH, TRUTH, OTHER[0]])
    kinds = pd.DataFrame({"query_id": "a", "candidate": [1, 2], "kind": ["good", "another object"]})
    selector = Selector("by hand", "control", lambda c: np.array(scores, float), "-")
    (row,) = ranked_right([query], kinds, [selector], {"a": 1}, draws=50).to_dict("records")
    assert (row["method"], row["kind"], row["pairs"], row["n_mixed"]) == ("by hand", "another object", 1, 1)
    assert row["pair_auroc"] == row["pair_auroc_lo"] == row["pair_auroc_hi"] == right


def test_ranked_right_draws_images():
    queries = [Few(name, [TRUTH, TRUTH, OTHER[0]]) for name in "abcd"]
    kinds = pd.concat(
        [
            pd.DataFrame({"query_id": q.query_id, "candidate": [1, 2], "kind": ["good", "another object"]})
            for q in queries
        ]
    )
    selector = Selector("by hand", "control", lambda c: np.array([9, c.query_id in "ab", 0.5]), "-")
    one = ranked_right(queries, kinds, [selector], dict(zip("abcd", [1, 1, 2, 2])), draws=500)
    four = ranked_right(queries, kinds, [selector], dict(zip("abcd", range(4))), draws=500)
    assert one["pair_auroc"].tolist() == four["pair_auroc"].tolist() == [0.5] and one["n_mixed"].tolist() == [4]
    # one of two images may be missing in a draw, hardly two of four
    assert one[["pair_auroc_lo", "pair_auroc_hi"]].to_numpy().tolist() == [[0, 1]] and four["pair_auroc_lo"][0] == 0
    eight = dict.fromkeys("abcd", 1)
    assert ranked_right(queries, kinds, [selector], eight, draws=50)["pair_auroc_lo"].tolist() == [0.5]
