"""Localization-critical patterns (paper, step 5): layers by gradient attribution, heads by entropy separation."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from acs_lib.core.candidates import Heads
from acs_lib.core.files import read_text, write_text
from acs_lib.core.stored import StoredAnswers
from acs_lib.method.origin import Origin, is_of
from acs_lib.method.regressor import AttentionIoURegressor, maps_with_iou
from acs_lib.method.selection import above

ATTRIBUTED = 1000  # answers that an attribution is the mean of
ATTRIBUTIONS = ("gradient x input", "integrated gradients", "occlusion")  # D_c's layers are ranked by the first
IOU_GROUPS = {"high": (0.6, 1.01), "low": (1e-9, 0.3), "zero": (-1.0, 1e-9)}  # IoU above, up to


def in_group(iou: np.ndarray, group: str) -> np.ndarray:
    """[n] bool: which IoUs [n] are of one of IOU_GROUPS. A good box is 'high', a miss is 'zero'."""
    low, high = IOU_GROUPS[group]
    return (iou > low) & (iou <= high)


@dataclass(frozen=True)
class HeadSet:
    """D_c = {(layer, head)}, counted from 0, the coordinates (indices 0-3 of x1, y1, x2, y2) whose tokens' entropy is
    averaged, the LVLM and data that both were found on, and what else they belong to (None: made by hand, or by an
    earlier version)."""

    lvlm: str
    found_on: str
    heads: Heads
    coordinates: tuple[int, ...] = (0, 1, 2, 3)
    origin: Origin | None = None

    def save(self, path: Path) -> None:
        """Write the set as JSON."""
        content = asdict(replace(self, origin=None)) | {"origin": self.origin and self.origin.model_dump()}
        if self.origin is None:
            del content["origin"]
        write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, lvlm: str) -> "HeadSet":
        """Read a head set; ValueError if it was found for another LVLM."""
        content = json.loads(read_text(path))
        origin = Origin.model_validate(content["origin"]) if "origin" in content else None
        if not is_of(content["lvlm"], lvlm, origin):
            raise ValueError(f"{path} belongs to the LVLM {content['lvlm']!r}, not {lvlm!r}; acs calibrate finds one")
        pairs = tuple((layer, head) for layer, head in content["heads"])
        return cls(lvlm, content["found_on"], pairs, tuple(content["coordinates"]), origin)


def drawn_answers(
    run: StoredAnswers, grid: tuple[int, int], answers: int = ATTRIBUTED
) -> Iterator[tuple[torch.Tensor, pd.DataFrame]]:
    """Maps [n, 4, layers, heads, h, w] float32 on `grid` and records, shard by shard, of `answers` answers that hold a
    box (all, if there are fewer): as many of every image as of any other, as far as it has them. Which ones is drawn,
    the same ones every time."""
    image_of = run.queries.set_index("query_id")["image_id"]
    frames = {shard: run.records(shard) for shard in run.shards}
    held = [f.loc[f["failure"] == "", ["query_id"]].reset_index(drop=True).assign(shard=s) for s, f in frames.items()]
    held = pd.concat(held).rename_axis("place").reset_index()
    held = held.iloc[np.random.default_rng(0).permutation(len(held))]
    turn = held.groupby(image_of.loc[held["query_id"]].to_numpy()).cumcount()
    chosen = held.loc[turn.sort_values(kind="stable").index[:answers]]
    for shard, rows in chosen.sort_values(["shard", "place"]).groupby("shard"):
        places = rows["place"].tolist()
        maps, _, frame = maps_with_iou(run, shard, grid)
        yield maps[places].float(), frame.iloc[places]


def attribution(model: AttentionIoURegressor, run: StoredAnswers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient attribution [layers, heads] (higher: the regressor leans on it more): the mean over `drawn_answers` of
    sum |gradient x input|, over coordinates and places, of the predicted IoU (paper, step 5); and the same of each
    answer, summed over heads [n, layers], with its image id [n]."""
    total, each, names = torch.zeros(()), [], []
    for maps, frame in drawn_answers(run, model.grid):
        names.append(frame["query_id"])
        for part in maps.split(256):
            part.requires_grad_(True)
            (gradient,) = torch.autograd.grad(model(part).sum(), part)
            found = (gradient * part).abs().detach()
            total = total + found.sum((0, 1, 4, 5))
            each.append(found.sum((1, 3, 4, 5)))
    images = run.queries.set_index("query_id")["image_id"].loc[pd.concat(names)]
    return (total / len(images)).numpy(), torch.cat(each).numpy(), images.to_numpy()


def auroc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Probability [...] that a positive row's score is above a negative row's; scores [n, ...], positive [n] bool.
    Ties count half; NaN where all rows are of one kind or a score is NaN."""
    n = positive.sum()
    if n in (0, len(positive)):
        return np.full(scores.shape[1:], np.nan)
    ranks = pd.DataFrame(scores.reshape(len(scores), -1)).rank().to_numpy().reshape(scores.shape)
    above_negative = (ranks[positive].sum(0) - n * (n + 1) / 2) / (n * (len(positive) - n))
    return np.where(np.isnan(ranks).any(0), np.nan, above_negative)


def entropy_auroc(entropy: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """How well low entropy tells good boxes (IoU > 0.6) from misses (IoU 0): AUROC [...], 0.5 is chance, higher is
    better. entropy [n, ...], iou [n]."""
    high = in_group(iou, "high")
    kept = high | in_group(iou, "zero")
    return auroc(-entropy[kept], high[kept])


def within_query_auroc(entropy: np.ndarray, iou: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The same inside queries: the share [...] of pairs (good box, miss) of one query in which the good box has the
    lower entropy (ties, which answers that begin alike are, count half). entropy [n, ...], iou [n], query [n]."""
    high, zero = in_group(iou, "high"), in_group(iou, "zero")
    right, pairs = np.zeros(entropy.shape[1:]), 0
    for index in pd.Series(np.arange(len(iou))).groupby(query).indices.values():
        good, miss = index[high[index]], index[zero[index]]
        if len(good) and len(miss):
            lower = above(-entropy[good][:, None], -entropy[miss][None])
            right, pairs = right + lower.sum((0, 1)), pairs + len(good) * len(miss)
    return right / pairs if pairs else np.full(entropy.shape[1:], np.nan)


def select_heads(layer_scores: np.ndarray, head_scores: np.ndarray, layers: int, count: int) -> Heads:
    """The `count` heads with the highest separation inside the `layers` layers with the highest attribution.

    layer_scores [layers], head_scores [layers, heads]; returns (layer, head) pairs, best first.
    """
    critical = np.argsort(-layer_scores, kind="stable")[:layers]
    allowed = np.full(head_scores.shape, -np.inf)
    allowed[critical] = np.nan_to_num(head_scores[critical])
    order = np.unravel_index(np.argsort(-allowed, axis=None, kind="stable")[:count], head_scores.shape)
    return tuple(zip(*(places.tolist() for places in order)))


def separating_heads(
    entropy: np.ndarray, iou: np.ndarray, query: np.ndarray, coordinates: Sequence[tuple[int, ...]], count: int
) -> tuple[Heads, tuple[int, ...]]:
    """The `count` heads, of all layers, whose low entropy separates good boxes from misses best inside queries, best
    first, and the coordinates (one of some sets of indices 0-3) at which the best head does so best. ValueError where
    no query has both a good box and a miss.

    entropy [n, 4, layers, heads] in nats, iou [n] in 0-1, query [n] ids. A part of D_c's search that asks for no
    regressor and no choice on other images, so that `iou` may be the overlap with anything.
    """
    found = {tuple(c): within_query_auroc(entropy[:, list(c)].mean(1), iou, query) for c in coordinates}
    if np.isnan(next(iter(found.values()))).all():
        raise ValueError("no question has both a good box (IoU over 0.6) and a miss (IoU 0) to tell heads apart by")
    best = max(found, key=lambda c: found[c].max())
    layers = entropy.shape[2]
    return select_heads(np.zeros(layers), found[best], layers, count), best
