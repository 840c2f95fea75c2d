"""Sentences follow from the numbers: each case of a finding has its own."""

import numpy as np
import pandas as pd
import pytest

from acs_lib.method.heads import HeadSet
from acs_lib.report import sentences
from acs_lib.study import results

POOLED = np.array([[0.5, 0.6], [0.9, 0.4], [0.7, 0.8]])  # AUROC [layers, heads]
WITHIN = np.array([[0.8, 0.5], [0.5, 0.6], [0.5, 0.7]])


@pytest.fixture
def table():
    layer, head = np.indices(POOLED.shape).reshape(2, -1)
    columns = {"layer": layer, "head": head, "auroc": POOLED.ravel(), "auroc_within_query": WITHIN.ravel()}
    return pd.concat([pd.DataFrame(columns).assign(lvlm=name) for name in ("tiny", "other")])


@pytest.mark.parametrize("heads", [((1, 0), (2, 1)), ((0, 0), (2, 1)), ((2, 1), (0, 0))])
def test_a_filter_by_layer_that_changed_nothing_is_said_to_have_done_nothing(table, heads):
    told = sentences.say_layer_filter([HeadSet("tiny", "scenes", heads)], table).data
    assert "tiny: nothing: D_c is what the heads of all 3 layers give, the best 2 of them" in told


def test_a_filter_by_layer_that_changed_d_c_is_told_with_what_it_left_out(table):
    head_set = HeadSet("tiny", "scenes", ((2, 1), (2, 0)))
    assert results.unfiltered(head_set, table) == [((1, 0), (2, 1)), ((0, 0), (2, 1))]
    told = sentences.say_layer_filter([head_set, HeadSet("other", "scenes", ((1, 0),))], table).data
    changed = "D_c from all 3 layers would be (1, 0), (2, 1) (best over all answers) or (0, 0), (2, 1) (inside queries)"
    assert f"tiny: {changed}" in told
    assert "other: nothing: D_c is what the heads of all 3 layers give, the best 1 of them" in told
