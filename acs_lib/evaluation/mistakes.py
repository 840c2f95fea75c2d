"""What kind of mistake a candidate is, and which kinds a score can tell from a good box of the same query."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import Candidates
from acs_lib.evaluation.accuracy import hits
from acs_lib.evaluation.bootstrap import INTERVAL, image_counts
from acs_lib.method.selection import Selector, above

KINDS = ("good", "near miss", "another object", "nothing")
MISTAKES = KINDS[1:]


def mistake_kinds(boxes: np.ndarray, truth: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Kind [n] of every box [n, 4]: 'good' (IoU with `truth` [4] at least 0.5), 'another object' (IoU of at least 0.3
    with one of the image's other objects `others` [m, 4], and more than with the truth), 'near miss' (IoU with the
    truth at least 0.1) or 'nothing'; a box of NaN is 'nothing'."""
    boxes = np.asarray(boxes, float)
    own = np.nan_to_num(bx.iou(boxes, truth))
    other = np.nan_to_num(bx.iou(boxes[:, None], others)).max(1, initial=0)
    conditions = [hits(own) > 0, (other >= 0.3) & (other > own), own >= 0.1]
    return np.select(conditions, [KINDS[0], KINDS[2], KINDS[1]], KINDS[3])


def makeup(
    candidates: Iterable[Candidates], truth: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """query_id, candidate, kind of every sampled answer; `truth` [4] and `others` [m, 4] by query id."""
    rows = []
    for c in candidates:
        found = mistake_kinds(c.boxes, truth[c.query_id], others[c.query_id])
        rows += [(c.query_id, index, found[index]) for index in range(1, len(c))]
    return pd.DataFrame(rows, columns=["query_id", "candidate", "kind"])


def ranked_right(
    candidates: Iterable[Candidates], kind_table: pd.DataFrame, selectors: Iterable[Selector],
    image_of: Mapping[str, int], draws: int = 10_000,
) -> pd.DataFrame:  # fmt: skip
    """How often a score puts a good box above a mistake of the same query, by the kind of mistake.

    image_of: query id -> image
    Returns method, kind, pair_auroc (share of pairs, 0-1, ties half; 0.5 is chance) with its interval _lo, _hi (95 %,
    bootstrap over images), pairs, n_mixed (queries that have both).
    """
    selectors = list(selectors)
    by_query = {query_id: part.set_index("candidate")["kind"] for query_id, part in kind_table.groupby("query_id")}
    rows = []
    for c in candidates:
        kind = by_query[c.query_id].reindex(range(len(c))).to_numpy()
        good = np.flatnonzero(kind == "good")
        for selector in selectors if len(good) else ():
            score = selector.score(c)
            for mistake in MISTAKES:
                bad = np.flatnonzero((kind == mistake) & ~np.isnan(score))
                if len(bad):
                    won = above(score[good][:, None], score[bad][None])
                    rows.append((selector.name, mistake, image_of[c.query_id], won.sum(), won.size))
    found, table = pd.DataFrame(rows, columns=["method", "kind", "image", "right", "pairs"]), []
    for (method, mistake), part in found.groupby(["method", "kind"], sort=False):
        sums = part.groupby("image")[["right", "pairs"]].sum().to_numpy(float)
        right, pairs = sums.sum(0)
        drawn = image_counts(len(sums), draws) @ sums
        lo, hi = np.quantile(drawn[:, 0] / drawn[:, 1], INTERVAL)
        table.append((method, mistake, right / pairs, lo, hi, int(pairs), len(part)))
    names = ["method", "kind", "pair_auroc", "pair_auroc_lo", "pair_auroc_hi", "pairs", "n_mixed"]
    return pd.DataFrame(table, columns=names)


def mixed_only(kinds: pd.DataFrame) -> pd.DataFrame:
    """The rows of queries that have a good sampled box and a mistake: those in which a selector matters."""
    good = kinds.assign(good=kinds["kind"] == "good").groupby("query_id")["good"].transform("mean")
    return kinds[(good > 0) & (good < 1)]
