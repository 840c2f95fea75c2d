"""All instances: how precisely several lists of boxes find all objects of a category, by what their boxes are scored
with (`method.instances`), as COCO's average precision (`evaluation.precision`).

Every category that an image holds is asked for, so that a box of a category that is not there is never counted.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools.coco import COCO

from acs_lib import paths
from acs_lib.core.candidates import COORDINATES, Candidates
from acs_lib.core.files import digest, query_key
from acs_lib.core.images import read_annotated_image
from acs_lib.core.progress import progress
from acs_lib.datasets import coco
from acs_lib.datasets.image_files import find_images
from acs_lib.datasets.splits import data_digest, in_share, split_files
from acs_lib.evaluation.bootstrap import INTERVAL
from acs_lib.evaluation.precision import (
    MEASURES,
    RECALLS,
    SMALL,
    curve,
    drawn_precision,
    evaluated,
    measured,
    read_results,
    write_results,
)
from acs_lib.lvlms.checkpoint import lvlm_digest
from acs_lib.method import regressor
from acs_lib.method.baselines import SELECTORS, slug
from acs_lib.method.heads import HeadSet
from acs_lib.method.instances import QUESTION, instances, listed
from acs_lib.method.selection import acs_free
from acs_lib.profiles import Profile
from acs_lib.study.experiment import Experiment, code_of, labelled
from acs_lib.study.stages import Study, frame_digest, kept

LIKELIHOOD, MTLA, FREE, LEARNED = "mean token log-prob", "mass inside the box (MTLA)", "ACS-Free", "ACS-Learned"
SCORES = (LIKELIHOOD, "self-certainty", MTLA, FREE, LEARNED)  # columns of a frame of listed boxes
GREEDY, VOTES = "greedy list", "votes"
METHODS = (GREEDY, VOTES, *SCORES)
DRAWS = 200  # of images; each is an evaluation of its own
# AP of MTLA with N = 16 and of the greedy list, arXiv 2607.05978: another LVLM and other data than those measured here,
# never to stand in one column with them
PUBLISHED_AP = {GREEDY: 20.4, MTLA: 36.9}
QUESTIONS = ["image_id", "image", "width", "height", "category_id", "category"]


def list_questions(content: COCO, folder: Path) -> pd.DataFrame:
    """QUESTIONS: one row an image and category that it holds (not as a crowd alone); images that are not under the
    folder are left out."""
    files = find_images(folder, [image["file_name"] for image in content.imgs.values()])
    rows = []
    for image_id, image in content.imgs.items():
        path = files[image["file_name"]][0]
        there = {a["category_id"] for a in content.imgToAnns[image_id] if not a.get("iscrowd")}
        for category_id in sorted(there) if path is not None else ():
            name = content.cats[category_id]["name"].strip()
            rows.append((image_id, str(path), image["width"], image["height"], category_id, name))
    return pd.DataFrame(rows, columns=QUESTIONS)


def scored(found: Candidates, head_set: HeadSet, model: regressor.AttentionIoURegressor) -> dict[str, np.ndarray]:
    """SCORES -> [n] of the listed boxes, higher is better."""
    known = {name: SELECTORS[name].score for name in SCORES if name in SELECTORS}
    known[FREE] = acs_free(head_set.heads, head_set.coordinates).score
    known[LEARNED] = lambda c: regressor.predicted_iou(model, c)
    return {name: score(found) if len(found) else np.zeros(0) for name, score in known.items()}


def listed_boxes(study: Study, e: Experiment, questions: pd.DataFrame, data: str) -> pd.DataFrame:
    """image_id, category_id, answer (0 is the greedy list), x1, y1, x2, y2 in pixels and SCORES, one row a box that an
    answer of the experiment's LVLM lists; kept in the study's runs. `data`: a digest of the images."""
    profile, head_set, model = study.profile, e.head_set, study.fit(e.lvlm)
    how = profile.sampling.model_copy(update={"max_new_tokens": profile.beyond.list_tokens})

    def ask() -> pd.DataFrame:
        from acs_lib.lvlms.load import load_spec  # late: they bring transformers
        from acs_lib.method.sampling import generate

        lvlm, parts = copy.copy(load_spec(e.lvlm)), []
        lvlm.question = QUESTION
        with progress(f"lists of {e.lvlm.name}", len(questions)) as told:
            for (path, width, height), rows in questions.groupby(["image", "width", "height"], sort=False):
                prompts = lvlm.prompts(read_annotated_image(path, width, height), list(rows["category"]))
                ids = [f"{row.image_id}/all {row.category}" for row in rows.itertuples()]
                answers = generate(lvlm, prompts, [query_key(name) for name in ids], how)
                for row, name, prompt, lists in zip(rows.itertuples(), ids, prompts, answers):
                    found, origin = listed(lvlm, prompt, name, row.category, lists, how.row, profile.map_side)
                    frame = pd.DataFrame(found.boxes, columns=list(COORDINATES)).assign(answer=origin)
                    frame = frame.assign(**scored(found, head_set, model))
                    parts.append(frame.assign(image_id=row.image_id, category_id=row.category_id))
                told.update(len(rows))
        return pd.concat(parts, ignore_index=True)

    weights = digest([value.tolist() for value in model.state_dict().values()])
    spec = [head_set.heads, head_set.coordinates, weights, frame_digest(questions.drop(columns="image"))]
    key = digest([lvlm_digest(e.lvlm), how.model_dump(), data, spec, code_of(__name__)])
    return kept(paths.runs(profile.name) / e.lvlm.name / "listed-boxes", key, ask)


def results_of(boxes: pd.DataFrame, method: str, answers: int) -> list[dict]:
    """Detections in COCO's results format of one of METHODS, of boxes as `listed_boxes` gives them and so many answers
    a question, the greedy one included. The greedy list is scored by its boxes' likelihood; boxes without a score are
    left out."""
    found = []
    for (image_id, category_id), rows in boxes.groupby(["image_id", "category_id"], sort=False):
        if method == GREEDY:
            table = rows[rows["answer"] == 0].assign(score=rows[LIKELIHOOD])
        else:
            by = LIKELIHOOD if method == VOTES else method
            table = instances(
                rows[list(COORDINATES)].to_numpy(), rows[by].to_numpy(float), rows["answer"].to_numpy(), answers
            )
            table = table.assign(score=table["votes"]) if method == VOTES else table
        for x1, y1, x2, y2, score in table[[*COORDINATES, "score"]].dropna().to_numpy(float).tolist():
            bbox = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": int(image_id), "category_id": int(category_id), "bbox": bbox, "score": score})
    return found


def precision_tables(
    truth: COCO, results: Mapping[str, Sequence[dict]], images: Sequence[int], small: float, draws: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """method, n (images), objects, boxes, MEASURES (0-1) and the difference of each with GREEDY (delta_<measure>), with
    95 % intervals over images, paired; of detections in COCO's results format by method, GREEDY among them. And their
    curves: method, recall, precision (0-1, at IoU 0.5), n.

    Images drawn with replacement are fewer different ones, of which average precision is higher: draws say how wide an
    interval is, and it lies around what was measured.
    """
    matches = {name: evaluated(truth, found, images, small) for name, found in results.items()}
    points = {name: measured(found) for name, found in matches.items()}
    drawn = {name: drawn_precision(found, len(images), draws) for name, found in matches.items()}
    objects = sum(not a.get("iscrowd") for image in images for a in truth.imgToAnns[image])
    rows = []
    for name, found in results.items():
        row = {"method": name, "n": len(images), "objects": objects, "boxes": len(found)}
        for prefix, point, values in (
            ("", points[name], drawn[name]),
            ("delta_", points[name] - points[GREEDY], drawn[name] - drawn[GREEDY]),
        ):
            for place, measure in enumerate(MEASURES):
                known = values[np.isfinite(values[:, place]), place]
                ends = point[place] + np.quantile(known, INTERVAL) - known.mean() if len(known) else (np.nan,) * 2
                names = (prefix + measure, f"{prefix}{measure}_lo", f"{prefix}{measure}_hi")
                row |= dict(zip(names, map(float, (point[place], *ends))))
        rows.append(row)
    curves = [
        pd.DataFrame({"method": name, "recall": RECALLS, "precision": curve(found), "n": len(images)})
        for name, found in matches.items()
    ]
    return pd.DataFrame(rows), pd.concat(curves, ignore_index=True)


def small_area(content: COCO, profile: Profile) -> float:
    """Below how many pixels an object is small: the profile's share of the image where all images are of one size, else
    COCO's own 32 x 32."""
    sizes = {(image["width"], image["height"]) for image in content.imgs.values()}
    return profile.small * float(np.prod(sizes.pop())) if len(sizes) == 1 else SMALL


def instances_tables(
    study: Study, experiments: Sequence[Experiment], others: Mapping[str, str | Path] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """instances.csv and instances_curve.csv: `precision_tables` of the experiments' LVLMs on the images of
    `profile.beyond.lists` (its test split's share), with METHODS and with other detectors' results in COCO's format
    (name -> file), of these too only what was asked for: categories that the image holds. The detections of METHODS are
    written beside the LVLM's runs, in the same format.

    ValueError for a profile that names no images for it.
    """
    dataset = study.profile.beyond.lists
    if dataset is None:
        raise ValueError(f"the profile {study.profile.name} names no images to list (beyond: lists)")
    annotations, folder = split_files(dataset, "test")
    truth, data = coco.read_annotations(annotations), data_digest(dataset, "test")
    questions, tables, curves = list_questions(truth, folder), [], []
    questions = questions[in_share(questions["image_id"], dataset.splits["test"].share)]
    images, draws = sorted(questions["image_id"].unique().tolist()), min(DRAWS, study.profile.bootstrap)
    asked = set(zip(questions["image_id"], questions["category_id"]))
    given = {
        name: [box for box in read_results(path) if (box["image_id"], box["category_id"]) in asked]
        for name, path in (others or {}).items()
    }
    for lvlm, e in {e.lvlm: e for e in experiments}.items():
        boxes, answers = listed_boxes(study, e, questions, data), study.profile.sampling.samples + 1
        results = {method: results_of(boxes, method, answers) for method in METHODS}
        target = paths.runs(study.profile.name) / lvlm.name / "detections"
        target.mkdir(parents=True, exist_ok=True)
        for method, found in results.items():
            write_results(target / f"{slug(method)}.json", found)
        found = precision_tables(truth, results | given, images, small_area(truth, study.profile), draws)
        for frame, kept_in in zip(found, (tables, curves)):
            kept_in.append(labelled(frame, lvlm, dataset))
    return pd.concat(tables, ignore_index=True), pd.concat(curves, ignore_index=True)
