"""Heads by intervention: what is set to zero and what is not; sinks and masked cells by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_accuracy import candidates

from acs_lib.core.candidates import ENTROPY
from acs_lib.method import knockout, sampling
from acs_lib.method.heads import HeadSet
from acs_lib.profiles import Sampling
from acs_lib.study import intervention

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8))
HOW = Sampling(samples=2, temperature=1.0, max_new_tokens=6, seed=1)


def outputs(lvlm, heads, layer):
    """What `o_proj` of a layer gets in each pass, with the token ids of the pass."""
    seen, ids = [], []
    projection = knockout.output_projections(lvlm)[layer]
    with knockout.knocked_out(lvlm, heads):
        handles = [
            projection.register_forward_hook(lambda module, got, output: seen.append(got[0].clone())),
            lvlm.model.register_forward_pre_hook(
                lambda module, got, named: ids.append(named["input_ids"]), with_kwargs=True
            ),
        ]
        answers = sampling.generate(lvlm, [lvlm.prompt(IMAGE, "dog")], [7], HOW)
        for handle in handles:
            handle.remove()
    return answers, seen, ids


def test_heads_are_silent_where_coordinates_are_decoded_and_nowhere_else(both):
    told, heads = knockout.coordinate_tokens(both), ((1, 0), (1, 3))
    _, plain, _ = outputs(both, (), 1)
    _, seen, ids = outputs(both, heads, 1)
    width = seen[0].shape[-1] // both.heads
    passes = [each for each in zip(seen, ids) if each[0].shape[1] <= HOW.samples + 1]
    assert len(passes) == len(seen) - 1 > 1 and np.array_equal(seen[0], plain[0]), "the prompt is read with all heads"
    silent = loud = 0
    for hidden, tokens in passes:
        parts = hidden.view(*hidden.shape[:2], both.heads, width).abs().sum(-1)
        coordinate = told[tokens]
        assert (parts[coordinate][:, [0, 3]] == 0).all() and (parts[..., 1] > 0).all()
        assert (parts[~coordinate] > 0).all()
        silent, loud = silent + int(coordinate.sum()), loud + int((~coordinate).sum())
    assert silent > 0, "the answers hold coordinates"


def test_the_lvlm_is_as_before_behind_the_context(both):
    before, _, _ = outputs(both, (), 0)
    every = tuple(np.ndindex(both.layers, both.heads))
    without, _, _ = outputs(both, every, 0)
    after, _, _ = outputs(both, (), 0)
    assert [a["logprobs"] for a in before[0]] == [a["logprobs"] for a in after[0]]
    assert [a["logprobs"] for a in before[0]] != [a["logprobs"] for a in without[0]]


def test_coordinate_tokens(both):
    told = knockout.coordinate_tokens(both)
    written = {both.tokenizer.decode([i]).strip() for i in told.nonzero()[:, 0].tolist()}
    assert {"0", "160" if "160" in written else "1000"} <= written
    assert not written & {"dog", "cup", "Yes", "No", "None"}
    assert written & {"<box>", '{"bbox_2d": ['}


def test_a_head_that_is_not_there(untrained):
    with pytest.raises(ValueError, match="has 6 layers x 8 heads, not all of"):
        with knockout.knocked_out(untrained, ((6, 0),)):
            pass


def test_conditions_by_hand():
    found = intervention.conditions(HeadSet("one", "x", ((1, 0), (1, 2))), layers=2, heads=3)
    assert [name for name, _ in found] == ["none", "D_c", "the other heads of D_c's layers", *["random heads"] * 3]
    assert found[0][1] == () and found[1][1] == ((1, 0), (1, 2)) and found[2][1] == ((1, 1),)
    for _, heads in found[3:]:
        assert len(set(heads)) == 2 and not set(heads) & {(1, 0), (1, 2)}


def test_intervention_rows_by_hand():
    """Of two questions each; without D_c one answer has no box, and the other one is wrong."""
    values = dict(zip(intervention.MEASURES, (1.0, 0.8, 1.0, 0.5, 3.0)))
    rows = [{"query_id": q, "method": "none", "draw": 0, **values} for q in "ab"]
    rows += [{"query_id": "a", "method": "D_c", "draw": 1, **values, "acc50": 0.0, "token_entropy": 0.9}]
    nothing = {"acc50": 0.0, "miou": 0.0, "parsed": 0.0, "token_entropy": np.nan, "attention_entropy": np.nan}
    rows += [{"query_id": "b", "method": "D_c", "draw": 1, **nothing}]
    for draw in (2, 3):
        rows += [{"query_id": q, "method": "random heads", "draw": draw, **values, "acc50": draw - 2.0} for q in "ab"]
    table = intervention.intervention_rows(pd.DataFrame(rows), pd.Series({"a": 1, "b": 2}), 200).set_index("method")
    assert table.loc["D_c", ["acc50", "delta_acc50", "parsed", "delta_parsed"]].tolist() == [0, -1, 0.5, -0.5]
    assert table.loc["D_c", ["token_entropy", "delta_token_entropy"]].tolist() == pytest.approx([0.9, 0.4])
    assert table.loc["D_c", ["parsed_lo", "parsed_hi"]].tolist() == [0, 1]
    assert table.loc["random heads", ["acc50", "sets", "n"]].tolist() == [0.5, 2, 2]


def test_a_greedy_answer_is_described():
    c = candidates("q", [[0, 0, 10, 10], [0, 0, 1, 1]])
    c.statistics[0, ..., ENTROPY] = 2
    c = replace(c, entropies=[np.full(4, 0.5), np.full(4, 9)])
    assert intervention.described(c, np.array([0, 0, 10, 6])) == {
        "acc50": 1, "miou": 0.6, "parsed": 1, "token_entropy": 0.5, "attention_entropy": 2,
    }  # fmt: skip
    missing = intervention.described(candidates("q", [[np.nan] * 4]), np.array([0, 0, 10, 6]))
    assert (missing["acc50"], missing["miou"], missing["parsed"]) == (0, 0, 0) and np.isnan(missing["token_entropy"])


def test_sinks_and_borders_by_hand():
    edge = intervention.border(3, 4)
    assert edge.sum() == 10 and not edge[1, 1:3].any()
    shares = np.full((5, 2, 3, 4), 1 / 24)
    shares[..., 0, 3] += 0.5
    sink = intervention.sinks(shares)
    assert sink.sum() == 1 and sink[0, 3]
    table = intervention.sink_rows(shares, np.array([1, 1, 2, 3, 3]), sink, 50).set_index(["method", "layer"])
    assert table.loc[("sinks", 0), "share"] == pytest.approx(0.5 + 1 / 24)
    assert table.loc[("border", 1), ["share", "even_share"]].tolist() == pytest.approx([0.5 + 10 / 24, 10 / 12])
    assert table.loc[("highest cell", 1), "even_share"] == pytest.approx(1 / 12) and (table["n"] == 5).all()
    assert np.ptp(table[["share", "share_lo", "share_hi"]].to_numpy(), axis=1).max() < 1e-9, "all answers are alike"


def test_a_masked_sink_changes_whose_entropy_is_lower():
    """Row 0 looks at one place and at the sink; row 1 evenly at two places."""
    maps = np.zeros((2, 4, 1, 1, 2, 2), np.float32)
    maps[0, ..., 0, 0], maps[0, ..., 1, 1] = 0.5, 0.5
    maps[1, ..., 0, 1], maps[1, ..., 1, 0] = 0.5, 0.5
    c = replace(candidates("q", [[0, 0, 1, 1]] * 2), maps=maps)
    heads = HeadSet("one", "x", ((0, 0),))
    cells = np.array([[True, False], [False, False]])
    found = intervention.masked_free(heads, cells, "masked").score(c)
    assert found.tolist() == pytest.approx([0, -np.log(2)], abs=1e-6)
    finer = np.repeat(np.repeat(maps, 2, -1), 2, -2)
    assert intervention.masked_free(heads, cells, "masked").score(replace(c, maps=finer)) == pytest.approx(found)
