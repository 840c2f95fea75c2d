"""How the embedded LVLMs were trained otherwise, and what that did to selection: one row an LVLM, edition, design and
sampling.

`data/embedded/training_variants.csv` holds the rows of the search that were measured and kept (MISSING: what is not in
it), on images that are no test images (the numbers of a profile's own LVLM come from its test split). Nothing here
chooses anything; the log is evidence.
"""

import numpy as np
import pandas as pd

from acs_lib import paths
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.bootstrap import paired_difference
from acs_lib.evaluation.confidence import within_query_r
from acs_lib.evaluation.mistakes import MISTAKES, mixed_only
from acs_lib.study.experiment import Experiment, stacked
from acs_lib.study.results import kind_table

LOG = paths.EMBEDDED / "training_variants.csv"
MISSING = (
    "The log does not hold all that was tried: trials of the habit that stopped before they were measured are not in "
    "it, nor is an earlier LVLM with a habit of 60 %, whose row that of its successor replaced."
)
RATES = {
    "greedy": "greedy", "random": RANDOM, "oracle": ORACLE, "log_prob": "sequence log-prob",
    "entropy_all": "entropy, all heads", "acs_free": "ACS-Free", "acs_learned": "ACS-Learned",
}  # fmt: skip
EDITION = 2  # of the embedded LVLMs that are shipped; rows of others stay as a record
GAINS = {
    "learned_vs_greedy": ("ACS-Learned", "greedy"),
    "free_vs_random": ("ACS-Free", RANDOM),
    "free_vs_all": ("ACS-Free", "entropy, all heads"),
}


def variant_log() -> pd.DataFrame:
    """The log, one row an LVLM, edition, design and sampling; columns as `variant_row` gives them."""
    return pd.read_csv(LOG)


def habit_contrast(experiments: list[Experiment]) -> pd.DataFrame:
    """habit.csv: lvlm, dataset, condition, n_queries, RATES, r over all sampled answers and inside queries, and GAINS,
    as `variant_row` has them, of every experiment: an LVLM with its habit and the same LVLM without it, at one
    temperature and top-p, on the same images, with as many training queries."""
    names = ["n_queries", *RATES, "pearson", "within_query_pearson"]
    gains = [f"delta_{gain}{end}" for gain in GAINS for end in ("", "_lo", "_hi")]
    return stacked(experiments, lambda e: pd.DataFrame([variant_row([e])])[[*names, *gains]])


def variant_row(seeds: list[Experiment]) -> dict:
    """Small test objects: Acc@0.5 of RATES (0-1), GAINS with 95 % intervals, Pearson r over all sampled answers and
    inside queries, the share of mixed queries, and the make-up of their mistakes (shares that sum to 1).

    seeds: one experiment with the predictions of one regressor each; what ACS-Learned does is the mean over them
    """
    e, first = seeds[0], seeds[0].choices_on("small")
    learned = pd.concat([found.choose(["ACS-Learned"], found.small) for found in seeds])
    learned = learned[learned["method"] == "ACS-Learned"].groupby(["query_id", "method", "family"], sort=False)
    learned = learned[["iou", "hit", "hit75"]].mean().reset_index()
    choices = pd.concat([first[first["method"] != "ACS-Learned"], learned])
    small, sampling = e.small, e.profile.sampling
    row = {"lvlm": e.lvlm.name, "dataset": e.dataset.name, "temperature": sampling.temperature, "top_p": sampling.top_p}
    row |= {"n_queries": len(small), "seeds": len(seeds)}
    accuracy = choices.groupby("method")["hit"].mean()
    row |= {name: accuracy[method] for name, method in RATES.items()}
    for name, (method, reference) in GAINS.items():
        found = paired_difference(choices, small, method, reference, draws=e.profile.bootstrap)
        row |= {f"delta_{name}": found.delta, f"delta_{name}_lo": found.lo, f"delta_{name}_hi": found.hi}
    answers = [found.predictions.query("candidate > 0") for found in seeds]
    answers = [found[found["query_id"].isin(small["query_id"])] for found in answers]
    row["pearson"] = float(np.mean([found["iou"].corr(found["predicted_iou"]) for found in answers]))
    row["within_query_pearson"] = float(np.mean([within_query_r(found) for found in answers]))
    kinds = kind_table(e)
    both = mixed_only(kinds)
    row["mixed_queries"] = both["query_id"].nunique() / kinds["query_id"].nunique()
    shares = both.loc[both["kind"] != "good", "kind"].value_counts(normalize=True)
    return row | {f"share {kind}": shares.get(kind, 0.0) for kind in MISTAKES}
