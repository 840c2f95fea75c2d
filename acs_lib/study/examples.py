"""Single queries to look at, picked by their ground truth for illustration alone."""

import numpy as np
import pandas as pd
from PIL import Image

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.core.images import read_annotated_image
from acs_lib.evaluation.accuracy import hits
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


def rank_candidates(candidates: Candidates, selector: Selector, truth: np.ndarray) -> pd.DataFrame:
    """The sampled candidates of one query, best score first: candidate, score, IoU."""
    scores, iou = selector.score(candidates), bx.iou(candidates.boxes, truth)
    table = pd.DataFrame({"candidate": range(len(candidates)), "score": scores, "iou": iou})
    return table[1:].sort_values("score", ascending=False, kind="stable", key=lambda s: s.round(5), ignore_index=True)


def outcome_cases(e: Experiment, outcome: str, count: int) -> list[dict]:
    """Small test objects that ACS-Learned 'gained', 'lost' or left 'unchanged' against greedy, the largest change of
    IoU first; keys as report.pictures.qualitative takes them."""
    wide = e.choices_on("small").pivot(index="query_id", columns="method", values=["iou", "candidate"])
    iou, candidate = wide["iou"], wide["candidate"]["ACS-Learned"]
    change = iou["ACS-Learned"] - iou["greedy"]
    hit = hits(iou["ACS-Learned"]) - hits(iou["greedy"])
    chosen = {"gained": hit > 0, "lost": hit < 0, "unchanged": hit == 0}[outcome]
    order = change[chosen].abs().sort_values(ascending=False, kind="stable").index[:count]
    records = e.run.records().set_index(["query_id", "candidate"])
    category = e.run.queries.set_index("query_id")["category"]
    cases = []
    for query_id in order:
        image, truth = image_of(e.run, query_id)
        pick = int(candidate[query_id])
        cases.append({
            "query_id": query_id, "image": image, "category": category[query_id], "truth": truth, "candidate": pick,
            "greedy": records.loc[(query_id, 0), BOX].to_numpy(float), "greedy_iou": iou["greedy"][query_id],
            "chosen": records.loc[(query_id, pick), BOX].to_numpy(float), "chosen_iou": iou["ACS-Learned"][query_id],
        })  # fmt: skip
    return cases
