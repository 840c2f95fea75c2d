"""D_c and the regressor of an LVLM as files: found from a COCO-format file by the stages that the notebooks run
(`acs_lib.study.stages`), or taken over from a finished run of a profile. With a card and their digests they make a
folder that can be handed on (docs/calibration.md)."""

import functools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from acs_lib import paths
from acs_lib.core.files import SUMS, replacing, write_sums, write_text
from acs_lib.core.images import picture_id, read_image
from acs_lib.datasets import coco, phrases
from acs_lib.datasets.splits import load_split
from acs_lib.lvlms.checkpoint import CALIBRATED, calibration_folder, is_embedded, lvlm_digest, pinned
from acs_lib.lvlms.load import load_spec
from acs_lib.method.heads import HeadSet, in_group, separating_heads
from acs_lib.method.label_free import COUNT, agreeing
from acs_lib.method.origin import Origin
from acs_lib.method.regressor import MAP_SIDE
from acs_lib.method.thresholds import EFFORT, RISK, Thresholds
from acs_lib.profiles import (
    BeyondSpec,
    DatasetSpec,
    HeadsSpec,
    LVLMSpec,
    Profile,
    Sampling,
    Split,
    SplitSpec,
    sampling_of,
)
from acs_lib.runs.collect import run_folder
from acs_lib.runs.store import fill
from acs_lib.study.card import CARD, make_card
from acs_lib.study.effort import calibrate_effort
from acs_lib.study.risk import calibrate_risk, calibration_set
from acs_lib.study.stages import Study

NAME = "calibrate"  # of the profile, and of its folder of runs
SHARES = {"train": (0.0, 0.7), "validation": (0.7, 0.85), "calibration": (0.85, 1.0)}  # of the images: validation
# chooses the number of heads and the regressor's epoch, calibration when to answer
SMALL = 0.05  # share of the image: the paper's threshold, as we infer it (see profiles/paper.yaml)
LEAST = 8  # queries in either split, below which nothing can be told


def make_profile(
    lvlm: LVLMSpec, annotations: Path, images: Path, queries: int = 2000, small: float = SMALL,
    layers: int | None = None, samples: int = 10, temperature: float | None = None, top_p: float | None = None,
    seed: int = 0, units: str | None = None,
) -> Profile:  # fmt: skip
    """The profile of a calibration: one LVLM, one COCO-format file or file of phrases, split by image.

    queries: at most so many objects to train on, and a quarter of it to validate with, and to calibrate on
    small: the largest share of the image's area that counts as small (only small objects are taken)
    layers: how many D_c may lie in, by default half of the LVLM's, 10 at most
    temperature, top_p: by default those that `ground` samples with
    units: of the boxes of a file of phrases (see datasets.phrases); None for a COCO-format file
    FileNotFoundError where a file or folder is not there, ValueError where there are too few small objects.
    """
    annotations, images = Path(annotations).resolve(), Path(images).resolve()
    if not annotations.is_file():
        raise FileNotFoundError(f"there is no annotation file at {annotations}; give one in COCO's format")
    if not images.is_dir():
        raise FileNotFoundError(f"there is no folder of images at {images}")
    read = phrases.read_phrases(annotations, images, units) if units else coco.read_annotations(annotations)
    found, _ = coco.find_queries(annotations.stem, annotations, read, images, small, small)
    if found.empty or not (found["size"] == "small").any():
        raise ValueError(
            f"{annotations} has no small object (up to {small:.1%} of its image) whose name occurs once in its image"
        )
    where = {"annotations": str(annotations), "folder": str(images), "units": units}
    fewer = max(LEAST, queries // 4)
    limits = {"train": {"small": queries}, "validation": {"small": fewer}}
    splits = {name: SplitSpec(**where, share=SHARES[name], queries=limit) for name, limit in limits.items()}
    calibration = SplitSpec(**where, share=SHARES["calibration"], queries={"small": fewer, "absent": fewer})
    dataset = DatasetSpec(name=annotations.stem, kind="phrases" if units else "coco", splits=splits)
    profile = Profile(
        name=NAME, description=f"D_c of {lvlm.name} from {annotations.name}", duration="not measured", lvlms=(lvlm,),
        datasets=(dataset,), train_on=dataset.name,
        small=small, large=small, batch_queries=1, map_side=MAP_SIDE,
        sampling=sampling_of(lvlm.name, samples, temperature, top_p, seed),
        heads=HeadsSpec(layers=(layers or min(10, -(-load_spec(lvlm).layers // 2)),)),
        beyond=BeyondSpec(calibration=calibration),
    )  # fmt: skip
    counts = {split: _small_objects(profile, dataset, split) for split in splits}
    if min(counts.values()) < LEAST:
        raise ValueError(
            f"{annotations} has {counts['train']} small objects to train on and {counts['validation']} to validate "
            f"with; {LEAST} each are the least, some thousands are better"
        )
    if _small_objects(profile, calibration_set(Study(profile)), "calibration") < LEAST:  # too few to promise anything
        return profile.model_copy(update={"beyond": BeyondSpec()})
    return profile


def _small_objects(profile: Profile, dataset: DatasetSpec, split: Split) -> int:
    """How many questions about small objects a split has; 0 where no image falls into its share."""
    try:
        queries, _ = load_split(profile, dataset, split)
    except ValueError:
        return 0
    return int((queries["size"] == "small").sum())


def fit_heads(profile: Profile) -> tuple[HeadSet, pd.DataFrame, float]:
    """D_c, its heads (layer, head, auroc, auroc_within_query) and the regressor's Pearson r on the validation images.

    The answers, the regressor and D_c stay in data/runs/calibrate; what is there already is reused. ValueError if the
    LVLM's boxes are all alike in quality.
    """
    study, (lvlm,) = Study(profile), profile.lvlms
    for split in ("train", "validation"):
        records = study.run(lvlm, study.train_set, split).records()
        if records.empty or not records["iou"].std() > 0:
            raise ValueError(
                f"all answers of {lvlm.name} to the {split} images are equally good or bad: nothing to learn from"
            )
    finding = study.find_heads(lvlm)
    if not finding.heads["auroc"].notna().any():
        raise ValueError(
            f"{lvlm.name} gave no good box (IoU over 0.6) or no miss (IoU 0) to tell heads apart by; give more images"
        )
    chosen = finding.heads[finding.heads["selected"]]
    return finding.head_set, chosen.drop(columns=["lvlm", "selected"]), float(study.fit_history(lvlm)["pearson"].max())


def fit_thresholds(profile: Profile) -> list[Thresholds]:
    """When to answer (risk.json), of each LVLM of a finished run of a profile that names images to calibrate on, and
    when to stop sampling (effort.json), on its validation images. ValueError before D_c is found."""
    study, found = Study(profile), []
    for lvlm in profile.lvlms:
        if study.head_set(lvlm) is None:
            raise ValueError(f"there is no D_c of {lvlm.name} in this run; run acs run --profile {profile.name} first")
        found += [calibrate_risk(study, lvlm)] if profile.beyond.calibration else []
        found.append(calibrate_effort(study, lvlm))
    return found


def unlabelled_queries(images: Sequence[Path], objects: Sequence[str]) -> pd.DataFrame:
    """A query (see datasets.coco) about each object in each image, without a box (NaN) and of the size 'unlabelled'.
    Ids follow from the pixels (`picture_id`), so that answers do not depend on where the images lie; an image that is
    there twice is asked about once. FileNotFoundError or ValueError for an image that cannot be read."""
    rows = []
    for path in images:
        picture = read_image(path)
        image_id, (width, height) = picture_id(picture), picture.size
        for wanted in objects:
            rows.append({
                "query_id": f"{image_id}/{wanted}", "image_id": image_id, "image": str(path), "width": width,
                "height": height, "category": wanted, **dict.fromkeys(coco.TRUTH, math.nan), "area_fraction": math.nan,
                "size": "unlabelled",
            })  # fmt: skip
    return pd.DataFrame(rows).drop_duplicates("query_id", ignore_index=True)


def find_label_free(
    lvlm: LVLMSpec, images: Sequence[Path], objects: Sequence[str], how: Sampling, out: Path | None = None
) -> tuple[Path, HeadSet, dict[str, int]]:
    """head_set.json of an LVLM by its own consensus about some objects in some images (`method.label_free`), written to
    the folder `out`, by default to where `ground` finds it; the head set; and of how many questions and answers it is,
    and how many of these agree with the consensus or lie apart from it.

    The answers stay in data/runs/calibrate-label-free, so that an interrupted search goes on. Name objects that are in
    most of the images: of others an LVLM has no consensus. ValueError where nothing can be told.
    """
    from acs_lib.runs import answer  # late: it brings transformers

    lvlm = pinned(lvlm)
    queries, weights, settings = unlabelled_queries(images, objects), lvlm_digest(lvlm), (lvlm, how, MAP_SIDE)
    run = fill(
        paths.RUNS / f"{NAME}-label-free" / lvlm.name, queries, functools.partial(answer.answer_stored, *settings),
        {"lvlm": lvlm.model_dump(), "weights": weights, "sampling": how.model_dump()},
        functools.partial(answer.stored_bytes, *settings, queries), 1, f"{lvlm.name} on {len(images)} images",
    )  # fmt: skip
    entropy, iou, query = agreeing(run.candidates())
    heads, coordinates = separating_heads(entropy, iou, query, HeadsSpec.model_fields["coordinates"].default, COUNT)
    origin = Origin(weights=weights, question=lvlm.question, sampling=how)
    found = HeadSet(lvlm.name, f"the consensus about {len(images)} images", heads, coordinates, origin)
    folder = Path(out) if out else calibration_folder(lvlm)
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder / "head_set.json")
    for name in (RISK, EFFORT):  # of another head set
        (folder / name).unlink(missing_ok=True)
    counts = {"questions": len(queries), "answers": len(iou)}
    counts |= {group: int(in_group(iou, group).sum()) for group in ("high", "zero")}
    return folder / "head_set.json", found, counts


def publish(
    profile: Profile, folder: Path | None = None, regressor: bool = True, licence: str | None = None
) -> list[Path]:
    """Copy D_c, (the first seed of) the regressor and the thresholds of a finished run to `folder`, by default to where
    `ground` finds them, with a card (README.md) and SHA256SUMS; returns the new files. Beside the weights of an
    embedded LVLM, which have a card, there is none. Thresholds that were there and have no new ones are deleted, since
    they were another D_c's. `licence`: what the card states. FileNotFoundError if the run has not come to notebook
    04."""
    written = []
    for lvlm in profile.lvlms:
        found = paths.runs(profile.name) / lvlm.name
        files = dict(zip(CALIBRATED, (found / "head_set.json", found / "regressor-0.safetensors")))
        if not regressor:
            del files["regressor.safetensors"]
        if missing := [path for path in files.values() if not path.is_file()]:
            raise FileNotFoundError(f"there is no {missing[0]}; run acs run --profile {profile.name} first")
        head_set = HeadSet.load(files["head_set.json"], lvlm.name)
        target = Path(folder) if folder else calibration_folder(lvlm)
        target.mkdir(parents=True, exist_ok=True)
        for name in (RISK, EFFORT):
            (target / name).unlink(missing_ok=True)
            if (found / name).is_file():
                files[name] = found / name
        for name, path in files.items():
            with replacing(target / name) as aside:
                shutil.copyfile(path, aside)
        names = list(files)
        if folder or not is_embedded(lvlm):
            write_text(target / CARD, _card(profile, lvlm, head_set, regressor, licence))
            write_sums(target, [*files, CARD])
            names += [CARD, SUMS]
        written += [target / name for name in names]
    return written


def _card(profile: Profile, lvlm: LVLMSpec, head_set: HeadSet, regressor: bool, licence: str | None) -> str:
    found = paths.runs(profile.name) / lvlm.name
    dataset = next(dataset for dataset in profile.datasets if dataset.name == profile.train_on)
    lists = {split: run_folder(profile, lvlm, dataset, split) / "queries.parquet" for split in ("train", "validation")}
    counts = {split: len(pd.read_parquet(path, columns=["query_id"])) for split, path in lists.items() if path.exists()}
    heads = pd.read_csv(found / "heads.csv") if (found / "heads.csv").is_file() else None
    fit = Study(profile).fit_history(lvlm) if regressor and (found / "regressor-0.json").is_file() else None
    return make_card(profile, lvlm, head_set, counts, heads, fit, licence)
