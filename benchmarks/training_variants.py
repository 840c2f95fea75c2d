"""Measure one design of an embedded LVLM and add it to the log (data/embedded/training_variants.csv).

    python -m benchmarks.training_variants "habit, rho 0.6" path/to/weights --lvlm internvl-embedded --temperature 0.4

What selection gains is measured on research images of the world `scenes`: neither a test nor a training image of any
profile. Regressors (the mean of three seeds) and D_c come from the embedded profile's train and validation images, as
always. A row of the same LVLM, edition, design, temperature and
top-p is replaced. About four minutes on 2 cores.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from acs_lib.core.files import replacing
from acs_lib.method.baselines import slug
from acs_lib.profiles import DatasetSpec, LVLMSpec, SplitSpec, load_profile
from acs_lib.study.experiment import resolve
from acs_lib.study.stages import Study
from acs_lib.study.training_variants import EDITION, LOG, variant_row
from benchmarks.bars import SEED, TOKENS

RESEARCH = SplitSpec(images=260, seed=SEED, queries={"small": 500, "large": 60})


def main(
    design: Annotated[str, typer.Argument(help="What the log calls it.")],
    weights: Annotated[Path, typer.Argument(help="The LVLM's folder.", exists=True, file_okay=False)],
    name: Annotated[str, typer.Option("--lvlm", help="Which LVLM of the embedded profile it is a design of.")],
    temperature: float = 0.5,
    top_p: float = 1.0,
    train: Annotated[int, typer.Option(help="Queries that the regressor is trained on.")] = 1500,
    seeds: Annotated[int, typer.Option(help="Regressors, each from a seed of its own.")] = 3,
    log: Annotated[Path, typer.Option(help="The table that the row is added to; notebook 08 shows the default.")] = LOG,
) -> None:
    profile = load_profile("embedded")
    lvlm = LVLMSpec(name=name, source=str(weights.resolve()), dtype="float32")
    spec = next(dataset for dataset in profile.datasets if dataset.name == profile.train_on)
    splits = {
        "train": spec.splits["train"].model_copy(update={"queries": {"small": train}}),
        "validation": spec.splits["validation"].model_copy(update={"queries": {"small": 400}}),
        "test": RESEARCH,
    }
    dataset = DatasetSpec(name=spec.name, kind=spec.kind, splits=splits)
    sampling = profile.sampling.model_copy(
        update={"temperature": temperature, "top_p": top_p, "max_new_tokens": TOKENS}
    )
    kept_as = f"designs-{name}-{slug(design)}-{temperature:g}-{top_p:g}"
    changed = {"name": kept_as, "lvlms": (lvlm,), "datasets": (dataset,), "sampling": sampling, "bootstrap": 2000}
    study = Study(profile.model_copy(update=changed))
    heads = study.find_heads(lvlm).heads
    found = resolve(study, lvlm, dataset)
    trained = [replace(found, predictions=study.predicted(lvlm, found.run, [seed])) for seed in range(seeds)]
    row = {
        "edition": EDITION,
        "design": design,
        **variant_row(trained),
        "train_queries": train,
        "auroc": heads["auroc"].max(),
        "auroc_within_query": heads["auroc_within_query"].max(),
    }
    keys = ["lvlm", "edition", "design", "temperature", "top_p"]
    rows = pd.read_csv(log) if log.exists() else pd.DataFrame(columns=keys)
    same = (rows[keys] == [row[key] for key in keys]).all(axis=1)
    with replacing(log) as aside:
        pd.concat([rows[~same], pd.DataFrame([row])]).round(4).to_csv(aside, index=False)
    typer.echo(pd.Series(row).to_string())


if __name__ == "__main__":
    typer.run(main)
