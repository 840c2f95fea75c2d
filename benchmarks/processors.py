"""How many choices another processor would make differently: one profile under other instruction sets and threads.

    python -m benchmarks.processors --profile smoke            # every setting, against this machine's own
    python -m benchmarks.processors --profile smoke --dtype float32
    python -m benchmarks.processors --profile embedded --setting avx2-1

A setting holds torch, oneDNN, MKL, OpenBLAS and numpy to an older instruction set, and OpenMP to a number of threads:
each adds up floats in an order of its own, as another processor does. Every setting samples, trains and chooses anew
in a process and a folder of its own (data/runs/processors), so that differences grow as they would elsewhere. Writes
reports/benchmarks/processors.csv, a row a profile, edition of the embedded LVLMs, dtype and setting. Two settings of
the smoke profile side by side took five to eight minutes on 2 cores.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from acs_lib import paths
from acs_lib.core.files import replacing
from acs_lib.profiles import load_profile
from acs_lib.study.experiment import experiments
from acs_lib.study.stages import Study
from acs_lib.study.training_variants import EDITION

OWN = "own-1"  # what the others are compared with
SETS = {
    "own": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell", "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    },
    "default": {
        "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    },
    "compatible": {"MKL_CBWR": "COMPATIBLE"},  # the code path that MKL takes on processors that are not Intel's
}  # fmt: skip
SETTINGS = {f"{name}-{threads}": (held, threads) for name, held in SETS.items() for threads in (1, 2)}
FRAMES = ("answers", "choices", "predictions", "heads")


def folder_of(profile: str, dtype: str, setting: str) -> Path:
    """Where what one setting gave is kept."""
    return paths.RUNS / "processors" / f"{profile}-{dtype}" / setting


def compute(name: str, dtype: str, setting: str) -> None:
    """Sample, train and choose as the profile does; writes FRAMES into the setting's folder."""
    profile, folder = load_profile(name), folder_of(name, dtype, setting)
    lvlms = tuple(lvlm.model_copy(update={"dtype": dtype}) for lvlm in profile.lvlms)
    study = Study(profile.model_copy(update={"name": str(folder.relative_to(paths.RUNS)), "lvlms": lvlms}))
    kept = {frame: [] for frame in FRAMES}
    for lvlm, dataset, split, run in study.runs():
        records = run.records()[["query_id", "candidate", "text"]]
        kept["answers"].append(records.assign(lvlm=lvlm, dataset=dataset, split=split))
    kept["heads"] = [study.find_heads(lvlm).heads for lvlm in lvlms]
    for e in experiments(study):
        kept["choices"].append(e.labelled(e.choices))
        kept["predictions"].append(e.labelled(e.predictions))
    for frame, parts in kept.items():
        with replacing(folder / f"{frame}.parquet") as aside:
            pd.concat(parts, ignore_index=True).to_parquet(aside)


def compared(name: str, dtype: str, setting: str) -> dict:
    """What differs between a setting and OWN, a row of processors.csv.

    edition: of the embedded LVLMs; dtype: float32 or float64, what they compute in;
    answers, choices, acs_learned_choices: how many there are; answers_differ: in their text; candidates_differ: choices
    of another candidate; boxes_differ: of one with another IoU, of all methods and of ACS-Learned; acc50_moves_by: the
    most that Acc@0.5 (0-1) of any method and column moved; predicted_iou_moves_by (0-1): most and median over answers;
    heads_differ: heads in one D_c alone; auroc_moves_by: the most that a head's AUROC moved
    """
    ours, own = (
        {frame: pd.read_parquet(folder_of(name, dtype, which) / f"{frame}.parquet") for frame in FRAMES}
        for which in (setting, OWN)
    )
    row = {"profile": name, "edition": EDITION, "dtype": dtype, "setting": setting}
    keys = ["lvlm", "dataset", "split", "query_id", "candidate"]
    answers = ours["answers"].merge(own["answers"], on=keys, how="outer", suffixes=("", "_own"))
    row |= {"answers": len(answers), "answers_differ": int((answers["text"] != answers["text_own"]).sum())}
    keys = ["lvlm", "dataset", "method", "query_id"]
    choices = ours["choices"].merge(own["choices"], on=keys, suffixes=("", "_own"))
    learned, moved = choices["method"] == "ACS-Learned", choices["iou"] != choices["iou_own"]
    row |= {
        "choices": len(choices),
        "candidates_differ": int((choices["candidate"] != choices["candidate_own"]).sum()),
        "boxes_differ": int(moved.sum()),
        "boxes_differ_acs_learned": int((moved & learned).sum()),
        "acs_learned_choices": int(learned.sum()),
    }
    rates = choices.groupby(["lvlm", "dataset", "method"])[["hit", "hit_own"]].mean()
    row["acc50_moves_by"] = (rates["hit"] - rates["hit_own"]).abs().max()
    found = ours["predictions"].merge(
        own["predictions"], on=["lvlm", "dataset", "query_id", "candidate"], suffixes=("", "_own")
    )
    row["predicted_iou_moves_by"] = (found["predicted_iou"] - found["predicted_iou_own"]).abs().max()
    row["predicted_iou_moves_by_median"] = (found["predicted_iou"] - found["predicted_iou_own"]).abs().median()
    heads = ours["heads"].merge(own["heads"], on=["lvlm", "layer", "head"], suffixes=("", "_own"))
    row["heads_differ"] = int((heads["selected"] != heads["selected_own"]).sum())
    row["auroc_moves_by"] = (heads["auroc"] - heads["auroc_own"]).abs().max()
    return row


def main(
    profile: str = "smoke",
    setting: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SETTINGS)}; by default all.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; by default the profile's.")] = None,
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    dtype = dtype or load_profile(profile).lvlms[0].dtype
    if child:
        compute(profile, dtype, setting[0])
        return
    for name in dict.fromkeys([OWN, *(setting or SETTINGS)]):
        if not (folder_of(profile, dtype, name) / f"{FRAMES[-1]}.parquet").exists():
            held, threads = SETTINGS[name]
            options = ["--profile", profile, "--dtype", dtype, "--setting", name, "--child"]
            environment = {**os.environ, **held, "OMP_NUM_THREADS": str(threads)}
            command = [sys.executable, "-m", "benchmarks.processors", *options]
            subprocess.run(command, env=environment, cwd=paths.ROOT, check=True)
    rows = pd.DataFrame([compared(profile, dtype, name) for name in setting or SETTINGS if name != OWN])
    typer.echo(rows.set_index("setting").T.to_string())
    path, keys = paths.REPORTS / "benchmarks" / "processors.csv", ["profile", "edition", "dtype", "setting"]
    if path.exists():
        rows = pd.concat([pd.read_csv(path), rows]).drop_duplicates(keys, keep="last")
    with replacing(path) as aside:
        rows.to_csv(aside, index=False)


if __name__ == "__main__":
    typer.run(main)
