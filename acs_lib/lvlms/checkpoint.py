"""Which LVLM exactly: where its files lie, the commit of one on a hub, and a digest of what it is. Without torch."""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

from acs_lib import paths, profiles
from acs_lib.core.files import read_text
from acs_lib.profiles import LVLMSpec

if TYPE_CHECKING:
    from acs_lib.lvlms.adapter import LVLM

LVLM_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")  # weights, tokenizer, processor, chat template
# what belongs to an LVLM, and may lie beside these
CALIBRATED = ("head_set.json", "regressor.safetensors", "risk.json", "effort.json")
NOT_THE_LVLM = (*CALIBRATED, "recipe.json")


def lvlm_source(spec: LVLMSpec) -> str:
    """The folder (see `paths.place`) or hub name to load from."""
    local = paths.place(spec.source)
    return str(local) if local.exists() else spec.source


def adapter_base(source: str | Path) -> LVLMSpec | None:
    """Of a folder with a LoRA adapter alone (PEFT's adapter_config.json, no config.json): the model that it was trained
    on, in a folder or on a hub; None for any other source. ValueError where the adapter does not name it."""
    file = Path(source) / "adapter_config.json"
    if not file.is_file() or (Path(source) / "config.json").is_file():
        return None
    try:
        known = json.loads(read_text(file))
        base, kind = known["base_model_name_or_path"], known["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} names no base_model_name_or_path and peft_type; save the adapter again") from error
    if not base or kind != "LORA":
        lack = "names no base model" if not base else f"is of the kind {kind}, and only LORA is merged"
        raise ValueError(f"{file} {lack}; merge the adapter into its model and give that folder")
    folder = next((one for one in (Path(source) / base, Path(base).expanduser()) if one.is_dir()), None)
    base = str(folder or base)
    return LVLMSpec(name=base, source=base, revision=known.get("revision"))


def model_files(source: str, revision: str | None) -> tuple[str, str | None]:
    """The folder, or hub name and commit, that hold a model whole: for a LoRA adapter those of its base, else what is
    given. OSError where the base cannot be had."""
    base = adapter_base(source)
    if base is None:
        return source, revision
    try:
        found = pinned(base)
    except OSError as error:
        raise OSError(f"{source} is a LoRA adapter of {base.source!r}, which is not here: {error}") from error
    return lvlm_source(found), found.revision


def _folder(lvlm: "LVLM | LVLMSpec") -> Path:
    """The folder that it comes from, or would come from if its hub name were one."""
    return paths.place(lvlm.source if isinstance(lvlm, LVLMSpec) else lvlm.model.name_or_path)


def is_embedded(lvlm: "LVLM | LVLMSpec") -> bool:
    """Whether it is one of those that are shipped, or a copy: tiny, quick on a CPU, and of few words."""
    known = profiles.known_lvlms().get(lvlm.name, lvlm)
    return paths.EMBEDDED in (_folder(lvlm).parent, _folder(known).parent)


def calibration_folder(lvlm: "LVLM | LVLMSpec") -> Path:
    """Where `acs calibrate` leaves an LVLM's head set and regressor: beside embedded weights, else in data/."""
    return _folder(lvlm) if is_embedded(lvlm) else paths.DATA / "calibrated" / lvlm.name


@functools.cache
def hub_commit(source: str, revision: str | None) -> str:
    """The commit (40 hex digits) that a revision of a hub's repository (`main` without one) was when it was fetched, so
    that a later commit on the hub makes no other run of a run; asked of the hub where none was fetched. The same within
    a process. OSError where it cannot be told."""
    if revision and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        file = try_to_load_from_cache(source, "config.json", revision=revision)
        if not isinstance(file, str):
            from transformers.utils import cached_file  # late: it takes seconds

            file = cached_file(source, "config.json", revision=revision)
    except (OSError, ValueError) as error:  # a ValueError: no name that a hub's repository can have
        reason = str(error).partition("\n")[0].strip().rstrip(".")
    else:
        if file is not None:
            return Path(file).parent.name
        reason = "it has no config.json"
    raise OSError(
        f"cannot load the LVLM {source!r} ({reason}); give a folder that holds the model, or a hub name with the "
        "network at hand"
    )


def pinned(spec: LVLMSpec) -> LVLMSpec:
    """The LVLM with its commit (see `hub_commit`) as its revision; from a folder, as it is."""
    source = lvlm_source(spec)
    if Path(source).is_dir():
        return spec
    return spec.model_copy(update={"revision": hub_commit(source, spec.revision)})


def lvlm_digest(spec: LVLMSpec) -> str:
    """SHA-256 of a local folder's weights and settings (of a LoRA adapter those of its base, too), or name and commit
    of those on a hub (OSError as `pinned`)."""
    folder = Path(lvlm_source(spec))
    if not folder.is_dir():
        return f"{spec.source}@{pinned(spec).revision}"
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in LVLM_FILES or path.name in NOT_THE_LVLM:
            continue
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    if base := adapter_base(folder):
        total.update(lvlm_digest(base).encode())
    return total.hexdigest()
