"""Evaluation: choices by hand, the paired bootstrap, exact tests, ranks, published numbers and tables."""

import numpy as np
import pandas as pd
import pytest

from acs_lib.core.candidates import Candidates
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import (
    CHOICE_COLUMNS,
    ORACLE,
    RANDOM,
    RATES,
    accuracy_by_size,
    accuracy_table,
    hits,
    make_choices,
    make_fusions,
)
from acs_lib.evaluation.bootstrap import bootstrap_means, bootstrap_p, correlation_interval, paired_difference
from acs_lib.evaluation.significance import (
    holm,
    mcnemar,
    mean_ranks,
    rank_intervals,
    same_hits,
    significance,
)
from acs_lib.method import heads
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.baselines.consensus import FUSIONS
from acs_lib.method.selection import Selector
from acs_lib.report.tables import side_by_side, write_table


def candidates(query_id: str, boxes: list) -> Candidates:
    n = len(boxes)
    tokens = [np.zeros(4)] * n
    return Candidates(query_id, "bird", 100, 100, np.array(boxes, float), tokens, tokens, tokens, tokens,
                      [np.arange(4)] * n, np.zeros((n, 4, 3, 2, 4)))  # fmt: skip


NAN = [np.nan] * 4
TRUTH = {"a": [0, 0, 10, 10], "b": [0, 0, 10, 10]}
QUERIES = pd.DataFrame({"query_id": ["a", "b"], "image_id": [1, 2], "size": ["small", "large"]})
WORLD = [
    candidates("a", [[0, 0, 10, 5], [0, 0, 10, 8], NAN, [0, 0, 10, 2]]),  # IoU 0.5, 0.8, none, 0.2
    candidates("b", [NAN, NAN, NAN, NAN]),
]
LAST = Selector("last", "attention", lambda c: np.arange(len(c), dtype=float), "test")


def frame(query_rows: dict[str, list[float]], images: list) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(choices, queries) from the hits of each method on queries 0, 1, ...; IoU is 0.8 of a hit."""
    choices = [
        (query, method, "control" if method == "greedy" else "attention", 1, 0.8 * hit, float(hit), float(hit))
        for method, row in query_rows.items()
        for query, hit in enumerate(row)
    ]
    queries = pd.DataFrame({"query_id": range(len(images)), "image_id": images})
    return pd.DataFrame(choices, columns=CHOICE_COLUMNS), queries


def table(choices, queries, **settings) -> pd.DataFrame:
    return accuracy_table(choices, queries, **{"draws": 500, **settings}).set_index("method")


def measured(choices, queries, lvlm: str = "tiny", dataset: str = "scenes") -> pd.DataFrame:
    """Rows of main_results.csv."""
    return published.beside(accuracy_table(choices, queries, draws=50).assign(lvlm=lvlm, dataset=dataset))


# choices


def test_chosen_by_hand():
    choices = make_choices(WORLD, TRUTH, [SELECTORS["greedy"], LAST])
    assert list(choices.columns) == CHOICE_COLUMNS
    a = choices[choices["query_id"] == "a"].set_index("method")
    assert a["iou"].to_dict() == pytest.approx(
        {"greedy": 0.5, "last": 0.2, "random (mean over N)": 0.5, "oracle best of N": 0.8}
    )
    assert a["hit"].to_dict() == {"greedy": 1, "last": 0, "random (mean over N)": 0.5, "oracle best of N": 1}
    assert a["hit75"].to_dict() == {"greedy": 0, "last": 0, "random (mean over N)": 0.5, "oracle best of N": 1}
    assert a["candidate"].to_dict() == {"greedy": 0, "last": 3, "random (mean over N)": -1, "oracle best of N": 1}
    b = choices[choices["query_id"] == "b"]
    assert len(b) == 4 and (b[["iou", "hit", "hit75"]] == 0).all(axis=None)


def test_chosen_with_the_greedy_answer_in_the_pool():
    a = make_choices(WORLD[:1], TRUTH, [], pool="all").set_index("method")
    assert a.loc[RANDOM, "iou"] == pytest.approx((0.5 + 0.8 + 0.2) / 3)
    assert a.loc[RANDOM, "hit"] == pytest.approx(2 / 3)


def test_controls_fall_back_to_the_greedy_answer_as_selectors_do():
    world = [candidates("a", [[0, 0, 10, 5], NAN, NAN])]
    choices = make_choices(world, TRUTH, [LAST])
    assert list(choices["iou"]) == pytest.approx([0.5] * 3)


def test_random_is_the_expectation_of_a_random_selector_and_nothing_beats_the_oracle():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 6, (400, 11, 2))
    world = [candidates(str(i), np.concatenate([xy, xy + 8], axis=1)) for i, xy in enumerate(corners)]
    truth = {c.query_id: [2, 2, 10, 10] for c in world}
    choices = make_choices(world, truth, SELECTORS.values())
    means = choices.groupby("method")["iou"].mean()
    assert means["random"] == pytest.approx(means[RANDOM], abs=0.03)
    assert means.drop("greedy").max() == means[ORACLE]


def test_fused_boxes():
    choices = make_fusions(WORLD, TRUTH, FUSIONS.values())
    assert set(choices["family"]) == {"fusion"} and len(choices) == 6
    # median of y2 = 8 and y2 = 2 is 5
    assert choices.set_index(["query_id", "method"]).loc[("a", "coordinate median"), "iou"] == pytest.approx(0.5)
    assert (choices.loc[choices["query_id"] == "b", "iou"] == 0).all()


# bootstrap


def test_accuracy_table_has_control_first():
    choices = pd.concat([make_fusions(WORLD, TRUTH, FUSIONS.values()), make_choices(WORLD, TRUTH, [LAST])])
    greedy = make_choices(WORLD, TRUTH, [SELECTORS["greedy"]])
    choices = pd.concat([choices, greedy[greedy["method"] == "greedy"]])
    result = accuracy_table(choices, QUERIES, draws=50)
    assert list(result.columns) == (
        "method,family,n_queries,acc50,acc50_lo,acc50_hi,acc75,acc75_lo,acc75_hi,miou,miou_lo,miou_hi,"
        "delta_vs_greedy,p_value"
    ).split(",")
    assert list(result["family"]) == ["control"] * 3 + ["attention"] + ["fusion"] * 3
    assert (result["n_queries"] == 2).all()


def test_identical_methods_differ_by_exactly_nothing():
    rng = np.random.default_rng(1)
    row = list(rng.integers(0, 2, 60))
    choices, queries = frame({"greedy": row, "twin": row}, list(range(20)) * 3)
    result = table(choices, queries)
    assert result.loc["twin", "delta_vs_greedy"] == 0 and result.loc["twin", "p_value"] == 1
    assert np.isnan(result.loc["greedy", "p_value"])
    assert paired_difference(choices, queries, "twin", "greedy", draws=300) == (0, 0, 0, 1)


def test_a_difference_of_nothing_but_rounding_is_none():
    """Means over a pool leave 1e-17 instead of 0, on one processor above it and on another below."""
    for tiny in (-1e-17, 1e-17):
        drawn = bootstrap_means(np.full((6, 1), tiny), np.arange(6), 99, 0)
        assert (drawn == 0).all() and bootstrap_p(drawn).tolist() == [1]


def test_a_method_better_on_every_image():
    # on each image of two queries greedy hits neither or one, the other method one more
    choices, queries = frame({"greedy": [0, 0] * 10 + [1, 0] * 10, "better": [1, 0] * 10 + [1, 1] * 10},
                             [image for image in range(20) for _ in range(2)])  # fmt: skip
    difference = paired_difference(choices, queries, "better", "greedy", draws=999)
    assert difference.delta == difference.lo == difference.hi == 0.5  # paired: no draw can differ
    assert difference.p == pytest.approx(2 / 1000)
    row = table(choices, queries, draws=999).loc["better"]
    assert row["delta_vs_greedy"] == 0.5 and row["p_value"] == pytest.approx(2 / 1000)
    assert row["acc50_lo"] < row["acc50"] == 0.75 < row["acc50_hi"]
    assert row["miou"] == pytest.approx(0.6)


def test_images_are_drawn_not_queries():
    row = [1] * 50 + [0] * 50
    queries_apart = frame({"greedy": row}, list(range(100)))
    two_images = frame({"greedy": row}, [0] * 50 + [1] * 50)
    apart, clustered = (table(*world, draws=2000).loc["greedy"] for world in (queries_apart, two_images))
    assert (clustered["acc50_lo"], clustered["acc50_hi"]) == (0, 1)  # both draws from one image: a quarter each
    # 100 independent queries: 0.5 +- 1.96 * 0.05
    assert apart["acc50_lo"] == pytest.approx(0.402, abs=0.021) and apart["acc50_hi"] == pytest.approx(0.598, abs=0.021)


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch):
    values, images = np.random.default_rng(3).random((30, 2)), np.arange(30) % 7
    whole = bootstrap_means(values, images, 100, seed=5)
    monkeypatch.setattr("acs_lib.evaluation.bootstrap.CELLS", 7 * 8)  # eight draws at a time
    np.testing.assert_allclose(bootstrap_means(values, images, 100, seed=5), whole)
    assert not np.allclose(bootstrap_means(values, images, 100, seed=6), whole)


def test_incomplete_frames_are_refused():
    choices, queries = frame({"greedy": [1, 0], "other": [1, 0]}, [0, 1])
    with pytest.raises(ValueError, match="other"):
        table(choices.iloc[:-1], queries)
    with pytest.raises(ValueError, match="image_id"):
        table(choices, queries.iloc[:1])
    with pytest.raises(ValueError, match="reference"):
        table(choices[choices["method"] == "other"], queries)


def test_accuracy_by_size():
    choices = make_choices(WORLD, TRUTH, [SELECTORS["greedy"]])
    result = accuracy_by_size(choices, QUERIES, draws=20)
    assert list(result.columns) == ["method", "size", "n_queries", *RATES]
    assert list(dict.fromkeys(result["size"])) == ["small", "large"]
    greedy = result[result["method"] == "greedy"].set_index("size")
    assert greedy["acc50"].to_dict() == {"small": 1, "large": 0} and (greedy["n_queries"] == 1).all()


# tests, ranks, helpers


def test_mcnemar_by_hand():
    # six discordant pairs, 5 against 1: 2 * (C(6,0) + C(6,1)) / 2^6 = 14/64
    assert mcnemar(5, 1)[0] == pytest.approx(5) and mcnemar(1, 5)[0] == pytest.approx(1 / 5)
    assert mcnemar(5, 1)[3] == mcnemar(1, 5)[3] == pytest.approx(14 / 64)
    assert np.isnan(mcnemar(0, 0)[:3]).all() and mcnemar(0, 0)[3] == 1
    assert mcnemar(1, 1)[3] == 1


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.4 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.4
    np.testing.assert_allclose(holm([0.03, 0.01, np.nan, 0.4, 0.02]), [0.06, 0.04, np.nan, 0.4, 0.06])
    np.testing.assert_allclose(holm([0.7, 0.6]), [1, 1])
    assert holm([]).shape == (0,)


def test_mean_ranks_by_hand():
    rows = [
        ("tiny", "scenes", "greedy", "control", 0.5),
        ("tiny", "scenes", "oracle best of N", "control", 0.9),
        ("tiny", "scenes", "medoid", "consensus", 0.6),
        ("tiny", "scenes", "ACS-Free", "acs-free", 0.6),
        ("tiny", "scenes", "ACS-Learned", "acs-learned", 0.8),
        ("tiny", "shift", "greedy", "control", 0.2),
        ("tiny", "shift", "oracle best of N", "control", 0.9),
        ("tiny", "shift", "medoid", "consensus", 0.1),
        ("tiny", "shift", "ACS-Free", "acs-free", 0.3),
        ("tiny", "shift", "ACS-Learned", "acs-learned", 0.8),
    ]
    main = pd.DataFrame(rows, columns=["lvlm", "dataset", "method", "family", "acc50"])
    ranks = mean_ranks(main)
    assert list(ranks.columns) == ["method", "family", "mean_rank", "n_columns", "tiny, scenes", "tiny, shift"]
    assert list(ranks["method"]) == ["ACS-Free", "medoid", "greedy"]
    assert list(ranks["mean_rank"]) == [1.25, 2.25, 2.5] and list(ranks["tiny, scenes"]) == [1.5, 1.5, 3]
    with pytest.raises(ValueError, match="medoid"):
        mean_ranks(main.drop(index=7))


def test_rank_intervals_by_hand():
    """Two methods on two images: medoid hits one more on image 0 and one less on image 1. Of the draws of two images
    (0, 0) ranks it first, (1, 1) last, and the mixed ones tie."""
    choices, queries = frame({"greedy": [0, 1, 1, 1], "medoid": [1, 1, 0, 1]}, [0, 0, 1, 1])
    choices["family"] = choices["family"].replace("attention", "consensus")
    main = measured(choices, queries)
    ranks = mean_ranks(main)
    one = rank_intervals(ranks, [("a", choices, queries)], draws=4000).set_index("method")
    assert list(one.columns)[1:4] == ["mean_rank", "mean_rank_lo", "mean_rank_hi"]
    assert one["mean_rank"].to_dict() == {"greedy": 1.5, "medoid": 1.5}
    assert (one["mean_rank_lo"] == 1).all() and (one["mean_rank_hi"] == 2).all()

    both = pd.concat([main, main.assign(dataset="shift")])
    ranks, drawn = mean_ranks(both), [(name, choices, queries) for name in "ab"]
    two = rank_intervals(ranks, drawn, draws=4000).set_index("method")
    # P(mean rank 1) = 1/16 > 2.5 % with independent columns; three columns: 1/64 < 2.5 %, so 7/6 is the bound
    assert (two["mean_rank_lo"] == 1).all()
    ranks = mean_ranks(pd.concat([both, main.assign(dataset="third")]))
    three = rank_intervals(ranks, [(name, choices, queries) for name in "abc"], draws=4000)
    assert three["mean_rank_lo"].tolist() == pytest.approx([7 / 6] * 2)
    assert three["mean_rank_hi"].tolist() == pytest.approx([11 / 6] * 2)
    with pytest.raises(ValueError, match="2 columns of choices for ranks over 3"):
        rank_intervals(ranks, drawn)
    # three columns of one dataset meet the same draws, of which one in four puts a method first in all of them
    same = rank_intervals(ranks, [("a", choices, queries)] * 3, draws=4000)
    assert same["mean_rank_lo"].tolist() == [1, 1] and same["mean_rank_hi"].tolist() == [2, 2]


def test_methods_with_the_same_hits_are_one():
    one, _ = frame({"greedy": [0, 1], "sum": [1, 1], "mean": [1, 1], "last": [1, 1]}, [0, 1])
    two, _ = frame({"greedy": [0, 1], "sum": [0, 1], "mean": [0, 1], "last": [1, 1]}, [0, 1])
    assert same_hits([one, two]) == {"greedy": "greedy", "sum": "sum", "mean": "sum", "last": "last"}
    assert same_hits([one])["last"] == "sum"


def test_the_interval_of_r_draws_images():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    r = np.corrcoef(x, y)[0, 1]
    lo, hi = correlation_interval(x, y, np.arange(200), draws=2000)
    half = 1.96 * (1 - r**2) / np.sqrt(200)  # the normal approximation
    assert lo < r < hi and (hi - lo) / 2 == pytest.approx(half, rel=0.2)
    repeated = correlation_interval(np.tile(x, 9), np.tile(y, 9), np.tile(np.arange(200), 9), draws=2000)
    assert repeated == pytest.approx((lo, hi)), "nine equal answers an image tell no more than one"
    assert np.isnan(correlation_interval(x * 0, y, np.arange(200), draws=10)).all()


def test_a_method_better_on_every_image_has_a_rank_without_doubt():
    choices, queries = frame({"greedy": [0] * 20, "better": [1] * 20}, list(range(20)))
    ranks = mean_ranks(measured(choices, queries))
    found = rank_intervals(ranks, [("a", choices, queries)], draws=200)
    assert found[["mean_rank", "mean_rank_lo", "mean_rank_hi"]].to_numpy().tolist() == [[1] * 3, [2] * 3]


def test_significance_by_hand():
    """Eight images of one query: `up` gains 5 and loses 1, `same` is greedy, `sure` gains all four that greedy lacks.
    The exact interval of 5/6 is (0.3588, 0.9958) (Clopper-Pearson)."""
    methods = {
        "greedy": [0, 0, 0, 0, 0, 1, 1, 1],
        "up": [1, 1, 1, 1, 1, 0, 1, 1],
        "same": [0, 0, 0, 0, 0, 1, 1, 1],
        "sure": [1, 1, 1, 1, 0, 1, 1, 1],
        RANDOM: [0.5] * 8,
        ORACLE: [1] * 8,
    }
    choices, queries = frame(methods, list(range(8)))
    found = significance(choices, queries, draws=400)
    assert list(found.columns) == (
        "method,family,n_queries,delta_vs_greedy,delta_lo,delta_hi,p_bootstrap,p_bootstrap_holm,gained,lost,odds_ratio,"
        "odds_ratio_lo,odds_ratio_hi,p_mcnemar,p_mcnemar_holm"
    ).split(",")
    found = found.set_index("method")
    assert list(found.index) == ["up", "same", "sure"] and (found["n_queries"] == 8).all()
    assert found["delta_vs_greedy"].tolist() == [0.5, 0, 0.5]
    assert found[["gained", "lost"]].to_numpy().tolist() == [[5, 1], [0, 0], [4, 0]]
    odds = found[["odds_ratio", "odds_ratio_lo", "odds_ratio_hi"]]
    assert odds.loc["up"].tolist() == pytest.approx([5, 0.3588 / 0.6412, 0.9958 / 0.0042], rel=0.01)
    assert odds.loc["same"].isna().all()
    # 4 of 4: the lower bound p solves p^4 = 0.025
    assert odds.loc["sure"].tolist() == pytest.approx([np.inf, 0.025**0.25 / (1 - 0.025**0.25), np.inf])
    assert found["p_mcnemar"].tolist() == pytest.approx([14 / 64, 1, 2 / 16])
    assert found["p_mcnemar_holm"].tolist() == pytest.approx([28 / 64, 1, 6 / 16])
    paired = paired_difference(choices, queries, "up", "greedy", draws=400)
    assert found.loc["up", ["delta_vs_greedy", "delta_lo", "delta_hi", "p_bootstrap"]].tolist() == pytest.approx(paired)
    np.testing.assert_allclose(found["p_bootstrap_holm"], holm(found["p_bootstrap"]))
    with pytest.raises(ValueError, match="reference"):
        significance(choices[choices["method"] != "greedy"], queries)
    with pytest.raises(ValueError, match="0 or 1"):
        significance(choices.replace({"method": {RANDOM: "other"}}), queries)


def test_auroc_by_hand():
    # positives 3, 1 against negatives 2, 1: pairs won 1 + 1 + 0 + a tie
    assert heads.auroc(np.array([3, 1, 2, 1]), np.array([True, True, False, False])) == pytest.approx(2.5 / 4)
    assert heads.auroc(np.array([1, 2]), np.array([False, True])) == 1
    assert np.isnan(heads.auroc(np.array([1, 2]), np.array([True, True])))


def test_a_hit_begins_at_the_threshold():
    assert list(hits([0.499, 0.5, 1])) == [0, 1, 1] and list(hits([0.74, 0.75, 1], 0.75)) == [0, 1, 1]


# published numbers


def test_published_numbers():
    paper = published.main_results()
    assert list(paper.columns) == ["lvlm", "dataset", "method", "acc50", "source"] and len(paper) == 16
    known = paper.set_index(["lvlm", "dataset", "method"])["acc50"]
    assert known[("InternVL-3.5-8B", "COCO", "ACS-Learned")] == 0.586
    assert known[("InternVL-3.5-8B", "COCO", "ACS-Learned")] / known[("InternVL-3.5-8B", "COCO", "greedy")] - 1 == (
        pytest.approx(0.194, abs=1e-3)  # the paper's "+19.4%" is relative, and from unrounded rates
    )
    sizes = published.by_size().set_index(["lvlm", "method", "size"])
    assert sizes.loc[("Qwen2.5-VL-7B", "greedy", "small"), "acc50"] == pytest.approx(0.614, abs=1e-3)


def test_published_numbers_meet_only_their_own_lvlm_dataset_and_method():
    choices, queries = frame({"greedy": [1, 0], "medoid": [1, 1]}, [0, 1])
    assert measured(choices, queries)["published_acc50"].isna().all()
    real = measured(choices, queries, "Qwen2.5-VL-7B", "COCO").set_index("method")
    assert real.loc["greedy", "published_acc50"] == 0.614 and np.isnan(real.loc["medoid", "published_acc50"])


# tables


def test_side_by_side_keeps_measured_and_published_apart():
    choices, queries = frame({"greedy": [1, 0], "medoid": [1, 1]}, [0, 1])
    main = measured(choices, queries)
    display = side_by_side(main, published.main_results()).set_index("method")
    assert list(display.columns)[:2] == ["measured, tiny, scenes", "published, Qwen2.5-VL-7B, COCO"]
    assert display.loc["medoid", "measured, tiny, scenes"] == "100.0 [100.0, 100.0], n = 2"
    assert display.loc["greedy", "published, Qwen2.5-VL-7B, COCO"] == "61.4"
    assert display.loc["medoid", "published, Qwen2.5-VL-7B, COCO"] == ""
    assert display.loc["best sampling baseline", "measured, tiny, scenes"] == ""


def test_an_lvlm_that_is_not_asked_has_the_reason_in_place_of_a_number():
    choices, queries = frame({"greedy": [1, 0], "P(True)": [1, 1]}, [0, 1])
    asked = measured(choices, queries, "large")
    greedy = choices[choices["method"] == "greedy"]
    tiny = measured(greedy, queries)
    reasons = {"tiny": "its vocabulary has no Yes and No"}
    display = side_by_side(pd.concat([tiny, asked]), published.main_results(), reasons).set_index("method")
    assert display.loc["P(True)", "measured, tiny, scenes"] == "not asked: its vocabulary has no Yes and No"
    assert display.loc["P(True)", "measured, large, scenes"] == "100.0 [100.0, 100.0], n = 2"
    alone = side_by_side(tiny, published.main_results(), reasons)
    assert list(alone["method"])[:3] == ["greedy", "P(True)", "best sampling baseline"]
    assert "P(True)" not in set(side_by_side(tiny, published.main_results())["method"])


def test_write_table(tmp_path):
    rows = pd.DataFrame({"method": ["a|b_1", "50 %"], "acc50": [0.123456789, np.nan], "n_queries": [3, 12345678]})
    write_table(rows, tmp_path, "demo", caption="Acc & IoU")
    paths = {path.suffix[1:]: path for path in (tmp_path / "tables").iterdir()}
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["demo.csv", "demo.md", "demo.tex"]
    pd.testing.assert_frame_equal(pd.read_csv(paths["csv"]), rows)
    assert paths["md"].read_text().splitlines() == [
        "Acc & IoU",
        "",
        "| method | acc50 | n_queries |",
        "| :--- | ---: | ---: |",
        "| a\\|b_1 | 0.1235 | 3 |",
        "| 50 % |  | 12345678 |",
    ]
    tex = paths["tex"].read_text()
    lines = [
        r"\caption{Acc \& IoU}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"method & acc50 & n\_queries \\",
        r"\midrule",
    ]
    lines += [r"a|b\_1 & 0.1235 & 3 \\", r"50 \% &  & 12345678 \\", r"\bottomrule", r"\end{tabular}"]
    assert "\n".join(lines) in tex
    write_table(rows.iloc[:1], tmp_path, "demo")
    assert len(pd.read_csv(paths["csv"])) == 1
