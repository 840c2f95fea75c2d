"""The same test scenes in two renderings: with more detail on disk than a look at the whole image shows, and without.
What greedy decoding, the best of the samples and the regressor are worth in each."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from acs_lib.evaluation.accuracy import ORACLE, make_choices
from acs_lib.evaluation.bootstrap import INTERVAL, bootstrap_means, correlation_interval
from acs_lib.method.baselines import SELECTORS
from acs_lib.method.regressor import pearson
from acs_lib.study.experiment import Experiment, by_first_regressor
from acs_lib.study.stages import Study

RATES = ("greedy", "oracle")
Measured = tuple[pd.DataFrame, pd.DataFrame]


def measured(e: Experiment) -> Measured:
    """Of the small objects of a test split, known by image and annotation: image_id and RATES (hits, 0-1), the index
    being the object; and object, image_id, iou and predicted_iou of each answer that holds a box."""
    choices = make_choices(e.candidates(), e.run.truth, [SELECTORS["greedy"]], e.profile.pool)
    hit = choices.pivot(index="query_id", columns="method", values="hit").rename(columns={ORACLE: "oracle"})
    queries = e.small.assign(object=e.small["query_id"].str.partition("/")[2]).set_index("query_id")
    objects = queries[["object", "image_id"]].join(hit[list(RATES)]).set_index("object")
    answers = e.predictions.join(queries[["object", "image_id"]], on="query_id", how="inner")
    return objects, answers[["object", "image_id", "iou", "predicted_iou"]]


def rendering_rows(found: Mapping[str, Measured], draws: int) -> pd.DataFrame:
    """n (objects that are in all renderings), RATES (0-1), delta_<rate>, the first rendering's less the row's own, and
    pearson of predicted and true IoU, all with 95 % intervals over images, differences paired; one row a rendering, its
    name the index. found: name -> `measured`."""
    first, *others = [objects for objects, _ in found.values()]
    shared = first.index.intersection(others[0].index)
    images, rows = pd.factorize(first.loc[shared, "image_id"])[0], []
    for objects, answers in found.values():
        own, base = (frame.loc[shared, list(RATES)].to_numpy(float) for frame in (objects, first))
        values = np.hstack([own, base - own])
        ends = np.quantile(bootstrap_means(values, images, draws), INTERVAL, axis=0)
        row = {"n": len(shared)}
        for name, mean, (lo, hi) in zip([*RATES, *(f"delta_{rate}" for rate in RATES)], values.mean(0), ends.T):
            row |= {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}
        told = answers[answers["object"].isin(shared)]
        lo, hi = correlation_interval(
            told["predicted_iou"].to_numpy(float), told["iou"].to_numpy(float), pd.factorize(told["image_id"])[0], draws
        )
        r = pearson(told["predicted_iou"], told["iou"])
        rows.append(row | {"pearson": r, "pearson_lo": lo, "pearson_hi": hi})
    return pd.DataFrame(rows, index=list(found))


def renderings_table(study: Study, experiments: list[Experiment]) -> pd.DataFrame:
    """renderings.csv: `rendering_rows` of every LVLM on the test scenes of the dataset that D_c is from and on
    `profile.beyond.rendered`, the same scenes without more detail; by the first regressor, which saw the former alone.
    Without rows where the profile has no other rendering, as of photographs."""
    if (other := study.profile.beyond.rendered) is None:
        return pd.DataFrame(columns=["lvlm", "dataset", "condition", "n"])
    tables = []
    for e in (e for e in experiments if e.dataset == study.train_set):
        found = {
            dataset.name: measured(by_first_regressor(study, e.lvlm, dataset, study.run(e.lvlm, dataset, "test")))
            for dataset in (e.dataset, other)
        }
        rows = rendering_rows(found, study.profile.costly_draws)
        tables.append(e.labelled(rows).assign(dataset=rows.index))
    return pd.concat(tables, ignore_index=True)
