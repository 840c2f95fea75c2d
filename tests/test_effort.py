"""Samples only where they are needed: the rule by hand, and answers that are those of always drawing all."""

import numpy as np
import pandas as pd
import pytest
from test_accuracy import candidates

from acs_lib.core.files import query_key
from acs_lib.method import effort, sampling
from acs_lib.method.baselines.likelihood import sequence_logprob
from acs_lib.profiles import Sampling
from acs_lib.study import effort as study

NAN = np.nan


def test_rounds():
    assert effort.rounds(10) == [0, 3, 10] and effort.rounds(3) == [0, 3] and effort.rounds(2) == [0, 2]


def test_the_best_of_every_round_by_hand():
    scores = np.array([0.5, 0.9, NAN, 0.2, 0.7, 0.95])
    parsed = np.array([True, False, True, True, True, True])
    assert list(effort.best_by_round(scores, parsed)) == [(1, 0, 0.5), (4, 0, 0.5), (6, 5, 0.95)]
    assert effort.best(scores[1:3], parsed[1:3]) == (0, -np.inf), "one has no box, the other no score"


@pytest.fixture
def drawn(both):
    """Two questions to an untrained LVLM, and how they are drawn."""
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8))
    names = ["dog", "cup"]
    return both, both.prompts(image, names), names, [query_key(n) for n in names], names


HOW = Sampling(samples=5, temperature=1.0, max_new_tokens=9, seed=1)


def texts(found):
    return [[record["text"] for record in records] for _, records in found]


def test_more_rounds_give_the_answers_of_one(drawn):
    whole = sampling.sample_candidates(*drawn, HOW)
    rounds = effort.sample_until(*drawn, HOW, enough=lambda candidates: False)
    assert texts(rounds) == texts(whole)
    for (a, _), (b, _) in zip(rounds, whole):
        assert np.array_equal(a.boxes, b.boxes, equal_nan=True)
        assert np.allclose(a.maps, b.maps, atol=1e-6, equal_nan=True) and a.statistics.shape == b.statistics.shape
        assert np.allclose(sequence_logprob(a), sequence_logprob(b), atol=1e-5)


def test_a_question_that_has_enough_is_asked_no_more(drawn):
    whole, asked = texts(sampling.sample_candidates(*drawn, HOW)), []

    def enough(candidates):
        asked.append((candidates.query_id, len(candidates)))
        return candidates.query_id == "cup" or len(candidates) == 4

    found = effort.sample_until(*drawn, HOW, enough=enough)
    assert texts(found) == [whole[0][:4], whole[1][:1]]
    assert asked == [("dog", 1), ("cup", 1), ("dog", 4)]


ROUNDS = pd.DataFrame(
    [("a", 1, 0.9, 1.0, 1), ("a", 4, 0.9, 1.0, 1), ("a", 6, 0.9, 1.0, 1),  # right at once
     ("b", 1, 0.2, 0.0, 3), ("b", 4, 0.8, 1.0, 3), ("b", 6, 0.8, 1.0, 3),  # three more answers help
     ("c", 1, 0.1, 0.0, NAN), ("c", 4, 0.3, 0.0, NAN), ("c", 6, 0.5, 0.0, NAN),  # nothing helps
     ("d", 1, 0.7, 1.0, 1), ("d", 4, 0.7, 1.0, 1), ("d", 6, 0.95, 0.0, 1)],  # the last answer misleads
    columns=["query_id", "answers", "score", "hit", "first_hit"],
).assign(method="x", iou=0.0)  # fmt: skip


def test_where_questions_stop_by_hand():
    found = study.spent(ROUNDS, 0.7)
    assert found["answers"].to_dict() == {"a": 1, "d": 1, "b": 4, "c": 6} and found["hit"].sum() == 3
    assert study.spent(ROUNDS, np.inf)["hit"].to_dict() == {"a": 1, "b": 1, "c": 0, "d": 0}
    assert (study.spent(ROUNDS, -np.inf)["answers"] == 1).all()


def test_the_oracle_stops_at_the_first_hit_and_never_draws_in_vain():
    found = study.oracle(ROUNDS)
    assert found["answers"].to_dict() == {"a": 1, "b": 4, "c": 1, "d": 1}
    assert found["hit"].to_dict() == {"a": 1, "b": 1, "c": 0, "d": 1}


def test_enough_is_the_cheapest_threshold_that_is_no_worse_than_all():
    threshold = study.enough(ROUNDS)
    found = study.spent(ROUNDS, threshold)
    assert found["hit"].mean() >= 0.5 and found["answers"].sum() == 4, "a and d are right at once, which is as good"
    harder = ROUNDS[ROUNDS["query_id"].isin(["b", "c"])]
    assert study.spent(harder, study.enough(harder))["answers"].to_dict() == {"b": 4, "c": 4}
    never = ROUNDS.assign(score=-np.inf)
    assert study.enough(never) == np.inf


def test_the_table_by_hand():
    image_of = pd.Series({"a": 1, "b": 1, "c": 2, "d": 3})
    seconds = {(0, 0): 1.0, (0, 3): 2.0, (3, 5): 4.0, (0, 5): 5.0}
    table = study.effort_rows(ROUNDS, ROUNDS, image_of, seconds, 200).set_index("rule")
    assert table.loc["always", ["answers", "acc50", "delta_vs_always"]].tolist() == [6, 0.5, 0]
    assert table.loc["greedy", ["answers", "acc50"]].tolist() == [1, 0.5]
    assert table.loc["oracle", ["answers", "acc50", "delta_vs_greedy"]].tolist() == [1.75, 0.75, 0.25]
    assert table.loc["always", ["looks", "seconds"]].tolist() == [1, 5], "all at once, not in three rounds"
    assert table.loc["oracle", ["looks", "seconds"]].tolist() == [1.25, (3 * 1 + 1 + 2) / 4]
    everyone = study.effort_rows(ROUNDS, ROUNDS.assign(score=-np.inf), image_of, seconds, 20).set_index("rule")
    assert everyone.loc["auto", ["answers", "seconds"]].tolist() == [6, 7], "who never stops early pays all rounds"
    assert table.loc["auto", "answers"] == 1 and (table["n"] == 4).all()
    for name in study.COLUMNS:
        assert (table[f"{name}_lo"] <= table[name]).all() and (table[name] <= table[f"{name}_hi"]).all()
    assert table.loc["greedy", "answers_lo"] == 1 and table.loc["always", "delta_vs_always_hi"] == 0


def test_rounds_of_a_run_by_hand():
    class Run:
        truth = {"a": np.array([0, 0, 10, 10])}

    class E:
        run, selectors = Run, {"size": type("S", (), {"score": staticmethod(lambda c: c.boxes[:, 2])})}

        def candidates(self):
            return [candidates("a", [[0, 0, 4, 10], [NAN] * 4, [0, 0, 9, 10], [0, 0, 1, 1], [0, 0, 30, 10]])]

    found = study.by_round(E(), ["size"])
    assert found[["answers", "score"]].to_numpy().tolist() == [[1, 4], [4, 9], [5, 30]]
    assert found["hit"].tolist() == [0, 1, 0] and (found["first_hit"] == 3).all()
