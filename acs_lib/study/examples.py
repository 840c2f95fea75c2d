"""Single queries to look at, picked by stated rules from the ground truth, for illustration alone."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import COORDINATES, Candidates
from acs_lib.core.images import read_annotated_image
from acs_lib.evaluation.accuracy import hits
from acs_lib.method.heads import HeadSet
from acs_lib.method.maps import mean_share
from acs_lib.method.selection import Selector, entropy_of_heads
from acs_lib.runs.store import BOX, Run
from acs_lib.study.experiment import Experiment


def most_varied_query(run: Run) -> str:
    """The query for a small object with the largest spread of IoU among its sampled answers; ValueError where none has
    two sampled answers with a box."""
    small = run.queries.loc[run.queries["size"] == "small", "query_id"]
    sampled = run.records().query("candidate > 0 and failure == ''")
    spread = sampled[sampled["query_id"].isin(small)].groupby("query_id")["iou"].std().dropna()
    if spread.empty:
        raise ValueError("no small object has two sampled answers with a box; ask for more queries (--limit)")
    return spread.idxmax()


def answers_of(run: Run, query_id: str) -> pd.DataFrame:
    """The answers to one query: candidate (0 is greedy), text, IoU and the log-probability of the numbers."""
    records = run.records()
    records = records[records["query_id"] == query_id].copy()
    records["logprob"] = [
        logprobs[tokens].sum() if len(tokens) else np.nan
        for logprobs, tokens in zip(records["logprobs"], records["coordinate_tokens"])
    ]
    return records[["candidate", "text", "iou", "logprob", "failure"]].reset_index(drop=True)


def image_of(run: Run, query_id: str) -> tuple[Image.Image, np.ndarray]:
    """The image of a query and its ground truth box [4]."""
    query = run.queries.set_index("query_id").loc[query_id]
    return read_annotated_image(query["image"], query["width"], query["height"]), run.truth[query_id]


def candidates_of(run: Run, query_id: str) -> Candidates:
    """The candidates of one query, with their maps."""
    return next(found for found in run.candidates(maps=True) if found.query_id == query_id)


def good_and_bad(candidates: Candidates, truth: np.ndarray) -> tuple[int, int]:
    """Rows of the sampled candidates with the highest and the lowest IoU."""
    iou = np.where(candidates.parsed, bx.iou(candidates.boxes, truth), np.nan)
    iou[0] = np.nan
    return int(np.nanargmax(iou)), int(np.nanargmin(iou))


def read_by_d_c(c: Candidates, rows: Sequence[int], head_set: HeadSet) -> tuple[np.ndarray, list[str], np.ndarray]:
    """What ACS-Free reads of some candidates, row 0 the greedy one: a map a candidate and coordinate of D_c [k, h, w],
    the mean share over D_c's heads; its title with the mean entropy of these heads in nats (the mean over a
    candidate's titles is its R); the candidate's box [k, 4]. As report.pictures.attention_overlay takes them."""
    read = [(row, coordinate) for row in rows for coordinate in head_set.coordinates]
    maps = [mean_share(c.maps[[row]], head_set.heads, (coordinate,)) for row, coordinate in read]
    nats = [-entropy_of_heads(c, head_set.heads, (coordinate,))[row] for row, coordinate in read]
    names = [f"{'chosen' if row else 'greedy'}, {COORDINATES[coordinate]}" for row, coordinate in read]
    titles = [f"{name}: {value:.2f} nats" for name, value in zip(names, nats)]
    return np.stack(maps), titles, c.boxes[[row for row, _ in read]]


def rank_candidates(candidates: Candidates, selector: Selector, truth: np.ndarray) -> pd.DataFrame:
    """The sampled candidates of one query, best score first: candidate, score, IoU."""
    scores, iou = selector.score(candidates), bx.iou(candidates.boxes, truth)
    table = pd.DataFrame({"candidate": range(len(candidates)), "score": scores, "iou": iou})
    return table[1:].sort_values("score", ascending=False, kind="stable", key=lambda s: s.round(5), ignore_index=True)


def middle(change: pd.Series, count: int) -> list:
    """Labels of `count` of the values, by rank alone: in order, ties as they come, the values are cut into `count`
    equal parts, and of each the middle one is taken. One is the median (the lower of two); all where there are no more.
    """
    order = change.sort_values(kind="stable").index
    n, count = len(order), min(count, len(order))
    return [order[((2 * part + 1) * n - 1) // (2 * count)] for part in range(count)]


def outcome_cases(e: Experiment, outcome: str, count: int, method: str = "ACS-Learned") -> list[dict]:
    """Of the small test objects that a method 'gained', 'lost' or left 'unchanged' against greedy, the `middle` ones by
    change of IoU; keys as report.pictures.qualitative takes them, and `of`, the number of objects with that outcome."""
    wide = e.choices_on("small").pivot(index="query_id", columns="method", values=["iou", "candidate"])
    iou, candidate = wide["iou"], wide["candidate"][method]
    hit = hits(iou[method]) - hits(iou["greedy"])
    change = (iou[method] - iou["greedy"])[{"gained": hit > 0, "lost": hit < 0, "unchanged": hit == 0}[outcome]]
    records = e.run.records().set_index(["query_id", "candidate"])
    category = e.run.queries.set_index("query_id")["category"]
    cases = []
    for query_id in middle(change, count):
        image, truth = image_of(e.run, query_id)
        pick = int(candidate[query_id])
        cases.append({
            "query_id": query_id, "image": image, "category": category[query_id], "truth": truth, "candidate": pick,
            "greedy": records.loc[(query_id, 0), BOX].to_numpy(float), "greedy_iou": iou["greedy"][query_id],
            "chosen": records.loc[(query_id, pick), BOX].to_numpy(float), "chosen_iou": iou[method][query_id],
            "of": len(change),
        })  # fmt: skip
    return cases
