"""What reproduced and what did not: each claim of the paper, the published evidence, the measured one, and a verdict.

The verdicts follow from the tables by the rules below, so they stay true when the numbers change.
"""

import numpy as np
import pandas as pd

from acs_lib.evaluation import published
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.method.heads import ATTRIBUTIONS, IOU_GROUPS
from acs_lib.method.selection import ALL_HEADS

LEVEL = 0.05  # of significance, after Holm's correction
SEEDED = ("greedy", "small")  # the comparison of which the spread over seeds is known


def lower_for_good(table: pd.DataFrame) -> pd.Series:
    """By (lvlm, dataset): the share (0-1) of layer and coordinate pairs in which good boxes have a lower mean entropy
    than misses, from `entropy_table`; NaN where there are none of a kind."""
    wide = table.pivot(index=["lvlm", "dataset", "coordinate", "layer"], columns="group", values="mean")
    good, _, miss = (wide.get(group, pd.Series(np.nan, wide.index)) for group in IOU_GROUPS)
    lower = (good < miss).astype(float).where(good.notna() & miss.notna())
    return lower.groupby(level=["lvlm", "dataset"], sort=False).mean()


def claims_table(
    regressors: pd.DataFrame, compared: pd.DataFrame, entropy: pd.DataFrame, sizes: pd.DataFrame, ranks: pd.DataFrame,
    attributions: pd.DataFrame, spread: pd.DataFrame,
) -> pd.DataFrame:  # fmt: skip
    """claims.csv: claim, condition, published, measured, verdict: each claim of the paper, under each condition of
    `compared` the published evidence, the measured evidence and a verdict from it.

    A difference counts where its p (paired bootstrap over images) is below LEVEL after Holm's correction over the
    comparisons of its column; 'reproduced' takes all columns, 'in part' some, 'contradicted' one the other way and
    none for it. spread: `seed_spread` of the regressor, told beside the gain over greedy decoding, whose verdict rests
    on the first seed.
    """
    parts = []
    for condition, rows in compared.groupby("condition", sort=False):
        frames = (regressors, rows, entropy, sizes, attributions, spread)
        own = (frame[frame["lvlm"].isin(rows["lvlm"])] for frame in frames)
        found = _claims(*own, ranks[ranks["condition"] == condition])
        found.insert(1, "condition", condition)
        parts.append(found)
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)  # a claim's conditions one below the other


def _claims(regressors, compared, entropy, sizes, attributions, spread, ranks) -> pd.DataFrame:
    """`claims_table` of the LVLMs of one condition."""
    test = regressors[regressors["split"] == "test"]
    told = [f"{row.lvlm} on {row.dataset} r = {estimate(row, 'pearson', '.3f')}" for row in test.itertuples()]
    greedy = sizes[sizes["method"] == "greedy"].pivot(
        index=["lvlm", "dataset"], columns="size", values=["acc50", "acc50_lo", "acc50_hi"]
    )
    known = published.by_size().query("method == 'greedy' and dataset == 'COCO'").set_index("size")["acc50"]
    bound = published.REGRESSOR_PEARSON

    def pairs(method, reference, size="small"):
        wanted = (compared["method"] == method) & compared["reference"].str.startswith(reference)
        return compared[wanted & (compared["size"] == size)]

    gains = [
        ("ACS-Learned beats greedy decoding on small objects", _published("ACS-Learned", "greedy"),
         pairs("ACS-Learned", "greedy")),
        ("ACS-Learned beats the best sampling baseline", _published("ACS-Learned", published.BEST_BASELINE),
         pairs("ACS-Learned", published.BEST_BASELINE)),
        ("ACS-Free beats greedy decoding", _published("ACS-Free", "greedy"), pairs("ACS-Free", "greedy")),
        ("Few discriminative heads serve better than all heads, read at the same coordinates",
         "an ablation of the paper, no number at hand", pairs("ACS-Free", ALL_HEADS)),
        ("ACS-Learned beats greedy decoding on large objects, too",
         "64 to 70 % (InternVL-3.5-8B; ACS's variant is not stated)", pairs("ACS-Learned", "greedy", "large")),
    ]  # fmt: skip
    rows = [
        _size_claim(greedy, f"greedy {known['large']:.3f} large, {known['small']:.3f} small (Qwen2.5-VL-7B, COCO)"),
        (
            "Attention predicts the box's IoU",
            f"Pearson r > {bound}",
            "; ".join(told),
            _counted(test["pearson_lo"] > bound, test["pearson_hi"] < bound),
        ),
        _entropy_claim(lower_for_good(entropy)),
        _layer_claim(attributions),
        *((claim, evidence, _differences(found, spread), _verdict(found)) for claim, evidence, found in gains),
        _rank_claim(ranks),
    ]
    return pd.DataFrame(rows, columns=["claim", "published", "measured", "verdict"])


def _counted(above: pd.Series, below: pd.Series) -> str:
    """A verdict from the columns that are surely for a claim and those that are surely against it."""
    if len(above) and above.all():
        return "reproduced"
    if above.any():
        return f"in part: in {above.sum()} of {len(above)} columns"
    return "contradicted" if below.any() else "not shown"


def _verdict(rows: pd.DataFrame) -> str:
    """`_counted` of paired differences."""
    sure = rows["p_holm"] < LEVEL
    return _counted(sure & (rows["delta"] > 0), sure & (rows["delta"] < 0))


def _differences(rows: pd.DataFrame, spread: pd.DataFrame) -> str:
    known = spread[spread["source"] == "regressor"].set_index(["lvlm", "dataset", "method"])
    parts = []
    for row in rows.itertuples():
        text = f"{row.lvlm} on {row.dataset} {estimate(row, 'delta', '+.1f', 100)}"
        text += f" ({row.reference.partition(': ')[2]})" if ": " in row.reference else ""
        if (seeds := (row.lvlm, row.dataset, row.method)) in known.index and (row.reference, row.size) == SEEDED:
            text += f" (mean of {seeds_told(known.loc[seeds], 'delta_vs_greedy', '+.1f')})"
        parts.append(text)
    return "; ".join(parts)


def seeds_told(row: pd.Series, value: str, form: str) -> str:
    """'3 seeds +5.8, +5.4 to +6.2' of a row of `seed_spread`, in percentage points."""
    mean, lowest, highest = (format(100 * row[f"{value}_{name}"], form) for name in ("mean", "lowest", "highest"))
    return f"{row['seeds']} seeds {mean}, {lowest} to {highest}"


def _published(method: str, reference: str) -> str:
    """The published differences of two rows of the paper's table, lowest and highest."""
    gains = [a - b for a, b in zip(published.SMALL_OBJECTS[method], published.SMALL_OBJECTS[reference])]
    return f"{min(gains):+.1f} to {max(gains):+.1f} points in the four columns"


def _size_claim(greedy: pd.DataFrame, evidence: str) -> tuple[str, str, str, str]:
    """greedy: by (lvlm, dataset), columns (acc50, acc50_lo, acc50_hi) x size."""
    told = "; ".join(
        f"{lvlm} on {dataset} {row['acc50']['large']:.3f} large, {row['acc50']['small']:.3f} small"
        for (lvlm, dataset), row in greedy.iterrows()
    )
    above = greedy["acc50_lo"]["large"] > greedy["acc50_hi"]["small"]
    below = greedy["acc50_hi"]["large"] < greedy["acc50_lo"]["small"]
    return "LVLMs find large objects and miss small ones", evidence, told, _counted(above, below)


def _entropy_claim(lower: pd.Series) -> tuple[str, str, str, str]:
    """lower: by (lvlm, dataset), the share of layer and coordinate pairs that `lower_for_good` gives."""
    told = "; ".join(f"{lvlm} on {dataset} in {share:.0%}" for (lvlm, dataset), share in lower.items())
    verdict = "reproduced" if (lower == 1).all() else "in part" if (lower > 0.5).all() else "contradicted"
    return (
        "Good boxes have lower attention entropy, averaged over all heads",
        "in every layer and coordinate of the entropy figure",
        f"of the layer and coordinate pairs: {told}",
        verdict,
    )


def _layer_claim(table: pd.DataFrame) -> tuple[str, str, str, str]:
    """table: lvlm, layer, selected (has heads in D_c), and ATTRIBUTIONS (higher: the regressor leans on it more). D_c's
    layers have to be in the first half by every attribution, since the paper does not say which one it took."""
    layers = table.groupby("lvlm", sort=False)["layer"].transform("size")
    ranks = table.groupby("lvlm")[list(ATTRIBUTIONS)].rank(ascending=False, method="first").astype(int)
    chosen, first = table[table["selected"]], ranks.le(layers / 2, axis=0)[table["selected"]]
    parts = []
    for lvlm, rows in chosen.groupby("lvlm", sort=False):
        found = {name: " and ".join(map(str, sorted(ranks.loc[rows.index, name]))) for name in ATTRIBUTIONS}
        parts.append(f"{lvlm} {', '.join(f'{at} by {name}' for name, at in found.items())} of {layers[rows.index[0]]}")
    every, some = first.all(axis=None), first.any(axis=None)
    return (
        "Gradient attribution finds the layers with the discriminative heads (D_c)",
        "D_c lies in the first 10 of 28 layers by attribution (Qwen2.5-VL-7B)",
        f"rank of D_c's layers: {'; '.join(parts)}",
        "reproduced" if every else "in part: it depends on the attribution and the layer" if some else "contradicted",
    )


def _rank_claim(ranks: pd.DataFrame) -> tuple[str, str, str, str]:
    """ranks: as `rank_table` gives them, best first."""
    free = ranks.set_index("method").loc["ACS-Free"]
    others = ranks[ranks["method"] != "ACS-Free"]
    surely_behind = (others["mean_rank_hi"] < free["mean_rank_lo"]).any()
    surely_first = (others["mean_rank_lo"] > free["mean_rank_hi"]).all()
    verdict = "contradicted" if surely_behind else "reproduced" if surely_first else "not shown"
    best = others.iloc[0]
    return (
        "ACS-Free is the best method without training",
        "by mean rank over the four columns",
        f"mean rank {estimate(free, 'mean_rank', '.1f')} of {len(ranks)}; "
        f"{best['method']} {estimate(best, 'mean_rank', '.1f')}",
        verdict,
    )
