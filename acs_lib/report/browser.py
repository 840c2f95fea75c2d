"""The page's browser of test queries, as one JSON file with its pictures inlined."""

import json
from pathlib import Path

import numpy as np

from acs_lib.core.candidates import COORDINATES
from acs_lib.core.files import write_text
from acs_lib.method.maps import mean_share
from acs_lib.report import pictures
from acs_lib.report.encoding import webp
from acs_lib.report.sentences import WITH
from acs_lib.runs.store import BOX
from acs_lib.study.examples import outcome_cases
from acs_lib.study.experiment import Experiment


def write_browser(experiments: list[Experiment], folder: Path, each: int = 3) -> None:
    """`folder`/browser.json: test queries of every experiment for the page's browser, gained, lost and unchanged ones,
    `each` of a kind by study.examples.middle; the overlay is the selected box's attention in D_c, at the coordinates
    D_c is read at, as `read` says."""
    entries = [entry for e in experiments for entry in _entries(e, each)]
    write_text(Path(folder) / "browser.json", json.dumps(entries))


def _entries(e: Experiment, each: int) -> list[dict]:
    predicted = e.predictions.set_index(["query_id", "candidate"])["predicted_iou"]
    cases = {
        case["query_id"]: (outcome, case)
        for outcome in ("gained", "lost", "unchanged")
        for case in outcome_cases(e, outcome, each)
    }
    chosen = {query_id: case["candidate"] for query_id, (_, case) in cases.items()}
    heads, coordinates = e.head_set.heads, e.head_set.coordinates
    at, names = ", ".join(COORDINATES[index] for index in coordinates), ", ".join(map(str, heads))
    overlays = {
        found.query_id: pictures.heat_image(mean_share(found.maps[[chosen[found.query_id]]], heads, coordinates))
        for found in e.run.candidates(maps=True)
        if found.query_id in cases
    }
    answers = e.run.records()
    entries = []
    for query_id, (outcome, case) in cases.items():
        records = answers[(answers["query_id"] == query_id) & (answers["failure"] == "")]
        rows = [
            {
                "number": int(row["candidate"]),
                "box": row[BOX].tolist(),
                "iou": row["iou"],
                "score": float(predicted[(query_id, row["candidate"])]),
            }
            for _, row in records.iterrows()
        ]
        entries.append(
            {
                "id": query_id,
                "of": f"{e}{WITH[e.lvlm.condition or '']}",
                "category": case["category"],
                "image": webp(case["image"], quality=80),
                "overlay": webp(overlays[query_id]),
                "read": f"the selected box's at {at}, mean over the heads of D_c: {names}",
                "width": case["image"].width,
                "height": case["image"].height,
                "truth": case["truth"].tolist(),
                "greedy": {"box": _finite(case["greedy"]), "iou": case["greedy_iou"]},
                "chosen": {
                    "box": _finite(case["chosen"]),
                    "iou": case["chosen_iou"],
                    "score": float(predicted.get((query_id, case["candidate"]), np.nan)),
                },
                "candidates": rows,
                "outcome": outcome,
            }
        )
    return entries


def _finite(box: np.ndarray) -> list[float] | None:
    return box.tolist() if np.isfinite(box).all() else None
