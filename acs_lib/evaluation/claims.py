"""What reproduced and what did not: each claim of the paper, the published evidence, the measured one, and a verdict.

`evidence` judges every claim in every column (an LVLM on a dataset), `claims_table` sums up over the columns of a
condition. Both follow from the tables by the rules below, so they stay true when the numbers change.
"""

import numpy as np
import pandas as pd

from acs_lib.evaluation import published
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.method.heads import ATTRIBUTIONS, IOU_GROUPS
from acs_lib.method.selection import ALL_HEADS

LEVEL = 0.05  # of significance, after Holm's correction
COLUMN = ["condition", "lvlm", "dataset"]
SEEDED = ("greedy", "small")  # the comparison of which the spread over seeds is known


def lower_for_good(table: pd.DataFrame) -> pd.Series:
    """By (lvlm, dataset): the share (0-1) of layer and coordinate pairs in which good boxes have a lower mean entropy
    than misses, from `entropy_table`; NaN where there are none of a kind."""
    wide = table.pivot(index=["lvlm", "dataset", "coordinate", "layer"], columns="group", values="mean")
    good, _, miss = (wide.get(group, pd.Series(np.nan, wide.index)) for group in IOU_GROUPS)
    lower = (good < miss).astype(float).where(good.notna() & miss.notna())
    return lower.groupby(level=["lvlm", "dataset"], sort=False).mean()


def evidence(
    regressors: pd.DataFrame, compared: pd.DataFrame, entropy: pd.DataFrame, sizes: pd.DataFrame, ranks: pd.DataFrame,
    attributions: pd.DataFrame, spread: pd.DataFrame,
) -> pd.DataFrame:  # fmt: skip
    """evidence.csv: claim, published, condition, lvlm, dataset, measured, sign: of every claim of the paper in every
    column what was published and measured, and whether it is for the claim (1), against it (-1) or neither (0).

    A difference counts where its p (paired bootstrap over images) is below LEVEL after Holm's correction over the
    comparisons of its column. spread: `seed_spread` of the regressor, told beside the gain over greedy decoding, which
    rests on the first seed. Layers are judged by LVLM, ranks by condition alone.
    """
    conditions = compared.drop_duplicates("lvlm").set_index("lvlm")["condition"]
    known = published.by_size().query("method == 'greedy' and dataset == 'COCO'").set_index("size")["acc50"]
    few = "Few discriminative heads serve better than all heads, read at the same coordinates"
    large = "greedy 64 %, ACS 70 % (InternVL-3.5-8B; ACS's variant is not stated)"
    best = published.BEST_BASELINE

    def gain(claim: str, told: str, method: str, reference: str, size: str = "small") -> pd.DataFrame:
        wanted = (compared["method"] == method) & compared["reference"].str.startswith(reference)
        return _of(claim, told, _differences(compared[wanted & (compared["size"] == size)], spread))

    parts = [
        _of(
            "LVLMs find large objects and miss small ones",
            f"greedy {known['large']:.3f} large, {known['small']:.3f} small (Qwen2.5-VL-7B, COCO)",
            _sizes(sizes),
        ),
        _of(
            "Attention predicts the box's IoU",
            f"Pearson r > {published.REGRESSOR_PEARSON}",
            _regressors(regressors[regressors["split"] == "test"]),
        ),
        _of(
            "Good boxes have lower attention entropy, averaged over all heads",
            "in every layer and coordinate of the entropy figure",
            _entropy(entropy),
        ),
        _of(
            "Gradient attribution finds the layers with the discriminative heads (D_c)",
            "D_c lies in the first 10 of 28 layers by attribution (Qwen2.5-VL-7B)",
            _layers(attributions),
        ),
        gain(
            "ACS-Learned beats greedy decoding on small objects", _gains("ACS-Learned", "greedy"),
            "ACS-Learned", "greedy",
        ),
        gain("ACS-Learned beats the best sampling baseline", _gains("ACS-Learned", best), "ACS-Learned", best),
        gain("ACS-Free beats greedy decoding", _gains("ACS-Free", "greedy"), "ACS-Free", "greedy"),
        gain(few, "an ablation of the paper, no number at hand", "ACS-Free", ALL_HEADS),
        gain("ACS-Learned beats greedy decoding on large objects, too", large, "ACS-Learned", "greedy", "large"),
    ]  # fmt: skip
    parts = [part.assign(condition=part["lvlm"].map(conditions)) for part in parts]
    parts.append(
        _of("ACS-Free is the best method without training", "by mean rank over the four columns", _first(ranks))
    )
    names = ["claim", "published", *COLUMN, "measured", "sign"]
    return pd.concat(parts, ignore_index=True)[names].fillna({"lvlm": "", "dataset": ""})


def claims_table(found: pd.DataFrame) -> pd.DataFrame:
    """claims.csv: claim, condition, published, measured, verdict, from `evidence`: 'reproduced' takes all columns of
    a condition, 'in part' some, 'contradicted' one the other way and none for it."""
    rows = []
    for (claim, condition), part in found.groupby(["claim", "condition"], sort=False):
        told = [
            " ".join([*filter(None, [row.lvlm, f"on {row.dataset}" * bool(row.dataset)]), row.measured])
            for row in part.itertuples()
        ]
        rows.append((claim, condition, part["published"].iloc[0], "; ".join(told), verdict(part["sign"])))
    return pd.DataFrame(rows, columns=["claim", "condition", "published", "measured", "verdict"])


def verdict(signs: pd.Series) -> str:
    """A verdict from what each column says: 1 for a claim, -1 against it, 0 neither."""
    surely = (signs == 1).sum()
    if len(signs) and surely == len(signs):
        return "reproduced"
    if surely:
        return f"in part: in {surely} of {len(signs)} columns"
    return "contradicted" if (signs == -1).any() else "not shown"


def _of(claim: str, told: str, rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*COLUMN, "measured", "sign"]).assign(claim=claim, published=told)


def _sign(above: bool, below: bool) -> int:
    return int(above) - int(below)


def _gains(method: str, reference: str) -> str:
    """The published differences of two rows of the paper's table, lowest and highest."""
    gains = [a - b for a, b in zip(published.SMALL_OBJECTS[method], published.SMALL_OBJECTS[reference])]
    return f"{min(gains):+.1f} to {max(gains):+.1f} points in the four columns"


def _sizes(sizes: pd.DataFrame) -> list[dict]:
    rows = []
    for (lvlm, dataset), part in sizes[sizes["method"] == "greedy"].groupby(["lvlm", "dataset"], sort=False):
        large, small = (part.set_index("size").loc[size] for size in ("large", "small"))
        above, below = large["acc50_lo"] > small["acc50_hi"], large["acc50_hi"] < small["acc50_lo"]
        told = f"{large['acc50']:.3f} large, {small['acc50']:.3f} small"
        rows.append({"lvlm": lvlm, "dataset": dataset, "measured": told, "sign": _sign(above, below)})
    return rows


def _regressors(test: pd.DataFrame) -> list[dict]:
    bound = published.REGRESSOR_PEARSON
    return [
        {"lvlm": row.lvlm, "dataset": row.dataset, "measured": f"r = {estimate(row, 'pearson', '.3f')}",
         "sign": _sign(row.pearson_lo > bound, row.pearson_hi < bound)}
        for row in test.itertuples()
    ]  # fmt: skip


def _entropy(entropy: pd.DataFrame) -> list[dict]:
    """For it: lower in every layer and coordinate; against it: in no more than half of them."""
    return [
        {"lvlm": lvlm, "dataset": dataset, "measured": f"in {share:.0%} of the layers and coordinates",
         "sign": _sign(share == 1, share <= 0.5)}
        for (lvlm, dataset), share in lower_for_good(entropy).items()
    ]  # fmt: skip


def _layers(table: pd.DataFrame) -> list[dict]:
    """table: lvlm, layer, selected (has heads in D_c), and ATTRIBUTIONS (higher: the regressor leans on it more). For
    it: all of D_c's layers are in the first half by every attribution, since the paper does not say which one it took;
    against it: none by any."""
    rows = []
    for lvlm, part in table.groupby("lvlm", sort=False):
        ranks = part[list(ATTRIBUTIONS)].rank(ascending=False, method="first").astype(int)[part["selected"]]
        first = ranks <= len(part) / 2
        told = ", ".join(f"{' and '.join(map(str, sorted(at)))} by {name}" for name, at in ranks.items())
        sign = _sign(first.all(axis=None), not first.any(axis=None))
        rows.append({"lvlm": lvlm, "measured": f"D_c's layers rank {told} of {len(part)}", "sign": sign})
    return rows


def _differences(rows: pd.DataFrame, spread: pd.DataFrame) -> list[dict]:
    known, told = spread[spread["source"] == "regressor"].set_index(["lvlm", "dataset", "method"]), []
    for row in rows.itertuples():
        text = estimate(row, "delta", "+.1f", 100)
        text += f" ({row.reference.partition(': ')[2]})" if ": " in row.reference else ""
        if (seeds := (row.lvlm, row.dataset, row.method)) in known.index and (row.reference, row.size) == SEEDED:
            text += f" (mean of {seeds_told(known.loc[seeds], 'delta_vs_greedy', '+.1f')})"
        sure = row.p_holm < LEVEL
        sign = _sign(sure and row.delta > 0, sure and row.delta < 0)
        told.append({"lvlm": row.lvlm, "dataset": row.dataset, "measured": text, "sign": sign})
    return told


def seeds_told(row: pd.Series, value: str, form: str) -> str:
    """'3 seeds +5.8, +5.4 to +6.2' of a row of `seed_spread`, in percentage points."""
    mean, lowest, highest = (format(100 * row[f"{value}_{name}"], form) for name in ("mean", "lowest", "highest"))
    return f"{row['seeds']} seeds {mean}, {lowest} to {highest}"


def _first(ranks: pd.DataFrame) -> list[dict]:
    """ranks: as `rank_table` gives them, of each condition best first."""
    rows = []
    for condition, part in ranks.groupby("condition", sort=False):
        free, others = part.set_index("method").loc["ACS-Free"], part[part["method"] != "ACS-Free"]
        first = (others["mean_rank_lo"] > free["mean_rank_hi"]).all()
        behind = (others["mean_rank_hi"] < free["mean_rank_lo"]).any()
        best = others.iloc[0]
        told = f"mean rank {estimate(free, 'mean_rank', '.1f')} of {len(part)}; {best['method']} "
        told += estimate(best, "mean_rank", ".1f")
        rows.append({"condition": condition, "measured": told, "sign": _sign(first, behind)})
    return rows
