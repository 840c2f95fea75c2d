"""What a run of a profile will cost, before it starts: queries, candidates, hours, memory, disk and what is fetched.

Nothing is fetched for it: the models are built from their published configurations on the meta device, without weights,
and every linear layer, attention and map is counted. What is counted is exact (a test sets it against PyTorch's own
counter of operations); how fast a GPU does it is an assumption of the profile (`GPUSpec`), or the machine at hand is
measured for a second (`here`), and `say` says so.
"""

import shutil
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedConfig

from acs_lib import paths
from acs_lib.datasets.splits import load_split, split_files
from acs_lib.lvlms.adapter import LVLM, ImageTokens
from acs_lib.lvlms.attention_rows import attention_layers
from acs_lib.lvlms.configurations import meta_model, published_config
from acs_lib.lvlms.devices import default_device, fast_dtype, measured_rates
from acs_lib.lvlms.load import adapter_of
from acs_lib.method.regressor import MAP_SIDE
from acs_lib.profiles import GPUSpec, LVLMSpec, Profile
from acs_lib.runs.answer import bytes_per_query
from acs_lib.runs.local import cores, machine_memory
from acs_lib.runs.store import SHARD

VERIFICATION_TOKENS = 60  # tokens of P(True)'s question that are no image, about
QUESTION_TOKENS = 40  # tokens of the prompt that are no image, about; those of the chat template included
IMAGE_SIZE = 640, 480  # px, where no annotation file is at hand: COCO's most frequent
IMAGE_BYTES = 160_000  # of a JPEG, about: COCO's train2017 is 18 GB for 118,287 images
ANNOTATION_BYTES = 0.26e9  # of a dataset, about: COCO's archive has 253 MB, Objects365's file 269
BFLOAT16, FLOAT32 = 2, 4  # bytes; weights are published in the former
# Of what products of matrices alone reach when this machine is measured: on a GPU an assumption, as norms, attention
# and rows take the rest; on a CPU the plan was so 1.1 to 1.3 times what benchmarks.full_size measured.
GPU_SHARE, CPU_SHARE = 0.5, 1.0
# The regressor on one CPU thread, measured: 12 ms a training answer with maps of Qwen2.5-VL-7B's shape (4 x 28 x 28 x
# 256 numbers) and 17 ms with InternVL-3.5-8B's (4 x 36 x 32 x 256).
TRAINING_SECONDS = 14.6e-9  # a number of the maps
CONTROL_EPOCHS = 3 * 2  # of the regressors on shuffled labels
PROCESS = 4e9  # bytes of host memory besides weights and maps, about


def prefill_flops(model: nn.Module, tokens: ImageTokens, question: int = QUESTION_TOKENS) -> float:
    """Floating-point operations (a multiplication and an addition are two) of the image and the prompt, once."""
    config, vision = model.config, model.config.vision_config
    text = config.get_text_config()
    prompt, total = tokens.image + question, 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if "language_model" in name:
                places = prompt
            elif name == "lm_head":
                places = 1
            elif "merger" in name or "projector" in name:
                places = tokens.image
            else:
                places = tokens.patches
            # A layer that joins the patches of a token, or makes one of them, is in the weight's own shape.
            total += 2 * module.weight.numel() * places
    total += 4 * prompt**2 * text.num_attention_heads * _head_dim(text) * len(attention_layers(text))
    width = getattr(vision, "embed_dim", vision.hidden_size)
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    full = len(getattr(vision, "fullatt_block_indexes", range(depth)))
    inside = tokens.patches / tokens.sequences
    window = (getattr(vision, "window_size", 0) // _side(vision.patch_size)) ** 2
    return total + 4 * tokens.patches * width * (full * inside + (depth - full) * min(window, inside))


def _side(size) -> int:
    return size if isinstance(size, int) else size[0]


def _head_dim(text: PreTrainedConfig) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def decoder_parameters(model: nn.Module) -> int:
    """Parameters that every decoded token reads: the text model's layers and the output embeddings."""
    layers = sum(parameter.numel() for parameter in model.model.language_model.layers.parameters())
    return layers + model.get_output_embeddings().weight.numel()


def seconds(model: nn.Module, tokens: ImageTokens, answers: int, steps: int, batch: int, gpu: GPUSpec) -> float:
    """Of one query on the GPU: prefill by its operations, decoding by what has to be read (weights and cache once a
    pass of `batch` queries) or by its operations, whichever is slower."""
    compute, bandwidth = gpu.tflops * 1e12 * gpu.compute_share, gpu.bandwidth * 1e9 * gpu.bandwidth_share
    weights = decoder_parameters(model)
    read = model.dtype.itemsize * weights + batch * cache_bytes(model, tokens, answers, steps)
    decode = max(read / bandwidth, 2 * weights * answers * batch / compute)
    return prefill_flops(model, tokens) / compute + steps * decode / batch


def verification_seconds(model: nn.Module, tokens: ImageTokens, answers: int, gpu: GPUSpec) -> float:
    """P(True) of one query: the image once more, and for every answer, at most, a pass over the rest of the question,
    as long as its operations or the reading of the weights take, whichever is slower."""
    compute, bandwidth = gpu.tflops * 1e12 * gpu.compute_share, gpu.bandwidth * 1e9 * gpu.bandwidth_share
    weights = decoder_parameters(model)
    one = max(model.dtype.itemsize * weights / bandwidth, 2 * weights * VERIFICATION_TOKENS / compute)
    return prefill_flops(model, tokens) / compute + answers * one


def cache_bytes(model: nn.Module, tokens: ImageTokens, answers: int, steps: int) -> int:
    """Keys and values of one query, and the inputs of short convolutions: its prompt once, and the tokens of all its
    answers."""
    text = model.config.get_text_config()
    attention = len(attention_layers(text))
    a_token = attention * 2 * text.num_key_value_heads * _head_dim(text)
    a_token += (text.num_hidden_layers - attention) * text.hidden_size
    return model.dtype.itemsize * a_token * (tokens.image + QUESTION_TOKENS + answers * steps)


def memory_bytes(model: nn.Module, tokens: ImageTokens, answers: int, steps: int, batch: int) -> int:
    """Of the GPU at its fullest: weights, cache, attention rows (of the pass, and of the four numbers of every answer),
    and the widest activations of the prefill (a gated layer's three). What PyTorch itself needs comes on top."""
    text = model.config.get_text_config()
    weights = model.dtype.itemsize * sum(parameter.numel() for parameter in model.parameters())
    rows = FLOAT32 * 5 * answers * len(attention_layers(text)) * text.num_attention_heads * tokens.cells
    widest = model.dtype.itemsize * 3 * text.intermediate_size * (tokens.image + QUESTION_TOKENS)
    return weights + batch * (cache_bytes(model, tokens, answers, steps) + rows + widest)


def host_bytes(weights: float, maps: float) -> float:
    """Of the host's memory at its fullest: an LVLM's weights on their way to the GPU or, once these are gone, two
    shards of maps, twice while the regressor's training joins them. weights: bytes; maps: bytes of a query."""
    return PROCESS + max(weights, 2 * 2 * SHARD * maps)


def regressor_hours(queries: int, answers: int, numbers: int, epochs: int) -> float:
    """Of one CPU thread, to train the regressor and its controls. answers: of a query; numbers: of an answer's maps."""
    return queries * answers * numbers * (epochs + CONTROL_EPOCHS) * TRAINING_SECONDS / 3600


def tokens_of_images(
    adapter: type[LVLM], config: PreTrainedConfig, sizes: pd.Series, **limits: int
) -> tuple[ImageTokens, ImageTokens]:
    """The mean over images, and the largest; sizes: (width, height) -> how many queries have it; limits: as
    `LVLM.count_tokens` takes them."""
    found = [adapter.count_tokens(config, *size, **limits) for size in sizes.index]
    means = pd.DataFrame(map(vars, found)).mul(sizes.to_numpy(), axis=0).sum() / sizes.sum()
    mean = ImageTokens(**{name: round(value) for name, value in means.items()})
    return mean, max(found, key=lambda tokens: tokens.image)


def make(profile: Profile, gpu: GPUSpec) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one row an LVLM and split, one row an LVLM) of a profile on `gpu`.

    Splits: lvlm, dataset, split, queries, answers, image_tokens (mean), hours, maps_gb, counted (whether queries and
    image sizes are those of the annotation file; else the profile's limits and IMAGE_SIZE), images (on disk, of those
    needed). LVLMs: lvlm, parameters, weights_gb (of its files), memory_gb (where it computes), host_gb,
    regressor_hours.
    """
    how = profile.sampling
    splits = [
        (dataset, split, *_queries(profile, dataset, split)) for dataset in profile.datasets for split in dataset.splits
    ]
    rows, models = [], []
    for spec in profile.lvlms:
        model = meta_model(published_config(spec), computed_in(profile, spec))
        adapter = adapter_of(model.config.model_type, spec.source)
        text = model.config.get_text_config()
        if getattr(text, "num_experts", None):
            raise ValueError(
                f"{spec.name} is a mixture of experts, of which a token passes a few; the plan cannot count these: "
                "leave `gpu` and `plan_here` out of the profile"
            )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        memory, host, training = [], [], 0.0
        for dataset, split, sizes, counted, images in splits:
            tokens, largest = tokens_of_images(adapter, model.config, sizes, **spec.limits)
            count = int(sizes.sum())
            settings = how.samples + 1, how.max_new_tokens, profile.batch_queries
            shape = len(attention_layers(text)), text.num_attention_heads
            cells = (profile.map_side or 0) ** 2 or tokens.cells
            maps = bytes_per_query(how.samples, *shape, cells)
            host.append(host_bytes(BFLOAT16 * parameters, maps))
            if (dataset.name, split) == (profile.train_on, "train"):
                numbers = 4 * shape[0] * shape[1] * min(cells, MAP_SIDE**2)
                epochs = profile.regressor.seeds * profile.regressor.epochs
                training = regressor_hours(count, how.samples + 1, numbers, epochs)
            hours = count * seconds(model, tokens, *settings, gpu) / 3600
            if profile.p_true and split == "test":
                hours += count * verification_seconds(model, tokens, how.samples + 1, gpu) / 3600
            memory.append(memory_bytes(model, largest, *settings))
            answers, disk = count * (how.samples + 1), count * maps / 1e9
            rows.append((spec.name, dataset.name, split, count, answers, tokens.image, hours, disk, counted, images))
        weights = BFLOAT16 * parameters / 1e9
        models.append((spec.name, parameters, weights, max(memory) / 1e9, max(host) / 1e9, training))
    names = "lvlm dataset split queries answers image_tokens hours maps_gb counted images".split()
    of_lvlms = "lvlm parameters weights_gb memory_gb host_gb regressor_hours".split()
    return pd.DataFrame(rows, columns=names), pd.DataFrame(models, columns=of_lvlms)


def _queries(profile: Profile, dataset, split: str) -> tuple[pd.Series, bool, str]:
    """(image size -> queries, whether they were counted, 'on disk / needed' images) of a split."""
    annotations, _ = split_files(dataset, split)
    if not annotations.exists():
        limit = sum(dataset.splits[split].queries.values())
        return pd.Series([limit], index=[IMAGE_SIZE]), False, "no annotations"
    queries, _ = load_split(profile, dataset, split)
    images = queries["image"].drop_duplicates()
    there = sum(Path(image).is_file() for image in images)
    return queries[["width", "height"]].value_counts(), True, f"{there} of {len(images)}"


def computed_in(profile: Profile, spec: LVLMSpec) -> torch.dtype:
    """The number format in which the plan has an LVLM compute: the profile's; where that is 'auto', bfloat16 on a GPU
    of the profile and else what is fast on this machine."""
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    return torch.bfloat16 if profile.gpu else fast_dtype(default_device())


def gpu_here(gpu: GPUSpec) -> tuple[str, float]:
    """Name and memory (GB) of the GPU of this machine, or those of the profile's where there is none."""
    if not torch.cuda.is_available():
        return gpu.name, gpu.memory
    found = torch.cuda.get_device_properties(0)
    return found.name, found.total_memory / 1e9


def here() -> GPUSpec:
    """This machine, as fast as it multiplies matrices at the moment, which takes about a second to measure; memory is
    infinite where the system does not tell."""
    device = default_device()
    dtype, name = fast_dtype(device), f"this machine, {cores()} cores" if device == "cpu" else f"this machine, {device}"
    tflops, bandwidth = measured_rates(device, dtype)
    memory = gpu_here(GPUSpec())[1] if device == "cuda" else machine_memory()
    share = CPU_SHARE if device == "cpu" else GPU_SHARE
    return GPUSpec(
        name=f"{name}, {str(dtype).removeprefix('torch.')}", tflops=tflops, bandwidth=bandwidth,
        memory=memory if memory > 0 else float("inf"), compute_share=share, bandwidth_share=share,
    )  # fmt: skip


def say(profile: Profile) -> str:
    """The plan as text, with what it assumes, and whether it fits on this machine."""
    gpu, how = profile.gpu or here(), profile.sampling
    splits, lvlms = make(profile, gpu)
    name, memory = gpu_here(gpu)
    folder = next(folder for folder in (paths.RUNS, *paths.RUNS.parents) if folder.exists())
    free = shutil.disk_usage(folder).free / 1e9
    kind = "GPU " if profile.gpu or default_device() != "cpu" else ""
    if not kind:  # weights and whatever is computed lie in the machine's own memory
        lvlms["memory_gb"] = (lvlms["memory_gb"] + PROCESS / 1e9).clip(lower=lvlms["host_gb"])
    shown = splits.drop(columns="counted").assign(
        queries=[f"{row.queries}{'' if row.counted else ' at most'}" for row in splits.itertuples()]
    )
    models = lvlms.assign(parameters=[f"{count / 1e9:.2f} B" for count in lvlms["parameters"]])
    images = splits.drop_duplicates(["dataset", "split"])["queries"].sum() * IMAGE_BYTES / 1e9
    total = splits["maps_gb"].sum() + lvlms["weights_gb"].sum() + images
    lines = [
        f"plan of the profile {profile.name}",
        shown.to_string(index=False, float_format="{:.2f}".format),
        models.to_string(index=False, float_format="{:.1f}".format),
        f"together: {splits['queries'].sum()} queries, {splits['answers'].sum()} answers, "
        f"{splits['hours'].sum():.1f} {kind}hours, {lvlms['memory_gb'].max():.0f} GB of {kind}memory, "
        f"{total:.0f} GB of disk (maps {splits['maps_gb'].sum():.0f}, weights {lvlms['weights_gb'].sum():.0f}, "
        f"images about {images:.1f})",
        f"to fetch, unless it is here: weights {lvlms['weights_gb'].sum():.1f} GB, images about {images:.1f} GB (those "
        f"of Objects365 in whole archives), annotations {ANNOTATION_BYTES / 1e9:.2f} GB a dataset",
        f"host memory about {lvlms['host_gb'].max():.0f} GB; regressor about {lvlms['regressor_hours'].sum():.1f} h on "
        "the CPU (less on a GPU)",
        "counted: operations, parameters, tokens and bytes, from the models' published configurations",
        f"{_speed_told(profile, gpu)}; every answer as long as the "
        f"limit of {how.max_new_tokens} tokens; {QUESTION_TOKENS} tokens of question; one image of "
        f"{IMAGE_BYTES // 1000} kB a query; in the host's memory {PROCESS / 1e9:.0f} GB and an LVLM's weights, or two "
        f"shards of {SHARD} queries' maps twice; the regressor at {TRAINING_SECONDS * 1e9:g} ns a number of the maps, "
        f"for its epochs and {CONTROL_EPOCHS} of its controls (measured on one CPU thread)",
    ]
    if not splits["counted"].all():
        lines.append(
            f"where there are no annotations yet: as many queries as the profile allows, images of {IMAGE_SIZE[0]}x"
            f"{IMAGE_SIZE[1]} px; `acs data` fetches annotations and images, or links those that you have"
        )
    if profile.p_true:
        lines.append("hours of test splits include P(True), one more question about every answer")
    if lvlms["memory_gb"].max() > memory:
        lines.append(f"this does not fit into {memory:.0f} GB ({name}): lower `batch_queries` in the profile")
    if total > free:
        lines.append(
            f"the disk of {folder.name} has {free:.0f} GB free: too little, unless part of it is there already; lower "
            "`map_side` or the numbers of queries in the profile"
        )
    return "\n".join(lines)


def _speed_told(profile: Profile, gpu: GPUSpec) -> str:
    if profile.gpu:
        return (
            f"assumed, not measured: one {gpu.name} that reaches {gpu.compute_share:.0%} of {gpu.tflops:g} TFLOPS in "
            f"the prefill and {gpu.bandwidth_share:.0%} of {gpu.bandwidth:g} GB/s while decoding"
        )
    return (
        f"measured for a second on {gpu.name}, as busy as it is now: products of matrices at {gpu.tflops:.3g} TFLOPS, "
        f"as in a prefill, and at {gpu.bandwidth:.3g} GB/s of weights, as in decoding; assumed: an LVLM reaches "
        f"{gpu.compute_share:.0%} of both"
    )
