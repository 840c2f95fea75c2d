"""A profile: everything that a run depends on, in one YAML file of `acs_lib/profiles/`."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from acs_lib import paths


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LVLMSpec(Strict):
    """Where an LVLM comes from: a folder under the project's root, or a hub name with a pinned revision."""

    name: str
    source: str
    revision: str | None = None
    dtype: str = "auto"
    question: str = "Detect the {object} in the image."


class SplitSpec(Strict):
    """One split. Rendered worlds: `images` and `seed`. Annotation files: `annotations`, `folder` and, where two splits
    share a file, the `share` of its images [from, to) by a hash of their ids. `queries` limits the number of queries
    of each size; a size that is not named is left out."""

    images: int | None = None
    seed: int | None = None
    annotations: str | None = None
    folder: str | None = None
    share: tuple[float, float] = (0.0, 1.0)
    queries: dict[Literal["small", "medium", "large"], int]


class DatasetSpec(Strict):
    name: str
    kind: Literal["scenes", "coco"]
    splits: dict[Literal["train", "validation", "test"], SplitSpec]


class SamplingSpec(Strict):
    """See acs_lib.sampling.Sampling."""

    samples: int = Field(10, ge=1)
    temperature: float = Field(gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = 64
    seed: int = 0
    row: Literal["own", "predicting"] = "own"


class RegressorSpec(Strict):
    """See acs_lib.regressor."""

    width: int = 48
    epochs: int = 8
    batch: int = 128
    lr: float = 1e-3
    seeds: int = 1


class HeadsSpec(Strict):
    """D_c: the number of layers kept by attribution, and the numbers of heads that validation chooses from."""

    layers: int
    counts: tuple[int, ...] = (1, 2, 3, 5, 8)


class Profile(Strict):
    name: str
    description: str
    duration: str
    lvlms: tuple[LVLMSpec, ...]
    datasets: tuple[DatasetSpec, ...]
    train_on: str
    small: float = 0.01
    large: float = 0.05
    sampling: SamplingSpec
    pool: Literal["sampled", "all"] = "sampled"
    batch_queries: int = 16
    regressor: RegressorSpec = RegressorSpec()
    heads: HeadsSpec
    bootstrap: int = 10_000
    notebooks: tuple[str, ...] = ("01", "02", "03", "04", "05", "06")


def available() -> dict[str, Path]:
    """Profile name -> file."""
    return {path.stem: path for path in sorted(paths.PROFILES.glob("*.yaml"))}


def load_profile(name: str) -> Profile:
    """Read a profile; ValueError lists the valid names, or says which setting is wrong."""
    found = available()
    if name not in found:
        raise ValueError(f"unknown profile {name!r}; choose one of {', '.join(found)}")
    return Profile.model_validate(yaml.safe_load(found[name].read_text()))


def known_lvlms() -> dict[str, LVLMSpec]:
    """Name -> LVLM of every profile, the embedded one first."""
    return {spec.name: spec for name in available() for spec in load_profile(name).lvlms}
