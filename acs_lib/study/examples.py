"""Single queries to look at, picked by stated rules from the ground truth, for illustration alone."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from PIL import Image

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.core.images import read_annotated_image
from acs_lib.evaluation.accuracy import hits
from acs_lib.method.maps import mean_share
from acs_lib.method.selection import Selector
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


def pair_of(case: Mapping, e: Experiment, method: str) -> list[dict]:
    """The greedy answer of a case of `outcome_cases` and the one that the method chose, as report.pictures takes them:
    name, score (R in nats for ACS-Free, or the predicted IoU), box [4], iou (0-1), and map [h, w], the mean share of
    its attention in D_c at D_c's coordinates."""
    c, d_c = candidates_of(e.run, case["query_id"]), e.head_set
    scores, pair = e.selectors[method].score(c), []
    for name, row in (("greedy", 0), (method, case["candidate"])):
        told = f"R = {-scores[row]:.2f} nats" if method == "ACS-Free" else f"predicted IoU {scores[row]:.2f}"
        which = "greedy" if name == "greedy" else "chosen"
        found = {"name": name, "score": told, "box": case[which], "iou": case[f"{which}_iou"]}
        pair.append(found | {"map": mean_share(c.maps[[row]], d_c.heads, d_c.coordinates)})
    return pair


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
    change of IoU: query_id, image, category, truth, candidate (the chosen one), greedy and chosen (boxes [4]),
    greedy_iou, chosen_iou, and `of`, the number of objects with that outcome."""
    change = _changes(e, method)[outcome]
    return [case | {"of": len(change)} for case in _cases(e, middle(change, count), method)]


def large_and_small(e: Experiment, method: str = "ACS-Learned") -> list[dict]:
    """The paper's teaser: of the small test objects that a method gained, and in whose image a large object is asked
    for and found, the `middle` one by change of IoU, as `outcome_cases` has it, with `large`: the case of the first
    such object. Nothing where there is none."""
    found, large = _changes(e, method)["gained"], e.queries("large")
    hit = e.choices_on("large").query("method == 'greedy' and hit == 1")["query_id"]
    large = large[large["query_id"].isin(hit)].drop_duplicates("image_id").set_index("image_id")["query_id"]
    beside = pd.Series(found.index, found.index).map(e.small.set_index("query_id")["image_id"]).map(large).dropna()
    chosen = middle(found[beside.index], 1)
    pairs = zip(_cases(e, chosen, method), _cases(e, beside[chosen], "greedy"))
    return [case | {"of": len(beside), "large": other} for case, other in pairs]


def _changes(e: Experiment, method: str) -> dict[str, pd.Series]:
    """Change of IoU against greedy by query for a small test object, by outcome."""
    iou = e.choices_on("small").pivot(index="query_id", columns="method", values="iou")
    hit, change = hits(iou[method]) - hits(iou["greedy"]), iou[method] - iou["greedy"]
    return {"gained": change[hit > 0], "lost": change[hit < 0], "unchanged": change[hit == 0]}


def _cases(e: Experiment, query_ids: Iterable[str], method: str) -> list[dict]:
    query_ids, cases = list(query_ids), []
    records, choices = e.run.records(), e.choices[e.choices["query_id"].isin(query_ids)]
    boxes = records[records["query_id"].isin(query_ids)].set_index(["query_id", "candidate"])[BOX]
    choices, category = choices.set_index(["query_id", "method"]), e.run.queries.set_index("query_id")["category"]
    for query_id in query_ids:
        (image, truth), pick = image_of(e.run, query_id), int(choices.loc[(query_id, method), "candidate"])
        cases.append({
            "query_id": query_id, "image": image, "category": category[query_id], "truth": truth, "candidate": pick,
            "greedy": boxes.loc[(query_id, 0)].to_numpy(float), "greedy_iou": choices.loc[(query_id, "greedy"), "iou"],
            "chosen": boxes.loc[(query_id, pick)].to_numpy(float), "chosen_iou": choices.loc[(query_id, method), "iou"],
        })  # fmt: skip
    return cases
