"""What should I use? All ways to a box in one table: how accurate they are, what they cost and what they need."""

from dataclasses import dataclass

import pandas as pd

from acs_lib.evaluation.accuracy import accuracy_table, make_fusions
from acs_lib.evaluation.bootstrap import paired_difference
from acs_lib.method.baselines import FUSIONS
from acs_lib.method.baselines.likelihood import P_TRUE
from acs_lib.study.effort import ALWAYS, AUTO, GREEDY
from acs_lib.study.experiment import Experiment, stacked
from acs_lib.study.label_free import FREE
from acs_lib.study.zoom import FIVES, ONES

NOTHING, BOXES = "nothing", "annotated boxes"
RATES = [rate + end for rate in ("acc50", "delta_vs_greedy") for end in ("", "_lo", "_hi")]
NEEDS = ["answers", "looks", "seconds", "labels", "training", "attention"]
COLUMN = ["lvlm", "dataset"]
COLUMNS = ["lvlm", "dataset", "condition", "method", "n", *RATES, *NEEDS]


@dataclass(frozen=True)
class Way:
    """What a method needs. labels: NOTHING, or BOXES to calibrate on; training: of a regressor; attention: rows of the
    LVLM, which an engine behind a server does not give; looks: how often an image is encoded, and each time all of the
    answers are drawn or asked about."""

    labels: str = NOTHING
    training: bool = False
    attention: bool = False
    looks: int = 1


WAYS = {
    "greedy": Way(),
    "sequence log-prob": Way(),
    "self-certainty": Way(),
    "medoid": Way(),
    **dict.fromkeys(FUSIONS, Way()),
    P_TRUE: Way(looks=2),
    "mass inside the box (MTLA)": Way(attention=True),
    "ACS-Free": Way(BOXES, attention=True),
    "ACS-Learned": Way(BOXES, True, attention=True),
}


def _needs(way: Way) -> dict:
    return {"looks": way.looks, "labels": way.labels, "training": way.training, "attention": way.attention}


def chosen_rows(e: Experiment) -> pd.DataFrame:
    """COLUMNS but seconds of WAYS, which make one box of all candidates of a small test object; the greedy answer is
    none of them, but for the method of this name. P(True) asks about every answer: these questions count as answers."""
    choices = e.choices_on("small")
    fused = make_fusions(e.candidates(), e.run.truth, FUSIONS.values())
    choices = pd.concat([choices[choices["method"].isin([*WAYS])], fused], ignore_index=True)
    rates = accuracy_table(choices, e.small, draws=e.profile.bootstrap).set_index("method")
    rows = []
    for method, way in WAYS.items():
        if method not in rates.index:  # P(True) of an LVLM that is not asked
            continue
        found = rates.loc[method]
        delta = paired_difference(choices, e.small, method, "greedy", e.profile.bootstrap)[:3]
        values = [*found[["acc50", "acc50_lo", "acc50_hi"]], *((0.0,) * 3 if method == "greedy" else delta)]
        answers = 1 if method == "greedy" else way.looks * (1 + e.profile.sampling.samples)
        rows.append({"method": method, "n": int(found["n_queries"]), **dict(zip(RATES, values)), "answers": answers,
                     **_needs(way)})  # fmt: skip
    return pd.DataFrame(rows)


def timed(ways: pd.DataFrame, effort: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS of ways that lack seconds: those of the one look that gives as many answers, of effort.csv; NaN where
    there is none."""
    looks = effort[effort["rule"].isin([GREEDY, ALWAYS])].drop_duplicates([*COLUMN, "answers"])
    return ways.merge(looks[[*COLUMN, "answers", "seconds"]], how="left", on=[*COLUMN, "answers"])[COLUMNS]


def label_free_advice(table: pd.DataFrame, method: str, answers: int) -> pd.DataFrame:
    """COLUMNS but seconds of ACS-Free with heads that were found without annotations, on the most images, of
    label_free_heads.csv; `method` is its name there."""
    own = table[table["method"] == method]
    most = own[own["images"] == own.groupby(["lvlm", "dataset"])["images"].transform("max")]
    return most.assign(method="ACS-Free, heads found without labels", answers=answers, **_needs(Way(attention=True)))


def effort_advice(table: pd.DataFrame, chosen: pd.DataFrame, rule: str) -> pd.DataFrame:
    """COLUMNS of the methods of effort.csv with one rule, such as 'auto'; `chosen`: rows of `chosen_rows`, for what a
    method needs."""
    needs = chosen.drop_duplicates("method").set_index("method")[["labels", "training", "attention"]]
    own = table[table["rule"] == rule].join(needs, on="method")
    labels = own["labels"].where(own["labels"] != NOTHING, "annotated boxes, for the threshold")
    return own.assign(method=own["method"] + ", as many samples as needed", labels=labels)[COLUMNS]


def zoom_advice(table: pd.DataFrame, chosen: pd.DataFrame, budget: str, window: str, times: float) -> pd.DataFrame:
    """COLUMNS of the methods of zoom.csv with one budget, and of the second look's box alone. The objects are those
    that were looked at again, fewer than the others'."""
    own = table[(table["budget"] == budget) & (table["window"] == window) & (table["times"] == times)]
    needs = chosen.drop_duplicates("method").set_index("method")[["labels", "training", "attention"]]
    known = own[own["method"].isin(needs.index) | (own["method"] == "second look")]
    found = known.join(needs, on="method").fillna({"labels": NOTHING, "training": False, "attention": False})
    named = found["method"] + f", {budget} answers, {times:g} times closer around the {window} box"
    return found.assign(method=named, looks=2)[COLUMNS]


def every_way(
    experiments: list[Experiment], label_free: pd.DataFrame, effort: pd.DataFrame, zoom: pd.DataFrame
) -> pd.DataFrame:
    """advice.csv: `advice_table` of all ways, from the tables of other studies; of the windows those around the greedy
    box at the profile's first zoom."""
    profile = experiments[0].profile
    chosen, around = stacked(experiments, chosen_rows), ("greedy", profile.beyond.zooms[0])
    free = label_free_advice(label_free, FREE, 1 + profile.sampling.samples)
    return advice_table(
        *(timed(ways, effort) for ways in (chosen, free)),
        effort_advice(effort, chosen, AUTO),
        *(zoom_advice(zoom, chosen, budget, *around) for budget in (ONES, FIVES)),
    )


def advice_table(*parts: pd.DataFrame) -> pd.DataFrame:
    """advice.csv: rows of the functions above together, the most accurate ones first within an LVLM and dataset; a way
    that comes out as accurate as another one costs less where it has fewer answers."""
    table = pd.concat(parts, ignore_index=True)[COLUMNS]
    order = ["lvlm", "dataset", "acc50", "answers"]
    return table.sort_values(order, ascending=[True, True, False, True], kind="stable", ignore_index=True)
