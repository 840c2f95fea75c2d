"""TODO report.browser."""

import json

import numpy as np
import pandas as pd

from acs_lib import paths
from acs_lib.core.files import write_text
from acs_lib.method.maps import mean_share
from acs_lib.report import pictures
from acs_lib.report.encoding import webp
from acs_lib.runs.store import BOX
from acs_lib.study.examples import outcome_cases
from acs_lib.study.stages import Study


def write_browser(study: Study, lvlm, dataset, choices: pd.DataFrame, each: int = 12) -> None:
    """reports/<profile>/browser.json: test queries for the page's browser, gained, lost and unchanged ones; the
    overlay is the selected box's attention in D_c."""
    run = study.run(lvlm, dataset, "test")
    predicted = study.predictions(lvlm, dataset, "test").set_index(["query_id", "candidate"])["predicted"]
    cases = {
        case["query_id"]: (outcome, case)
        for outcome in ("gained", "lost", "unchanged")
        for case in outcome_cases(study, lvlm, dataset, choices, outcome, each)
    }
    heads = study.head_set(lvlm).heads
    overlays = {
        found.query_id: pictures.heat_image(mean_share(found.maps[[cases[found.query_id][1]["candidate"]]], heads))
        for found in run.candidates(maps=True)
        if found.query_id in cases
    }
    answers = run.records()
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
                "of": f"{lvlm.name} on {dataset.name}",
                "category": case["category"],
                "image": webp(case["image"], quality=80),
                "overlay": webp(overlays[query_id]),
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
    write_text(paths.reports(study.profile.name) / "browser.json", json.dumps(entries))


def _finite(box: np.ndarray) -> list[float] | None:
    return box.tolist() if np.isfinite(box).all() else None
