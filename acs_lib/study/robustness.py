"""Whether what D_c was found by can be trusted: other attributions, other images, other data.

Nothing here chooses anything. `transfer` and `overlap` look at test images of the dataset that no training may touch,
for analysis alone. Intervals are 95 %, from drawing images with replacement.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from acs_lib.core import boxes as bx
from acs_lib.core.candidates import ENTROPY, Candidates, Heads
from acs_lib.evaluation.accuracy import accuracy_table, make_choices
from acs_lib.evaluation.bootstrap import INTERVAL, image_counts, share_interval
from acs_lib.evaluation.confidence import drawn_auroc
from acs_lib.method import heads
from acs_lib.method.heads import ATTRIBUTIONS, in_group
from acs_lib.method.regressor import AttentionIoURegressor
from acs_lib.method.selection import Selector, acs_free
from acs_lib.profiles import LVLMSpec
from acs_lib.runs.store import BOX, Run
from acs_lib.study.experiment import Experiment
from acs_lib.study.stages import Study

Model = Callable[[torch.Tensor], torch.Tensor]  # maps [n, 4, layers, heads, h, w] -> [n]


def integrated_gradients(model: Model, maps: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """Integrated gradients (arXiv 1703.01365), of the shape of maps: (maps - baseline) times the mean gradient along
    the straight line from `baseline` (broadcast) to the maps, at the midpoints of 16 equal parts. They sum to
    model(maps) - model(baseline), up to the error of the sum."""
    from captum.attr import IntegratedGradients  # late: it takes seconds

    captum = IntegratedGradients(model)
    return captum.attribute(maps, baseline, n_steps=16, method="riemann_middle", internal_batch_size=len(maps)).detach()


def occlusion(model: Model, maps: torch.Tensor, baseline: torch.Tensor) -> torch.Tensor:
    """[n, layers] absolute change of the prediction when all maps of one layer are replaced by the baseline's."""
    from captum.attr import FeatureAblation  # late: it takes seconds

    layer_of = torch.arange(maps.shape[2]).view(1, 1, -1, 1, 1, 1)
    return FeatureAblation(model).attribute(maps, baseline, feature_mask=layer_of)[:, 0, :, 0, 0, 0].abs()


def attributions(model: AttentionIoURegressor, run: Run, draws: int) -> pd.DataFrame:
    """One row a layer: the three ATTRIBUTIONS as shares that sum to 1, the interval of each (name_lo, name_hi), and of
    how many answers and images (n, n_images; see heads.drawn_answers). The baseline is the mean map of the answers, so
    that what counts is how a map differs from an ordinary one; gradient x input has none."""
    maps = torch.cat([maps for maps, _ in heads.drawn_answers(run, model.grid)])
    baseline = maps.mean(0, keepdim=True)
    parts = maps.split(128)
    integrated = torch.cat([integrated_gradients(model, part, baseline).abs().sum((1, 3, 4, 5)) for part in parts])
    hidden = torch.cat([occlusion(model, part, baseline) for part in parts])
    _, gradient, images = heads.attribution(model, run)
    columns = {}
    for name, values in zip(ATTRIBUTIONS, (gradient, integrated.numpy(), hidden.numpy())):
        columns[name] = values.sum(0) / values.sum()
        columns[f"{name}_lo"], columns[f"{name}_hi"] = share_interval(values, images, draws)
    columns |= {"n": len(images), "n_images": len(np.unique(images))}
    return pd.DataFrame(columns).rename_axis("layer").reset_index()


def attribution_agreement(table: pd.DataFrame, head_scores: np.ndarray, layers: int, count: int) -> pd.DataFrame:
    """Every pair of ATTRIBUTIONS: a, b, spearman (-1 to 1) over the layers of `attributions`, and jaccard (0-1) of the
    `count` heads of the highest separation, head_scores [layers, heads], inside the `layers` layers that each ranks
    first."""
    found = {name: heads.select_heads(table[name].to_numpy(), head_scores, layers, count) for name in ATTRIBUTIONS}
    pairs = itertools.combinations(ATTRIBUTIONS, 2)
    rows = [(a, b, float(spearmanr(table[a], table[b])[0]), jaccard(found[a], found[b])) for a, b in pairs]
    return pd.DataFrame(rows, columns=["a", "b", "spearman", "jaccard"])


def sampled_answers(run: Run) -> tuple[pd.DataFrame, np.ndarray]:
    """Records of the sampled answers about small objects that hold a box, with `image` codes 0..m-1, category, and the
    areas of object and box as shares of the image; and their entropies [n, 4, layers, heads] in nats."""
    records = run.records()
    queries = run.queries.set_index("query_id")
    known = queries.loc[records["query_id"]]
    kept = ((records["failure"] == "") & (records["candidate"] > 0)).to_numpy() & (known["size"] == "small").to_numpy()
    records = records[kept].assign(
        image=pd.factorize(known["image_id"].to_numpy()[kept])[0],
        category=known["category"].to_numpy()[kept],
        object_area=known["area_fraction"].to_numpy()[kept],
        box_area=(bx.area(records[BOX].to_numpy()) / (known["width"] * known["height"]).to_numpy())[kept],
    )
    return records.reset_index(drop=True), run.statistics()[kept][..., ENTROPY].astype(float)


def drawn_aurocs(entropy: np.ndarray, iou: np.ndarray, images: np.ndarray, draws: int) -> np.ndarray:
    """AUROC [draws, ...] of low entropy for IoU > 0.6 against IoU 0 (see heads.entropy_auroc) when the images are drawn
    with replacement; entropy [n, ...], iou [n], images [n] codes 0..m-1. NaN in a draw without one of the kinds."""
    high = in_group(iou, "high")
    kept = high | in_group(iou, "zero")
    counts = image_counts(int(images.max()) + 1, draws)
    columns = -entropy[kept].reshape(kept.sum(), np.prod(entropy.shape[1:], dtype=int)).T
    found = [drawn_auroc(column, high[kept], images[kept], counts) for column in columns]
    return np.stack(found, 1).reshape(draws, *entropy.shape[1:])


def stability(
    entropy: np.ndarray, records: pd.DataFrame, layer_scores: np.ndarray, layers: int, count: int, draws: int
) -> tuple[pd.DataFrame, dict[str, float]]:
    """How D_c fares when the images are drawn anew: one row a head (layer, head, auroc, lo, hi, selected on all
    images, share of draws in which it is selected), and {'kept': mean share of D_c that a draw selects again, 'lo',
    'hi'}.

    entropy [n, layers, heads] of the train split, averaged over coordinates; D_c here is always the `count` heads of
    the highest pooled AUROC inside the `layers` layers of the highest attribution.
    """
    iou = records["iou"].to_numpy()
    known = heads.entropy_auroc(entropy, iou)
    drawn = drawn_aurocs(entropy, iou, records["image"].to_numpy(), draws)
    chosen = heads.select_heads(layer_scores, known, layers, count)
    times, kept = np.zeros(known.shape), []
    for scores in drawn:
        again = heads.select_heads(layer_scores, scores, layers, count)
        times[tuple(np.array(again).T)] += 1
        kept.append(len(set(again) & set(chosen)) / len(chosen))
    lo, hi = np.nanquantile(drawn, INTERVAL, axis=0)
    rows = [
        (*pair, known[pair], lo[pair], hi[pair], pair in chosen, times[pair] / draws)
        for pair in np.ndindex(known.shape)
    ]
    names = ["layer", "head", "auroc", "auroc_lo", "auroc_hi", "selected", "share_of_draws"]
    ends = np.quantile(kept, INTERVAL)
    return pd.DataFrame(rows, columns=names), {"kept": float(np.mean(kept)), "lo": float(ends[0]), "hi": float(ends[1])}


def jaccard(a: Heads, b: Heads) -> float:
    """Overlap of two sets of heads: shared ones by those in either, 0-1."""
    return len(set(a) & set(b)) / len(set(a) | set(b))


def halves(images: np.ndarray) -> np.ndarray:
    """[n] 0 or 1: which half of the images each row belongs to, the same for all rows of an image."""
    return np.random.default_rng(0).permutation(int(images.max()) + 1)[images] % 2


def found_on(run: Run, layer_scores: np.ndarray, layers: int, count: int, coordinates: tuple[int, ...]) -> dict:
    """Heads found on a run's small objects as `stability` finds them: 'all' (its heads), 'auroc' [layers, heads], and
    'crossed' {query_id: heads found on the half of the images that does not hold the query}."""
    records, entropy = sampled_answers(run)
    entropy, iou = entropy[:, list(coordinates)].mean(1), records["iou"].to_numpy()
    half = halves(records["image"].to_numpy())

    def found(kept):
        return heads.select_heads(layer_scores, heads.entropy_auroc(entropy[kept], iou[kept]), layers, count)

    by_half = {side: found(half != side) for side in (0, 1)}
    return {
        "all": found(np.ones(len(iou), bool)),
        "auroc": heads.entropy_auroc(entropy, iou),
        "crossed": {query: by_half[side] for query, side in zip(records["query_id"], half)},
    }


def _on_own_heads(name: str, given: dict[str, Heads] | Heads, coordinates: tuple[int, ...]) -> Selector:
    """ACS-Free, called `name`, with the query's own heads or, where it has none, the first ones."""
    first = next(iter(given.values())) if isinstance(given, dict) else given

    def score(c: Candidates) -> np.ndarray:
        own = given.get(c.query_id, first) if isinstance(given, dict) else first
        return acs_free(own, coordinates).score(c)

    return replace(acs_free(first, coordinates), name=name, score=score)


def transfer_rows(
    e: Experiment, sets: dict[str, dict[str, Heads] | Heads], coordinates: tuple[int, ...], draws: int
) -> pd.DataFrame:
    """found_on, acc50, lo, hi, n_queries of ACS-Free on small test objects with each named set of heads: one for all
    queries, or one a query (a query without one takes the first)."""
    selectors = [_on_own_heads(name, given, coordinates) for name, given in sets.items()]
    choices = make_choices(e.candidates(), e.run.truth, selectors, e.profile.pool)
    choices = choices[choices["method"].isin(sets)]
    table = accuracy_table(choices, e.small, next(iter(sets)), draws)
    return table.rename(columns={"method": "found_on"})[["found_on", "acc50", "acc50_lo", "acc50_hi", "n_queries"]]


def attribution_tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """attributions.csv (with `selected`: the layer has heads in D_c) and attribution_agreement.csv: the regressor of
    every LVLM, answers of the train split, intervals over its images. Heads are compared inside as few layers as D_c
    may be taken from."""
    tables, agreements = [], []
    for lvlm in study.profile.lvlms:
        finding, train = study.find_heads(lvlm), study.run(lvlm, study.train_set, "train")
        table = attributions(study.fit(lvlm), train, study.profile.costly_draws)
        table["selected"] = finding.layers["selected"]
        layers, count = min(study.profile.heads.layers), len(finding.head_set.heads)
        agreement = attribution_agreement(table, finding.auroc, layers, count)
        agreements.append(_of(lvlm, agreement.assign(layers=layers)))
        tables.append(_of(lvlm, table))
    return pd.concat(tables, ignore_index=True), pd.concat(agreements, ignore_index=True)


def stability_tables(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """head_stability.csv and head_set_stability.csv (lvlm, n_heads, kept, lo, hi): train split, images drawn anew."""
    tables, sets = [], []
    for lvlm in study.profile.lvlms:
        finding = study.find_heads(lvlm)
        records, entropy = sampled_answers(study.run(lvlm, study.train_set, "train"))
        entropy, count = entropy[:, list(finding.head_set.coordinates)].mean(1), len(finding.head_set.heads)
        layers = max(study.profile.heads.layers)
        table, kept = stability(entropy, records, finding.layer_scores, layers, count, study.profile.costly_draws)
        tables.append(_of(lvlm, table))
        sets.append({"lvlm": lvlm.name, "n_heads": count, **kept})
    return pd.concat(tables, ignore_index=True), pd.DataFrame(sets)


def transfer_tables(study: Study, experiments: list[Experiment]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """head_overlap.csv and head_transfer.csv: D_c's counterpart found on the test images of each dataset.

    overlap: lvlm, a, b, jaccard (0-1), spearman of the heads' AUROCs. transfer: lvlm, found_on, applied_to, acc50,
    acc50_lo, acc50_hi, n_queries. Where a dataset's own images found the heads, each half of the images is served by
    those found on the other half. This reads test images for analysis alone; nothing is chosen by it.
    """
    overlaps, transfers = [], []
    for lvlm in study.profile.lvlms:
        finding, own = study.find_heads(lvlm), [e for e in experiments if e.lvlm == lvlm]
        head_set, layers = finding.head_set, max(study.profile.heads.layers)
        runs = {"train split": study.run(lvlm, study.train_set, "train")}
        runs |= {f"{e.dataset.name}, test": e.run for e in own}
        found = {
            name: found_on(run, finding.layer_scores, layers, len(head_set.heads), head_set.coordinates)
            for name, run in runs.items()
        }
        for a, b in itertools.combinations(found, 2):
            both = pd.Series(found[a]["auroc"].ravel()).corr(pd.Series(found[b]["auroc"].ravel()), "spearman")
            overlaps.append((lvlm.name, a, b, jaccard(found[a]["all"], found[b]["all"]), both))
        for e in own:
            crossed = f"{e.dataset.name}, test"
            sets = {"D_c": head_set.heads}
            sets |= {name: part["crossed" if name == crossed else "all"] for name, part in found.items()}
            table = transfer_rows(e, sets, head_set.coordinates, study.profile.costly_draws)
            table.insert(1, "applied_to", e.dataset.name)
            transfers.append(_of(lvlm, table))
    overlap = pd.DataFrame(overlaps, columns=["lvlm", "a", "b", "jaccard", "spearman"])
    return overlap, pd.concat(transfers, ignore_index=True)


def _of(lvlm: LVLMSpec, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a leading column lvlm."""
    return frame.assign(lvlm=lvlm.name)[["lvlm", *frame]]
