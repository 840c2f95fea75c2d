"""The log of designs of the embedded LVLMs: what each did to selection, one row an LVLM, design and dataset.

`data/embedded/designs.csv` holds the rows of the search, measured on images that are no test images (the numbers of
a profile's own LVLM come from its test split). Nothing here chooses anything; the log is evidence.
"""

import pandas as pd

from acs_lib import paths
from acs_lib.datasets.splits import other_boxes
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.bootstrap import paired_difference
from acs_lib.evaluation.confidence import within_query_r
from acs_lib.evaluation.mistakes import MISTAKES, makeup, mixed_only
from acs_lib.profiles import DatasetSpec, LVLMSpec
from acs_lib.study.stages import Study

LOG = paths.EMBEDDED / "designs.csv"


METHODS = {
    "greedy": "greedy",
    "random": RANDOM,
    "oracle": ORACLE,
    "log_prob": "sequence log-prob",
    "entropy_all": "entropy, all heads",
    "acs_free": "ACS-Free",
    "acs_learned": "ACS-Learned",
}


GAINS = {
    "learned_vs_greedy": ("ACS-Learned", "greedy"),
    "free_vs_random": ("ACS-Free", RANDOM),
    "free_vs_all": ("ACS-Free", "entropy, all heads"),
}


def variant_log() -> pd.DataFrame:
    """The log, one row an LVLM, design and sampling; columns as `design_row` gives them."""
    return pd.read_csv(LOG)


def kind_table(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec, size: str = "small") -> pd.DataFrame:
    """acs_lib.evaluation.mistakes.makeup of the test queries of one size."""
    run = study.run(lvlm, dataset, "test")
    wanted = study.test_queries(lvlm, dataset, size)
    others = other_boxes(dataset, "test", wanted)
    return makeup((c for c in run.candidates() if c.query_id in others), run.truth, others)


def variant_row(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec, choices: pd.DataFrame, kinds: pd.DataFrame) -> dict:
    """Small test objects: Acc@0.5 of METHODS (0-1), GAINS with 95 % intervals, Pearson r over all sampled answers and
    inside queries, the share of mixed queries, and the make-up of their mistakes (shares that sum to 1)."""
    small = study.test_queries(lvlm, dataset, "small")
    choices = choices[choices["query_id"].isin(small["query_id"])]
    sampling = study.profile.sampling
    row = {"lvlm": lvlm.name, "dataset": dataset.name, "temperature": sampling.temperature, "top_p": sampling.top_p}
    row["n_queries"] = len(small)
    accuracy = choices.groupby("method")["hit"].mean()
    row |= {name: accuracy[method] for name, method in METHODS.items()}
    for name, (method, reference) in GAINS.items():
        found = paired_difference(choices, small, method, reference, draws=study.profile.bootstrap)
        row |= {name: found.delta, f"{name}_lo": found.lo, f"{name}_hi": found.hi}
    predicted = study.predictions(lvlm, dataset, "test")
    predicted = predicted[(predicted["candidate"] > 0) & predicted["query_id"].isin(small["query_id"])]
    row |= {"r": predicted["iou"].corr(predicted["predicted"]), "r_within": within_query_r(predicted)}
    both = mixed_only(kinds)
    row["mixed_queries"] = both["query_id"].nunique() / kinds["query_id"].nunique()
    shares = both.loc[both["kind"] != "good", "kind"].value_counts(normalize=True)
    return row | {f"share {kind}": shares.get(kind, 0.0) for kind in MISTAKES}
