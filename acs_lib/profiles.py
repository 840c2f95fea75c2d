"""A profile: everything that a run depends on, in one YAML file of `acs_lib/profiles/`."""

import math
import re
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from acs_lib import paths
from acs_lib.core.files import read_text

Split = Literal["train", "validation", "calibration", "test"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_none(value: object) -> bool:
    return value is None


class LVLMSpec(Strict):
    """Where an LVLM comes from: a folder under the project's root, or a hub name with a pinned revision (without
    one: the commit that `main` was when it was fetched).

    condition: of an embedded LVLM, whether it was taught the habit or is its control, the one from before, whose name
    is the other's with -plain.

    Of its image processor a profile can set max_tiles (InternVL, LFM2-VL: tiles that an image is cut into) or
    max_pixels (Qwen: of the resized image); without them it is as the checkpoint has it.
    """

    name: str
    source: str
    condition: Literal["habit", "plain"] | None = Field(None, exclude_if=_is_none)
    revision: str | None = None
    dtype: str = "auto"
    question: str = "Detect the {object} in the image."
    max_tiles: int | None = Field(None, ge=1, exclude_if=_is_none)  # unset, it is no part of a run's key
    max_pixels: int | None = Field(None, ge=1, exclude_if=_is_none)

    @property
    def limits(self) -> dict[str, int]:
        """What is set of max_tiles and max_pixels."""
        return self.model_dump(include={"max_tiles", "max_pixels"})


class SplitSpec(Strict):
    """One split. Rendered worlds: `images` and `seed`. Annotation files: `annotations`, `folder` and, where two splits
    share a file, the `share` of its images [from, to) by a hash of their ids; of a file of phrases also the `units` of
    its boxes (see acs_lib.datasets.phrases). `queries` limits the number of queries of each size; a size that is not
    named is left out. 'absent' ones are about objects that are not in the image."""

    images: int | None = None
    seed: int | None = None
    annotations: str | None = None
    folder: str | None = None
    units: str | None = Field(None, exclude_if=_is_none)
    share: tuple[float, float] = (0.0, 1.0)
    queries: dict[Literal["small", "medium", "large", "absent"], int]


class DatasetSpec(Strict):
    """Images with known boxes: a rendered world (its name is the world's), annotation files in COCO's format, or files
    of phrases."""

    name: str
    kind: Literal["scenes", "coco", "phrases"]
    splits: dict[Split, SplitSpec]

    @model_validator(mode="after")
    def _with_units(self) -> Self:
        if any((split.units is not None) != (self.kind == "phrases") for split in self.splits.values()):
            raise ValueError("a dataset of the kind phrases says the units of its boxes in each split, others say none")
        return self


class Sampling(Strict):
    """How answers are drawn. `row` says which attention row stands for a number: the mean over its digits' tokens
    ('own'), the mean over the tokens that predict these ('predicting'), that of its last digit's token ('last'), or
    that of the token after it, a comma or a bracket ('after')."""

    samples: int = Field(10, ge=0)  # besides the greedy answer
    temperature: float = Field(0.5, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(64, ge=1)  # an answer is cut there
    seed: int = 0
    row: Literal["own", "predicting", "last", "after"] = "own"


class RegressorSpec(Strict):
    """See acs_lib.method.regressor."""

    width: int = 48
    epochs: int = 5
    batch: int = 32
    lr: float = 5e-4
    seeds: int = 1


class HeadsSpec(Strict):
    """D_c: over which coordinates (0-3: x1, y1, x2, y2) entropy may be averaged (training queries choose); and what
    validation chooses from (by Acc@0.5 of ACS-Free): how many layers attribution keeps, how many heads, and whether
    they are ordered by separation over all answers ('pooled') or inside queries ('within'; the paper's words fit
    either)."""

    layers: tuple[int, ...]
    counts: tuple[int, ...] = (1, 2, 3, 5, 8)
    separations: tuple[Literal["pooled", "within"], ...] = ("pooled", "within")
    coordinates: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3), (0, 2), (0,), (1,), (2,), (3,))


class AblationsSpec(Strict):
    """What notebook 09 varies besides what any run's stored candidates give (see study.ablations). Every value of
    `temperatures`, `top_ps`, `rows` and `trained_on` is sampled anew, with as many queries as the profile has. A
    dataset besides `train_on` that has a train split gets heads and a regressor of its own, for this comparison alone.
    """

    widths: tuple[int, ...] = ()  # of the regressor
    train_shards: tuple[int, ...] = ()  # the first so many shards (of 64 queries) of the train split
    temperatures: tuple[float, ...] = ()
    top_ps: tuple[float, ...] = ()
    rows: tuple[Literal["own", "predicting", "last", "after"], ...] = ()
    samples: int = 0  # the largest N of 1, 2, ...; the profile's own if that is larger
    trained_on: tuple[Literal["medium", "large"], ...] = ()


class SeedsSpec(Strict):
    """Over how many seeds of each source of randomness the spread of the results is shown (see study.seeds); 0: not
    shown (sampling), or the first alone (regressor). Every seed of sampling samples the test splits' small objects once
    more, every one of the regressor trains one."""

    sampling: int = Field(0, ge=0)
    regressor: int = Field(0, ge=0)


class BeyondSpec(Strict):
    """What notebook 10 measures of what is not in the paper; what is left out is not measured."""

    zooms: tuple[float, ...] = ()  # how many times closer the second look is
    zoomed: int = 0  # small test objects of each dataset that are looked at again
    rendered: DatasetSpec | None = None  # test scenes of train_on, rendered without more detail than a look shows
    lists: DatasetSpec | None = None  # the images whose objects are all asked for: its test split
    list_tokens: int = 512  # of a list, at most
    calibration: SplitSpec | None = None  # of `train_on`: what the promises are calibrated on, and nothing is chosen by
    absent: int = 0  # questions about objects that are not there, of each test split
    alphas: tuple[float, ...] = (0.05, 0.1, 0.2)  # of the promises
    delta: float = 0.1
    label_free: tuple[int, ...] = ()  # images that heads are found on
    knocked: int = 0  # small test objects that are asked about without some heads


class GPUSpec(Strict):
    """What the plan (acs_lib.runs.plan) reckons with. Peak figures are NVIDIA's data sheet of the A100 SXM 80 GB (dense
    bfloat16, HBM2e); the shares of the peak that are reached are assumptions, for transformers without a compiler."""

    name: str = "A100 SXM 80 GB"
    tflops: float = Field(312, gt=0)
    bandwidth: float = Field(2039, gt=0)  # GB/s
    memory: float = Field(80, gt=0)  # GB
    compute_share: float = Field(0.4, gt=0, le=1)  # of tflops, in the vision tower and the prefill
    bandwidth_share: float = Field(0.3, gt=0, le=1)  # of bandwidth, while decoding


class Profile(Strict):
    """One file of `acs_lib/profiles`; where a setting is left out, the default below holds."""

    name: str
    description: str
    duration: str
    lvlms: tuple[LVLMSpec, ...]
    datasets: tuple[DatasetSpec, ...]
    train_on: str
    small: float = 0.01
    large: float = 0.05
    sampling: Sampling
    pool: Literal["sampled", "all"] = "sampled"
    p_true: bool = False  # ask every LVLM that can say Yes and No about each of its answers to the test splits
    batch_queries: int = 16
    map_side: int | None = Field(None, ge=1)  # maps are averaged to at most so many rows and columns
    gpu: GPUSpec | None = None
    plan_here: bool = False  # state the cost beforehand as this machine would have it, from a second's measurement
    regressor: RegressorSpec = RegressorSpec()
    heads: HeadsSpec
    ablations: AblationsSpec = AblationsSpec()
    seeds: SeedsSpec = SeedsSpec()
    beyond: BeyondSpec = BeyondSpec()
    bootstrap: int = 10_000
    notebooks: tuple[str, ...] = ("01", "02", "03", "04", "05", "06", "08")

    @property
    def costly_draws(self) -> int:
        """Draws of the bootstraps that take long."""
        return min(1000, self.bootstrap)


def available() -> dict[str, Path]:
    """Profile name -> file."""
    return {path.stem: path for path in sorted(paths.PROFILES.glob("*.yaml"))}


FIRST = re.compile(r"(?P<profile>.+)-first-(?P<limit>[1-9][0-9]*)")


def profile_file(name: str) -> Path:
    """The YAML file of a profile; ValueError lists the valid names."""
    found, first = available(), FIRST.fullmatch(name)
    base = first["profile"] if first and name not in found else name
    if base not in found:
        raise ValueError(f"unknown profile {name!r}; choose one of {', '.join(found)}")
    return found[base]


def load_profile(name: str) -> Profile:
    """Read a profile; ValueError lists the valid names, or says which setting is wrong (the profile's name is its
    file's, as are the names of its folders).

    `<profile>-first-N` is the profile with at most N queries of each size in each split: a first look, with run
    directories and a report of its own.
    """
    path = profile_file(name)
    profile = Profile.model_validate(yaml.safe_load(read_text(path)))
    if profile.name != path.stem:
        raise ValueError(f"{path} names itself {profile.name!r}; write name: {path.stem}, or rename the file")
    if name == path.stem:
        return profile
    content, limit = profile.model_dump(), int(name.rpartition("-")[2])
    content["name"] = name
    for dataset in content["datasets"]:
        for split in dataset["splits"].values():
            split["queries"] = {size: min(count, limit) for size, count in split["queries"].items()}
    return Profile.model_validate(content)


def known_lvlms() -> dict[str, LVLMSpec]:
    """Name -> LVLM of every profile, the embedded one first; of several of a name the first, since the profile smoke,
    which comes last, computes in float64."""
    known: dict[str, LVLMSpec] = {}
    for name in available():
        for spec in load_profile(name).lvlms:
            known.setdefault(spec.name, spec)
    return known


def sampling_of(
    lvlm: str, samples: int = 10, temperature: float | None = None, top_p: float | None = None, seed: int = 0,
    usual: Sampling | None = None,
) -> Sampling:  # fmt: skip
    """How the answers of the LVLM of that name are drawn. None stands for the value with which its D_c and regressor
    are found, since both belong to it: that of `usual`, what they say themselves; without it that of the profile that
    has the LVLM, or else of `Sampling`. So does all that is no argument here: max_new_tokens, row.

    ValueError where nothing can be drawn so.
    """
    if usual is None:
        found = (profile for profile in map(load_profile, available()) if lvlm in [spec.name for spec in profile.lvlms])
        usual = next((profile.sampling for profile in found), Sampling())
    temperature = usual.temperature if temperature is None else temperature
    top_p = usual.top_p if top_p is None else top_p
    if samples < 1 or not 0 < temperature < math.inf or not 0 < top_p <= 1:
        raise ValueError(
            "at least 1 sample, a temperature above 0 and a top-p above 0 and up to 1 are needed, "
            f"not {samples}, {temperature} and {top_p}"
        )
    changes = {"samples": samples, "temperature": temperature, "top_p": top_p, "seed": seed}
    return usual.model_copy(update=changes)
