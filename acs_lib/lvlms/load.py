"""From a name to an LVLM: which one is meant, where its files lie, which adapter serves it, and the model in memory.

    name -> lvlm_spec -> LVLMSpec -> load_spec -> load_checkpoint -> adapter with model, tokenizer, image processor

The family is read from `config.json` (`adapter_of`); no code of the checkpoint's own is run.
"""

import contextlib
import errno
import filecmp
import functools
import gc
import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from acs_lib import paths, profiles
from acs_lib.core.errors import UserError
from acs_lib.core.extras import load_extra
from acs_lib.lvlms import internvl, lfm2_vl, qwen_vl
from acs_lib.lvlms.adapter import LVLM, QUESTION
from acs_lib.lvlms.checkpoint import is_embedded, lvlm_digest, lvlm_source, model_files, pinned
from acs_lib.lvlms.devices import default_device, fast_dtype, small_device
from acs_lib.profiles import LVLMSpec

DEFAULT_LVLM = "internvl-embedded"  # the default of the two LVLMs that are shipped


def lvlm_spec(source: str | Path) -> LVLMSpec:
    """An LVLM by the name that a profile gives it, by its folder, or by its hub name (owner/name, or owner/name@commit
    for another commit than a profile's, or than `main`).

    A folder with the weights of one that is shipped has that one's name, so that files which belong to the one belong
    to the other. ValueError for what can be none of them.
    """
    folder, known = Path(source).expanduser().resolve(), profiles.known_lvlms().values()
    for spec in known:
        if str(source) in (spec.name, spec.source) or folder == paths.place(spec.source).resolve():
            return spec
    if folder.is_dir():
        for spec in known:
            if _same_weights(folder, paths.place(spec.source)):
                return spec.model_copy(update={"source": str(folder)})
        return LVLMSpec(name=folder.name, source=str(folder))
    named = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", str(source))
    if named is None:
        raise ValueError(
            f"there is no LVLM {str(source)!r}: give {', '.join(profiles.known_lvlms())}, a folder that holds a model, "
            "or a hub name like owner/model"
        )
    return LVLMSpec(name=named[1], source=named[1], revision=named[2])


def _same_weights(*folders: Path) -> bool:
    """Whether both folders hold one file of weights, and the same."""
    one, other = (folder / "model.safetensors" for folder in folders)
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def patience(spec: LVLMSpec) -> list[str]:
    """What may take long with this LVLM, a sentence each."""
    told = []
    if not Path(lvlm_source(spec)).is_dir():
        told.append(f"{spec.source} is fetched from the model hub, unless it is in its cache")
    if not is_embedded(spec) and not torch.cuda.is_available():
        told.append(f"there is no GPU here; {spec.name} may take minutes for an image")
    return told


def lvlm_config(spec: LVLMSpec) -> PreTrainedConfig:
    """The LVLM's configuration, without its weights."""
    source, revision = model_files(lvlm_source(spec), spec.revision)
    return AutoConfig.from_pretrained(source, revision=revision)


def loaded_digest(lvlm: LVLM) -> str:
    """`lvlm_digest` of a loaded LVLM; of its files when they are first asked for."""
    if lvlm.digest is None:
        spec = LVLMSpec(name=lvlm.name, source=lvlm.model.name_or_path, revision=lvlm.revision)
        lvlm.digest = lvlm_digest(spec)
    return lvlm.digest


MAKERS = "makers"  # instead of a question: the one that the family's makers ask


def asked_with(spec: LVLMSpec, question: str | None) -> LVLMSpec:
    """The LVLM, asked with another question: a text with {object} in it, or MAKERS; None: as it is.

    ValueError where the makers' question is not known; OSError where the configuration cannot be had.
    """
    if question == MAKERS:
        adapter = adapter_of(lvlm_config(spec).model_type, spec.source)
        if adapter.makers_question is None:
            raise ValueError(f"how the makers of {spec.name} ask for boxes is not known here; give the question itself")
        question = adapter.makers_question
    return spec if question is None else spec.model_copy(update={"question": question})


def families() -> dict[str, type[LVLM]]:
    """`config.model_type` -> adapter, of every adapter in this folder."""
    adapters = (internvl.InternVL, lfm2_vl.Lfm2VL, qwen_vl.Qwen2VL, qwen_vl.Qwen25VL, qwen_vl.Qwen3VL)
    return {model_type: adapter for adapter in adapters for model_type in adapter.model_types}


def adapter_of(model_type: str, source: str) -> type[LVLM]:
    """The adapter that serves a `config.model_type`; ValueError, which names the `source`, where none does."""
    if model_type not in families():
        raise ValueError(
            f"cannot load the LVLM {source!r}: there is no adapter for the model type {model_type!r}, only for "
            f"{', '.join(families())}, in the format of transformers (InternVL: names that end in -HF)"
        )
    return families()[model_type]


def _tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer, with the chat template of the processor's file where it has none itself."""
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    if tokenizer.chat_template is None:
        with contextlib.suppress(OSError):
            file = cached_file(source, "chat_template.json", revision=revision)
            tokenizer.chat_template = json.loads(Path(file).read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


def _told_by_us(record: logging.LogRecord) -> bool:
    """False for transformers' table of the weights that a checkpoint lacks: `_check_whole` says it in a sentence."""
    return "LOAD REPORT" not in record.getMessage() or not re.search("MISSING|MISMATCH", record.getMessage())


def _check_whole(loading: dict, source: str) -> None:
    """ValueError, which names them, where the checkpoint lacks weights, or has some of another shape: transformers
    draws these at random. `loading`: its loading info, tied weights and those that may be missing left out."""
    shapes = [
        f"{name}: {'x'.join(map(str, there))}, not {'x'.join(map(str, needed))}"
        for name, there, needed in sorted(loading["mismatched_keys"])
    ]
    lacking = sorted(loading["missing_keys"])
    for names, what in (
        (lacking, f"lacks {len(lacking)} weight{'s'[: len(lacking) > 1]}"),
        (shapes, "has weights of another shape than its config.json says"),
    ):
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(
                f"cannot load the LVLM {source!r}: its checkpoint {what} ({listed}); fetch or save it again, whole"
            )


def load_checkpoint(
    source: str | Path, name: str | None = None, revision: str | None = None, dtype: str | torch.dtype = "auto",
    device: str | None = None, question: str = QUESTION,
) -> LVLM:  # fmt: skip
    """Load an LVLM from a folder or a hub name.

    Without `device` a GPU is used if there is one. `dtype` is a name of torch's, or 'auto': what is fast on the device
    (see `devices.fast_dtype`), but float32 where the checkpoint is float32, and a quantised checkpoint's own. Several
    GPUs share an LVLM that is too large for one of them. A folder with a LoRA adapter alone is loaded as its base model
    with the adapter merged into the weights (by the package peft, the extra `lora`). Raises ValueError where there is
    no model, or one of a family that the kit has no adapter for, where its checkpoint is not whole or needs a package
    that is not here, and OSError (with the mend) where the files cannot be had or read.
    """
    source = str(source)
    disable_progress_bar()  # of loading: in a notebook it would be an output that depends on the installed widgets
    mend = "give a folder that holds the model, or a hub name with the network at hand"
    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(_told_by_us)
    try:
        files, commit = model_files(source, revision)
        config, _ = PreTrainedConfig.get_config_dict(files, revision=commit)  # asks for no code of the model's own
        if "model_type" not in config:
            raise ValueError(f"cannot load the LVLM {source!r}: it has no config.json that names a model type; {mend}")
        adapter = adapter_of(config["model_type"], source)
        device = device or default_device()
        quantised = "quantization_config" in config
        stored = config.get("dtype", config.get("torch_dtype"))
        if dtype == "auto" and not quantised:
            dtype = "float32" if stored == "float32" else fast_dtype(device)
        if quantised and files != source:
            raise ValueError(
                f"cannot load the LVLM {source!r}: its LoRA adapter cannot be merged into the quantised weights of "
                f"{files}; name the model before it was quantised as base_model_name_or_path"
            )
        read = functools.partial(_read, source, files, revision=commit, dtype=dtype)
        model = read()
        tokenizer = _tokenizer(files, commit)
        image_processor = adapter.image_processors.from_pretrained(files, revision=commit, backend="pil")
        if not quantised:  # these lie where their package put them
            model = _placed(model, device, read)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = str(error).partition("\n")[0].strip().rstrip(".")
        raise OSError(f"cannot load the LVLM {source!r} ({reason}); {mend}") from error
    except (ImportError, NotImplementedError) as error:  # quantised, or bound to one implementation of attention
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        reason = reason.replace("package for FlashAttention2", "package flash-attn")
        raise ValueError(
            f"cannot load the LVLM {source!r} ({reason}); install what is missing, or take a checkpoint that needs none"
        ) from error
    finally:
        log.removeFilter(_told_by_us)
    if name is None:
        name = Path(source).name if Path(source).is_dir() else source
    lvlm = adapter(model, tokenizer, image_processor, name, question)
    lvlm.revision = revision
    return lvlm


def _read(source: str, files: str, **settings: Any) -> PreTrainedModel:
    """The model in `files`, whole; where `source` is a LoRA adapter of it, with that merged into its weights."""
    model, loading = AutoModelForImageTextToText.from_pretrained(
        files, output_loading_info=True, ignore_mismatched_sizes=True, **settings
    )
    _check_whole(loading, files)
    if files != source:
        model = _merged(model, source)
        model.name_or_path = source
    return model


def _merged(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """The model with the LoRA adapter of a folder in its weights. ValueError where it is not safetensors, or does not
    fit: of a matrix that the file does not have PEFT would make an adapter without effect."""
    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        raise ValueError(f"cannot load the LVLM {folder!r}: it has no adapter_model.safetensors; save the adapter so")
    peft = load_extra("peft", "lora")
    with warnings.catch_warnings(record=True) as told, safe_open(file, "pt") as stored:
        warnings.simplefilter("always")
        try:
            found = peft.PeftModel.from_pretrained(model, folder)
            wrong = [str(one.message) for one in told if "missing adapter keys" in str(one.message)]
            if len(stored.keys()) != len(peft.get_peft_model_state_dict(found)):
                wrong.append(f"it has {len(stored.keys())} weights, of which not all have a place")
        except (ValueError, RuntimeError) as error:
            wrong = [str(error)]
    if wrong:
        reason = " ".join(wrong[0].split())[:300].rstrip(".")
        raise ValueError(f"cannot load the LVLM {folder!r}: its LoRA adapter does not fit its base model ({reason})")
    return found.merge_and_unload(safe_merge=True)


def _placed(model: PreTrainedModel, device: str, read: Callable) -> PreTrainedModel:
    """The model on a device; where it is too large for one of several GPUs, read anew onto all of them. UserError
    where it is too large for the only one, ImportError where accelerate is needed and not there."""
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        count = torch.cuda.device_count()
        if count < 2:
            raise UserError(f"{str(error).partition('.')[0]}; take a smaller LVLM, or a quantised one") from error
    del model
    gc.collect()
    torch.cuda.empty_cache()
    if importlib.util.find_spec("accelerate") is None:
        raise ImportError(f"to spread it over {count} GPUs the package accelerate is needed: pip install accelerate")
    return read(device_map="auto")


_loaded: dict[LVLMSpec, LVLM] = {}  # the last one


def load_spec(spec: LVLMSpec) -> LVLM:
    """The LVLM of a profile, of a hub the commit that its digest names; kept while the next call asks for the same.
    Another one is dropped before this one is loaded: a GPU need not hold two."""
    spec = pinned(spec)
    if spec not in _loaded:
        _loaded.clear()
        gc.collect()
        torch.cuda.empty_cache()
        device = small_device() if is_embedded(spec) else None
        lvlm = load_checkpoint(lvlm_source(spec), spec.name, spec.revision, spec.dtype, device, spec.question)
        lvlm.limit(**spec.limits)
        _loaded[spec] = lvlm
    return _loaded[spec]


def load_lvlm(source: str | Path = DEFAULT_LVLM) -> LVLM:
    """Load an LVLM (see `lvlm_spec`); without `source` the embedded one. The last one loaded is kept.

    A GPU is used if there is one. ValueError for an unknown name or family, OSError where the files cannot be had.
    """
    return load_spec(lvlm_spec(source))
