"""How well the regressor predicts IoU, against the number of training queries.

    python -m benchmarks.training_queries

writes reports/benchmarks/training_queries.csv from a finished run of the embedded profile: one row an LVLM and number
of training queries. Pearson r (higher is better) with its 95 % interval over images is on validation images, which also
choose the epoch, so that no test image is looked at. Epochs are as many as the profile has whatever the number of
queries, as in a run with so few: what a shorter run would give, not what more passes over few queries could.
"""

import time
from typing import Annotated

import pandas as pd
import typer

from acs_lib import paths
from acs_lib.core.files import replacing
from acs_lib.evaluation.bootstrap import correlation_interval
from acs_lib.method import regressor
from acs_lib.runs.local import one_thread
from acs_lib.runs.store import SHARD, Run
from acs_lib.study.ablations import TransformedRun
from acs_lib.study.stages import Study

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)  # of the profile's training queries
DRAWS = 2000


def measure(study: Study, train: Run, validation: Run, share: float) -> dict:
    """train_queries, pearson with its interval, n (validation answers) and the seconds that training took."""
    part = TransformedRun(train, most=max(1, round(share * len(train.shards))))
    settings = study.profile.regressor.model_dump(exclude={"seeds"})
    began = time.perf_counter()
    with one_thread():
        model, _ = regressor.train(part, validation, **settings, seed=0)
        found = regressor.predict(model, validation)
    images = found["query_id"].map(validation.queries.set_index("query_id")["image_id"])
    pair = found["predicted_iou"].to_numpy(), found["iou"].to_numpy()
    low, high = correlation_interval(*pair, pd.factorize(images)[0], DRAWS)
    return {
        "train_queries": min(len(part.shards) * SHARD, len(train.queries)),
        "pearson": regressor.pearson(found["predicted_iou"], found["iou"]), "pearson_lo": low, "pearson_hi": high,
        "n": len(found), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def main(profile: Annotated[str, typer.Option(help="Whose finished run is read.")] = "embedded") -> None:
    study, rows = Study.open(profile), []
    for lvlm in study.profile.lvlms:
        train, validation = (study.run(lvlm, study.train_set, split) for split in ("train", "validation"))
        for share in SHARES:
            row = measure(study, train, validation, share)
            rows.append({"lvlm": lvlm.name, "condition": lvlm.condition, **row})
            typer.echo(f"{lvlm.name}, {row['train_queries']:,} training queries: r {row['pearson']:.3f}")
    with replacing(paths.REPORTS / "benchmarks" / "training_queries.csv") as aside:
        pd.DataFrame(rows).to_csv(aside, index=False)


if __name__ == "__main__":
    typer.run(main)
