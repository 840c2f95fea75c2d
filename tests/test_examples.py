"""Examples are chosen by rank alone, and say what is true of them."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import ENTROPY, STATISTICS, Candidates
from acs_lib.method.heads import HeadSet
from acs_lib.profiles import load_profile
from acs_lib.report import sentences
from acs_lib.runs.store import BOX
from acs_lib.study import examples
from acs_lib.study.experiment import Experiment

TRUTH = np.array([0.0, 0.0, 10.0, 10.0])
D_C = HeadSet("tiny", "scenes", ((1, 0), (0, 1)), (0, 2))


def part(iou: float) -> list[float]:
    """A box of that IoU with TRUTH, or one beside it."""
    return [0.0, 0.0, 10.0, 10 * iou] if iou else [20.0, 20.0, 30.0, 30.0]


class Answered:
    """A run of queries with a greedy answer, one that both ACS methods choose, and one that nobody chooses; each is
    given as its IoU with TRUTH. Every map has its weight in column 0 at x1, in 1 at y1, in 2 at x2 and in 3 at y2."""

    def __init__(self, folder, answers: list[tuple[float, float]]):
        Image.new("RGB", (40, 40), "grey").save(folder / "image.png")
        names = [f"q{number:02}" for number in range(len(answers))]
        self.queries = pd.DataFrame({"query_id": names, "image_id": range(len(answers))})
        self.queries = self.queries.assign(
            width=40, height=40, size="small", image=str(folder / "image.png"), category="kite"
        )
        self.truth = dict.fromkeys(names, TRUTH)
        self.boxes = {name: np.array([part(a), part(b), part(0)]) for name, (a, b) in zip(names, answers)}

    def unanswered(self):
        return set()

    def records(self):
        rows = [
            (name, index, *box, float(bx.iou(box, TRUTH)), "")
            for name, boxes in self.boxes.items()
            for index, box in enumerate(boxes)
        ]
        return pd.DataFrame(rows, columns=["query_id", "candidate", *BOX, "iou", "failure"])

    def candidates(self, maps=False):
        for name, boxes in self.boxes.items():
            statistics = np.zeros((3, 4, 2, 2, len(STATISTICS)))
            statistics[..., ENTROPY] = np.array([2.0, 1.0, 3.0])[:, None, None, None] + np.arange(4)[:, None, None] / 10
            columns = np.broadcast_to(np.eye(4)[:, None, None, None], (4, 2, 2, 4, 4))
            tokens = [np.zeros(4)] * 3
            yield Candidates(
                name, "kite", 40, 40, boxes, tokens, tokens, tokens, tokens, [np.arange(4)] * 3, statistics,
                np.stack([columns] * 3) + 0.01 if maps else None,
            )  # fmt: skip


def an_experiment(folder, answers) -> Experiment:
    profile, run = load_profile("smoke"), Answered(folder, answers)
    predictions = run.records().assign(predicted_iou=lambda found: (found["candidate"] == 1) / 2)
    return Experiment(profile, profile.lvlms[0], profile.datasets[0], run, predictions, D_C)


def names(cases):
    return [case["query_id"] for case in cases]


@pytest.mark.parametrize(
    ("values", "count", "places"),
    [
        ([5, 1, 3], 1, [2]),
        ([4, 1, 3, 2], 1, [3]),  # the lower of two
        ([7, 7, 7, 7, 7], 1, [2]),  # ties stay in order
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], 3, [7, 4, 1]),  # the middle of every third
        ([2, 1], 5, [1, 0]),
        ([], 1, []),
    ],
)
def test_the_middle_of_equal_parts(values, count, places):
    assert examples.middle(pd.Series(values, dtype=float), count) == places


@pytest.mark.parametrize("method", ["ACS-Learned", "ACS-Free"])
def test_an_example_is_the_query_of_median_change_whatever_its_picture(tmp_path, method):
    gains, losses, none = [(0, 1), (0, 0.6), (0.3, 0.7), (0.1, 0.9)], [(0.9, 0), (0.6, 0.4), (1, 0.3)], [(0.6, 0.7)]
    e = an_experiment(tmp_path, gains + losses + none)
    (success,), (failure,), (same,) = (
        examples.outcome_cases(e, outcome, 1, method) for outcome in ("gained", "lost", "unchanged")
    )
    assert names([success, failure, same]) == ["q01", "q06", "q07"], "changes .4 .6 .8 1; -.9 -.7 -.2; .1"
    assert (success["greedy_iou"], success["chosen_iou"]) == pytest.approx((0, 0.6))
    assert (success["candidate"], success["of"], failure["of"], same["of"]) == (1, 4, 3, 1)
    assert names(examples.outcome_cases(e, "gained", 9, method)) == ["q02", "q01", "q03", "q00"]


def test_what_is_told_of_an_example_is_its_rule_and_its_numbers(tmp_path):
    e = an_experiment(tmp_path, [(0, 0.6), (0.9, 0.25), (0, 1)])
    success, failure = (
        sentences.example(examples.outcome_cases(e, outcome, 1, "ACS-Free"), e, "ACS-Free", outcome)
        for outcome in ("gained", "lost")
    )
    assert success == (
        "A success: for 'kite' ACS-Free's box has IoU 0.60 with the true one, the greedy box 0.00. It gained 2 of "
        f"the small objects against greedy decoding; this is the one of median change; {e}."
    )
    assert failure.startswith(
        "A failure: for 'kite' ACS-Free's box has IoU 0.25 with the true one, the greedy box 0.90."
    )
    nothing = an_experiment(tmp_path, [(0.9, 0.25)])
    assert (
        sentences.example([], nothing, "ACS-Free", "gained")
        == f"No success to show: ACS-Free gained no small object; {nothing}."
    )


def test_the_answers_of_an_example_are_shown_as_they_are_read(tmp_path):
    e = an_experiment(tmp_path, [(0, 0.6)])
    (case,) = examples.outcome_cases(e, "gained", 1, "ACS-Free")
    greedy, chosen = examples.pair_of(case, e, "ACS-Free")
    assert (greedy["name"], greedy["score"]) == ("greedy", "R = 2.10 nats"), "at x1 2.0, at x2 2.2"
    assert (chosen["name"], chosen["score"]) == ("ACS-Free", "R = 1.10 nats")
    assert greedy["box"].tolist() == part(0) and chosen["box"].tolist() == pytest.approx(part(0.6))
    assert (greedy["iou"], chosen["iou"]) == pytest.approx((0, 0.6))
    weight = chosen["map"].sum(0)
    assert weight[0] == weight[2] > 10 * weight[1], "no map of y1, which R does not read"
    assert [answer["score"] for answer in examples.pair_of(case, e, "ACS-Learned")] == [
        "predicted IoU 0.00", "predicted IoU 0.50",
    ]  # fmt: skip


def test_a_large_object_and_a_small_one_are_of_one_image(tmp_path):
    e = an_experiment(tmp_path, [(0, 0.6), (0, 1), (0.9, 0.9), (0.2, 0.9)])
    e.run.queries["image_id"] = [0, 1, 1, 0]
    e.run.queries["size"] = ["small", "small", "large", "large"]
    (case,) = examples.large_and_small(e)
    assert (case["query_id"], case["of"]) == ("q01", 1), "the large object beside q00 is missed"
    assert case["large"]["query_id"] == "q02" and case["large"]["greedy_iou"] == pytest.approx(0.9)
    e = an_experiment(tmp_path, [(0, 0.6)])
    assert examples.large_and_small(e) == []
