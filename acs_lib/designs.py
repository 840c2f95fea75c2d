"""When does attention help? One row a design (an embedded LVLM): what its answers are like, what its attention knows,
and what each way of choosing makes of it. Everything on small objects; heads and regressor from the train split."""

from dataclasses import replace

import numpy as np
import pandas as pd

from acs_lib import boxes as bx
from acs_lib import evaluate, heads, pipeline, regressor
from acs_lib.datasets import coco
from acs_lib.heads import ENTROPY
from acs_lib.profiles import DatasetSpec, LVLMSpec
from acs_lib.selectors import acs_free
from acs_lib.store import BOX
from acs_lib.study import Study

GROUPS = {"zero": (-1, 0), "low": (0, 0.3), "middle": (0.3, 0.6), "high": (0.6, 1)}  # IoU above, up to


def answer_groups(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec) -> pd.DataFrame:
    """Every sampled answer to a small test object: query_id, iou, its IoU group, whether its query is mixed (standard
    deviation of IoU above 0.1), and whether the box is rather that of another object of the scene (IoU >= 0.5)."""
    run = study.run(lvlm, dataset, "test")
    small = set(study.test_queries(lvlm, dataset, "small")["query_id"])
    records = run.records()
    records = records[records["query_id"].isin(small) & (records["failure"] == "")].copy()
    everything, _ = coco.load_queries(
        f"{dataset.name}-test", *pipeline.split_files(dataset, "test"), study.profile.small, study.profile.large
    )
    others = {image: rows for image, rows in everything.groupby("image_id")}
    image_of = run.queries.set_index("query_id")["image_id"]

    def is_another(row) -> bool:
        rows = others[image_of[row["query_id"]]]
        rows = rows[rows["query_id"] != row["query_id"]]
        return bool((bx.iou(row[BOX].to_numpy(float)[None], rows[coco.TRUTH].to_numpy()) >= 0.5).any())

    records["another_object"] = records.apply(is_another, axis=1)
    sampled = records["candidate"] > 0
    records["mixed"] = records["query_id"].map(records[sampled].groupby("query_id")["iou"].std() > 0.1)
    for name, (low, high) in GROUPS.items():
        records.loc[(records["iou"] > low) & (records["iou"] <= high), "group"] = name
    return records[["query_id", "candidate", "iou", "group", "mixed", "another_object"]]


def row(study: Study, lvlm: LVLMSpec, dataset: DatasetSpec) -> dict:
    """One design on one dataset; rates 0-1. ACS-Free appears twice: D_c by separation over all answers, and by
    separation inside queries (the paper's words fit either)."""
    train = study.run(lvlm, study.train_set, "train")
    records, statistics = train.records(), train.statistics()
    kept = (records["failure"] == "").to_numpy() & (records["candidate"] > 0).to_numpy()
    entropy, iou = statistics[kept][..., ENTROPY].mean(1), records["iou"].to_numpy()[kept]
    pooled = heads.separation(entropy, iou)
    within = heads.separation_within(entropy, iou, records["query_id"].to_numpy()[kept])
    layers = heads.attribution(study.fit(lvlm), train).sum(1)
    count = len(study.head_table(lvlm)[2].heads)
    inside = acs_free(heads.select_heads(layers, within, study.profile.heads.layers, count))
    small = study.test_queries(lvlm, dataset, "small")
    names = set(small["query_id"])
    predictions = study.predictions(lvlm, dataset, "test")
    predictions = predictions[predictions["query_id"].isin(names)]
    selectors = [
        selector
        for selector in study.selectors(lvlm, predictions)
        if selector.name in ("greedy", "sequence log-prob", "medoid", "entropy, all heads", "ACS-Free", "ACS-Learned")
    ]
    selectors.append(replace(inside, name="ACS-Free, heads by separation inside queries"))
    run = study.run(lvlm, dataset, "test")
    choices = evaluate.chosen(
        (found for found in run.candidates() if found.query_id in names), run.truth, selectors, study.profile.pool
    )
    acc = choices.groupby("method")["hit"].mean()
    answers = answer_groups(study, lvlm, dataset)
    mixed = answers[answers["mixed"] & (answers["candidate"] > 0)]
    greedy = answers[answers["candidate"] == 0]
    gains = {
        f"{name} minus greedy": evaluate.paired_difference(
            choices, small, name, "greedy", draws=study.profile.bootstrap
        )
        for name in ("ACS-Learned", "ACS-Free")
    }
    return {
        "design": lvlm.name,
        "dataset": dataset.name,
        "n_queries": len(small),
        **acc.to_dict(),
        **{f"{name}, {end}": getattr(gain, end) for name, gain in gains.items() for end in ("delta", "lo", "hi")},
        "greedy names another object": greedy["another_object"].mean(),
        "r over all answers": regressor.quality(predictions)["pearson"],
        "r inside mixed queries": regressor.within_query_r(predictions),
        "mixed queries": answers.groupby("query_id")["mixed"].first().mean(),
        **{f"mixed: {name} IoU": (mixed["group"] == name).mean() for name in GROUPS},
        "best head's AUROC over all answers": float(np.nanmax(pooled)),
        "best head's AUROC inside queries": float(np.nanmax(within)),
    }


def table(study: Study) -> pd.DataFrame:
    """The log: one row a design and dataset."""
    return pd.DataFrame([row(study, lvlm, dataset) for lvlm, dataset in study.columns])
