"""The attention-IoU regressor f_theta: A_i -> IoU (paper, step 3). Its only input are the attention maps.

The LVLM is frozen; MSE loss. Maps stream from a run's shards, so memory does not grow with the number of candidates.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from acs_lib.core.candidates import Candidates
from acs_lib.core.files import replacing
from acs_lib.core.progress import tracked
from acs_lib.core.stored import StoredAnswers
from acs_lib.lvlms.devices import small_device
from acs_lib.method.maps import pool_maps
from acs_lib.method.origin import Origin, is_of

MAP_SIDE = 16  # cells: the regressor's grid has no longer side
DROPOUT = 0.1  # share of the pooled features that a training step goes without
SHARPNESS = 10.0  # of the smooth maximum: it is at most ln(cells) / SHARPNESS above the true one
FORMAT = 3  # of a saved regressor


class AttentionIoURegressor(nn.Module):
    """Maps [n, 4, layers, heads, h, w], on any device -> predicted IoU [n] in 0-1 (higher is better), on the weights'.

    Maps of another shape than `grid` are averaged onto it first, so that images of any shape fit one regressor. Every
    (coordinate, layer, head) is a channel of log attention; two convolutions see where the heads agree, and the mean
    and the smooth maximum over the image go through a small MLP.

    Trained on another processor it comes out the same up to rounding. A true maximum would jump from cell to cell where
    two are nearly equal, and rounding would grow to 0.004 of predicted IoU while it trains; and torch's own dropout has
    other random numbers on ARM than on x86-64.
    """

    def __init__(self, layers: int, heads: int, width: int = 48, grid: tuple[int, int] = (MAP_SIDE, MAP_SIDE)):
        super().__init__()
        self.settings = {"layers": layers, "heads": heads, "width": width, "grid": grid}
        self.grid = (grid[0], grid[1])  # a saved one is a list
        self.origin: Origin | None = None  # of one that was saved with it
        self.mix = nn.Conv2d(4 * layers * heads, width, 1)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.score = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Predicted IoU [n] in 0-1 of maps [n, 4, layers, heads, h, w], averaged onto the regressor's grid."""
        maps = pool_maps(maps.to(self.mix.weight.device), self.grid).float().flatten(1, 3)
        features = F.gelu(self.mix(torch.log(maps + 1e-4).div_(3).add_(2)))
        features = F.gelu(self.near(features)) + features
        peak = torch.logsumexp(SHARPNESS * features, (2, 3)) / SHARPNESS
        pooled = torch.cat([features.mean((2, 3)), peak], 1)
        if self.training:
            pooled = pooled * (torch.rand(pooled.shape) >= DROPOUT).to(pooled) / (1 - DROPOUT)
        return torch.sigmoid(self.score(pooled))[:, 0]


def maps_with_iou(
    run: StoredAnswers, shard: int, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, pd.DataFrame]:
    """Maps on `grid`, IoUs and records of the answers of one shard that hold a box."""
    frame = run.records(shard)
    kept = (frame["failure"] == "").to_numpy()
    parts, start = [], 0
    for maps in run.maps(shard):
        parts.append(pool_maps(torch.from_numpy(maps[kept[start : start + len(maps)]]), grid))
        start += len(maps)
    return torch.cat(parts), torch.tensor(frame["iou"].to_numpy()[kept], dtype=torch.float32), frame[kept]


def shape_of_maps(run: StoredAnswers, split: str) -> tuple[int, int, int, int]:
    """Layers, heads and the most rows and columns of maps, over the first shard that holds a box; ValueError, which
    names the split, where no shard does."""
    failures: Counter[str] = Counter()
    queries = 0
    for shard in run.shards:
        frame = run.records(shard)
        boxes = (frame["failure"] == "").groupby(frame["query_id"], sort=False).any()
        if boxes.any():
            return tuple(np.max([maps.shape[2:] for maps, box in zip(run.maps(shard), boxes) if box], 0).tolist())
        failures.update(frame["failure"])
        queries += len(boxes)
    reason = failures.most_common(1)[0][0] if failures else "no answer"
    raise ValueError(
        f"there is no box among the answers to the {queries} {split} queries (most often: {reason}), so no regressor "
        "can be trained; mend that first"
    )


def batches(
    run: StoredAnswers, grid: tuple[int, int], batch: int, rng: np.random.Generator, labels: torch.Tensor | None = None
) -> Iterator[tuple]:
    """One pass over the run: shards in random order, two at a time, their rows shuffled together. With `labels` each
    row gets one of these at random instead of its own IoU."""
    order = rng.permutation(run.shards)
    for start in range(0, len(order), 2):
        parts = [maps_with_iou(run, int(shard), grid)[:2] for shard in order[start : start + 2]]
        maps, iou = (torch.cat(values) for values in zip(*parts))
        del parts
        mixed = rng.permutation(len(iou))
        targets = iou if labels is None else labels[rng.integers(len(labels), size=len(iou))]
        for first in range(0, len(mixed), batch):
            chosen = mixed[first : first + batch]
            yield maps[chosen], targets[chosen]


def train(
    run: StoredAnswers, validation: StoredAnswers, width: int, epochs: int, batch: int, lr: float, seed: int,
    shuffle_labels: bool = False,
) -> tuple[AttentionIoURegressor, pd.DataFrame]:  # fmt: skip
    """Fit on `run`, keep the epoch with the highest Pearson r on `validation`; returns it and the history by epoch.

    `shuffle_labels` breaks the link between maps and IoU: the control, whose r is that of an arbitrary function of the
    maps. Its labels are drawn from the whole run, since the mean IoU of a few shards would be a link, and it keeps its
    last epoch, since choosing one by true labels would be one, too. ValueError where a run holds no box.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    layers, heads, rows, columns = shape_of_maps(run, "training")
    shape_of_maps(validation, "validation")
    model = AttentionIoURegressor(layers, heads, width, (min(rows, MAP_SIDE), min(columns, MAP_SIDE)))
    model.to(small_device())
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    labels = None
    if shuffle_labels:
        frames = [run.records(shard) for shard in run.shards]
        labels = torch.cat([torch.tensor(f["iou"][f["failure"] == ""].to_numpy(np.float32)) for f in frames])
    history, best_r = [], -1.0
    best: dict[str, torch.Tensor] = {}
    label = f"regressor, seed {seed}{', shuffled labels' * shuffle_labels}"
    for epoch in tracked(range(epochs), label, unit="epochs"):
        model.train()
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - 0.95 * epoch / epochs)
        losses = []
        for maps, target in batches(run, model.grid, batch, rng, labels):
            loss = F.mse_loss(model(maps), target.to(small_device()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        scores = iou_correlation(predict(model, validation))
        history.append({"epoch": epoch + 1, "train_mse": np.mean(losses), **scores})
        if shuffle_labels or not best or scores["pearson"] > best_r:
            best_r = np.nan_to_num(scores["pearson"], nan=-1.0)
            best = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    return model.eval(), pd.DataFrame(history)


@torch.inference_mode()
def predict(model: AttentionIoURegressor, run: StoredAnswers) -> pd.DataFrame:
    """query_id, candidate, iou, predicted_iou (0-1) of every answer of a run that holds a box."""
    model.eval()
    frames = []
    for shard in run.shards:
        maps, _, frame = maps_with_iou(run, shard, model.grid)
        scores = torch.cat([model(part) for part in maps.split(512)]).cpu().numpy() if len(maps) else np.empty(0, "f4")
        frames.append(frame[["query_id", "candidate", "iou"]].assign(predicted_iou=scores))
    return pd.concat(frames, ignore_index=True)


@torch.inference_mode()
def predicted_iou(model: AttentionIoURegressor, candidates: Candidates) -> np.ndarray:
    """[n] IoU in 0-1 that a regressor predicts for each candidate; NaN without a box. The maps are rounded as a run's
    store rounds those that the regressor was trained on."""
    found = np.full(len(candidates), np.nan)
    if candidates.parsed.any():
        assert candidates.maps is not None, "a regressor reads maps"
        maps = torch.from_numpy(np.asarray(candidates.maps[candidates.parsed])).half()
        found[candidates.parsed] = model(maps).cpu().numpy()
    return found


def iou_correlation(predictions: pd.DataFrame) -> dict[str, float]:
    """Pearson and Spearman correlation (-1 to 1, higher is better; NaN as in `pearson`) and mean absolute
    error of predicted IoU."""
    predicted, iou = predictions["predicted_iou"], predictions["iou"]
    return {
        "pearson": pearson(predicted, iou),
        "spearman": pearson(predicted.rank(), iou.rank()),
        "mae": float((predicted - iou).abs().mean()),
        "n": len(predictions),
    }


def pearson(a: pd.Series, b: pd.Series) -> float:
    """Pearson correlation of two series [n] (-1 to 1); NaN where one holds no two different values."""
    return float(a.corr(b)) if min(a.nunique(), b.nunique()) > 1 else float("nan")


def save(model: AttentionIoURegressor, path: Path, lvlm: str, origin: Origin | None = None) -> None:
    """Write weights and settings to one safetensors file, with the name of the LVLM that it belongs to, and to what
    else."""
    with replacing(path) as aside:
        state = {name: value.cpu() for name, value in model.state_dict().items()}
        known = {"format": FORMAT, "lvlm": lvlm, **model.settings}
        if origin is not None:
            known["origin"] = origin.model_dump()
        save_file(
            state, aside, metadata={"regressor": json.dumps(known)}
        )  # one entry: several would lie in random order


def load(path: Path, lvlm: str) -> AttentionIoURegressor:
    """Read a regressor, onto a GPU if there is one; ValueError if it was trained for another LVLM or is of another
    format, whose weights would mean something else here."""
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["regressor"])
        state = {name: file.get_tensor(name) for name in file.keys()}
    if (made := settings.pop("format", 2)) != FORMAT:
        raise ValueError(
            f"{path} is a regressor of format {made}, and this version reads format {FORMAT}; acs calibrate trains one"
        )
    origin = Origin.model_validate(settings.pop("origin")) if "origin" in settings else None
    if not is_of(owner := settings.pop("lvlm"), lvlm, origin):
        raise ValueError(f"{path} belongs to the LVLM {owner!r}, not {lvlm!r}; train one for it")
    model = AttentionIoURegressor(**settings)
    model.load_state_dict(state)
    model.origin = origin
    return model.to(small_device()).eval()
