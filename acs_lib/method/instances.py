"""All objects of a category: the boxes that several answers list, and which of them are one object.

An answer to `Detect all ...` lists boxes. Each box has attention maps, statistics and log-probabilities of its own, so
that a selector scores it as it scores the only box of an answer. Boxes of different answers that overlap are one
instance; how many answers name it is a score, too. MTLA (arXiv 2607.05978) scores each box of several answers by the
attention mass inside it.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import COORDINATES, PER_TOKEN, Candidates
from acs_lib.lvlms.adapter import LVLM, Prompt
from acs_lib.method.sampling import described_candidates, read_box

QUESTION = "Detect all {object} in the image."
LIST_TOKENS = 512  # of an answer, at most
SAME = 0.5  # IoU of two boxes of one instance, at least


def listed(
    lvlm: LVLM, prompt: Prompt, query_id: str, category: str, answers: Sequence[dict], row: str,
    map_side: int | None = None,
) -> tuple[Candidates, np.ndarray]:  # fmt: skip
    """Every box that the answers (as `sampling.generate` gives them) list, as rows of `Candidates`, and the answer [m]
    that each is from; in the order of the answers, and within one in the order in which it writes them.

    The tokens of a row are those that write it: from behind the box before it to its own last number. Its coordinate
    tokens are places among these. A box whose maps cannot be read is left out.
    """
    shape = prompt.grid.shape
    boxes, maps, told, numbers, origin = [], [], [], [], []
    for index, answer in enumerate(answers):
        begin = 0
        for parsed in lvlm.parse_all(lvlm.decode(answer["token_ids"]), prompt):
            _, tokens, found = read_box(lvlm, answer, parsed, shape, row)
            if found is None:
                continue
            own = slice(begin, max(tokens) + 1)
            boxes.append(parsed.box)
            maps.append(found)
            told.append({name: answer[name][own] for name in PER_TOKEN})
            numbers.append(np.array(tokens, int) - begin)
            origin.append(index)
            begin = own.stop
    stacked = torch.stack(maps) if maps else torch.zeros(0, 4, lvlm.layers, lvlm.heads, *shape)
    candidates = described_candidates(
        prompt, query_id, category, np.array(boxes, float).reshape(-1, 4), stacked, told, numbers, map_side
    )
    return candidates, np.array(origin, int)


def clusters(boxes: np.ndarray, scores: np.ndarray, same: float = SAME) -> np.ndarray:
    """The instance [n] that each box [n, 4] belongs to, numbered from the one with the highest score.

    From the box with the highest score to the one with the lowest (NaN last), each joins the instance whose first box
    it overlaps best, where their IoU is at least `same`, or opens its own.
    """
    instance = np.full(len(boxes), -1)
    firsts: list[int] = []
    for index in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable"):
        overlaps = bx.iou(boxes[firsts], boxes[index]) if firsts else np.zeros(0)
        if len(overlaps) and overlaps.max() >= same:
            instance[index] = overlaps.argmax()
        else:
            instance[index] = len(firsts)
            firsts.append(index)
    return instance


def instances(
    boxes: np.ndarray, scores: np.ndarray, origin: np.ndarray, answers: int, same: float = SAME
) -> pd.DataFrame:
    """The instances among boxes [n, 4] with scores [n] (higher is better) of `answers` answers, origin [n] the one that
    each is from; the best first.

    x1, y1, x2, y2 of the instance's best box, row (its place among the boxes), score (its own), votes (0-1: the share
    of the answers that name the instance), boxes (how many belong to it).
    """
    instance = clusters(boxes, scores, same)
    frame = pd.DataFrame(boxes, columns=list(COORDINATES)).assign(
        row=np.arange(len(boxes)), score=scores, origin=origin, instance=instance
    )
    ordered = frame.sort_values(["instance", "score"], ascending=[True, False], kind="stable", na_position="last")
    found = ordered.drop_duplicates("instance").set_index("instance")[[*COORDINATES, "row", "score"]]
    groups = ordered.groupby("instance")
    found["votes"], found["boxes"] = groups["origin"].nunique() / answers, groups.size()
    return found.reset_index(drop=True)
