"""The plan counts what the real classes do: parameters, operations, tokens, cache and rows."""

from types import SimpleNamespace

import pytest
import torch
from harness import picture, scripted
from PIL import Image
from test_prompt import SHAPES, published, sizes  # noqa: F401 (a fixture)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, Qwen3VLMoeConfig

from acs_lib.lvlms.adapter import LVLM, ImageTokens
from acs_lib.lvlms.configurations import meta_model, published_config
from acs_lib.lvlms.load import adapter_of
from acs_lib.method.sampling import generate
from acs_lib.profiles import GPUSpec, LVLMSpec, Sampling, load_profile
from acs_lib.runs import plan

CHECKPOINTS = {  # of the paper's size
    "qwen2-vl": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2.5-vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl": "Qwen/Qwen3-VL-8B-Instruct",
    "internvl": "OpenGVLab/InternVL3_5-8B-HF",
    "lfm2-vl": "LiquidAI/LFM2.5-VL-450M",
}
# Half the bytes of `total_size` in the Qwen repositories' model.safetensors.index.json; InternVL's documentation says
# 0.3 B and 8.2 B, LFM2.5-VL's card 86 M and 350 M.
PARAMETERS = {"qwen2-vl": 8_291_375_616, "qwen2.5-vl": 8_292_166_656, "qwen3-vl": 8_767_123_696, "internvl": 8.5e9}
PARAMETERS["lfm2-vl"] = 450e6


@pytest.fixture(autouse=True)
def config(family):
    if family.name not in CHECKPOINTS:
        pytest.skip("its adapter counts no image tokens: a profile that uses it names no GPU")
    source = CHECKPOINTS[family.name]
    return published_config(LVLMSpec(name=source, source=source))


def test_the_models_have_the_published_number_of_parameters(family, config):
    model = meta_model(config)
    assert model.dtype.itemsize == plan.BFLOAT16, "as weights are published"
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == pytest.approx(PARAMETERS[family.name], rel=0.005 if family.name in ("internvl", "lfm2-vl") else 0)
    assert type(model) is type(family.build().model)


@pytest.mark.parametrize(
    ("source", "parameters"),
    [("Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032), ("OpenGVLab/InternVL3_5-1B-HF", 1_060_897_792)],
)
def test_the_small_models_too(source, parameters, family):
    if CHECKPOINTS[family.name].partition("/")[0] != source.partition("/")[0] or family.name == "qwen2-vl":
        pytest.skip("of another family")
    model = meta_model(published_config(LVLMSpec(name=source, source=source)), torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.dtype == torch.float32


def test_tokens_of_an_image_are_the_image_processors(config, family, published):  # noqa: F811
    for width, height in [(640, 480), (480, 640), (1100, 90), (500, 500), (33, 700), (1300, 800), *sizes(25)]:
        if max(width, height) > 200 * min(width, height):
            continue
        found = adapter_of(config.model_type, "").count_tokens(config, width, height)
        grid = published.prompt(Image.new("RGB", (width, height)), "cat").grid
        assert found.cells == grid.cells.numel(), (width, height)
        assert found.image == grid.cells.numel() + len(grid.thumbnail), (width, height)


def test_a_profiles_limits_are_respected(config, family):
    name, values = "max_pixels", (90_000, 200_000, 9**9)
    if family.name in ("internvl", "lfm2-vl"):
        name, values = "max_tiles", (1, 2, 6)
    lvlm = family.build()
    lvlm.image_processor = family.published_processor()
    if family.name == "internvl":
        lvlm.model.config.image_seq_length = 256
    for value in values:
        lvlm.limit(**{name: value})
        for width, height in [(640, 480), (480, 640), (1300, 800), *sizes(10)]:
            found = type(lvlm).count_tokens(config, width, height, **{name: value})
            assert found.cells == lvlm.prompt(Image.new("RGB", (width, height)), "cat").grid.cells.numel()
    other = "max_pixels" if name == "max_tiles" else "max_tiles"
    with pytest.raises(ValueError, match=f"the profile sets {other}"):
        lvlm.count_tokens(config, 640, 480, **{other: 6})


def tokens_of(lvlm, prompt) -> ImageTokens:
    """What an image has become in a prompt of a tiny model."""
    cells, image = prompt.grid.cells.numel(), prompt.grid.cells.numel() + len(prompt.grid.thumbnail)
    if "image_grid_thw" in prompt.inputs:
        return ImageTokens(int(prompt.inputs["image_grid_thw"].prod()), 1, image, cells)
    tiles = len(prompt.inputs["pixel_values"])
    if "spatial_shapes" in prompt.inputs:  # every piece is filled up to as many patches
        return ImageTokens(prompt.inputs["pixel_attention_mask"].numel(), tiles, image, cells)
    return ImageTokens(tiles * (8 * 8 + 1), tiles, image, cells)  # 112 px, patches of 14 px and one class token


@pytest.mark.parametrize("shape", ["landscape", "square", "small"])
def test_operations_are_those_that_pytorch_counts(lvlm, shape):
    prompt = lvlm.prompt(picture(*SHAPES[shape]), "dog")
    tokens = tokens_of(lvlm, prompt)
    # the counter passes over the CPU's fused attention, but not over its two multiplications
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        lvlm.model(**prompt.inputs, position_ids=lvlm.positions(prompt.inputs)[0], logits_to_keep=1)
    expected = plan.prefill_flops(lvlm.model, tokens, prompt.length - tokens.image)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_the_cache_has_the_bytes_that_were_reckoned(lvlm, monkeypatch):
    caches = []

    def noted():
        caches.append(DynamicCache())
        return caches[-1]

    monkeypatch.setattr("acs_lib.method.sharing.DynamicCache", noted)
    prompt = lvlm.prompt(picture(320, 240), "dog")
    with scripted(lvlm, "x" * 9):  # no end: all answers go to the limit
        generate(lvlm, [prompt], [0], Sampling(samples=2, max_new_tokens=9))
    kept = [tensor for layer in caches[0].layers for tensor in (layer.keys, layer.values)]
    found = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    tokens = tokens_of(lvlm, prompt)
    reckoned = plan.cache_bytes(lvlm.model, tokens, answers=3, steps=9)
    a_token = found / (prompt.length + 3 * 8)
    assert reckoned == pytest.approx(a_token * (tokens.image + plan.QUESTION_TOKENS + 3 * 9))


def test_time_follows_batch_steps_and_gpu(lvlm):
    tokens = ImageTokens(1564, 1, 391, 391)
    gpu = GPUSpec()

    def seconds(answers=11, steps=64, batch=4, gpu=gpu):
        return plan.seconds(lvlm.model, tokens, answers, steps, batch, gpu)

    prefill = seconds(steps=0)
    assert prefill == pytest.approx(plan.prefill_flops(lvlm.model, tokens) / (312e12 * 0.4))
    assert seconds(batch=1) > seconds(batch=4) > prefill
    slower = GPUSpec(bandwidth=gpu.bandwidth / 2)
    assert seconds(gpu=slower) - prefill == pytest.approx(2 * (seconds() - prefill), rel=1e-6)


def test_p_true_prefills_once_and_passes_once_an_answer(lvlm):
    tokens, gpu, weights = ImageTokens(1564, 1, 391, 391), GPUSpec(), plan.decoder_parameters(lvlm.model)
    prefill = plan.prefill_flops(lvlm.model, tokens) / (312e12 * 0.4)
    assert plan.verification_seconds(lvlm.model, tokens, 0, gpu) == pytest.approx(prefill)
    # a weight: four bytes at 612 GB/s take longer than its 120 operations (60 tokens) at 125 TFLOPS
    reading, computing = 4 * weights / (2039e9 * 0.3), 2 * 60 * weights / (312e12 * 0.4)
    found = plan.verification_seconds(lvlm.model, tokens, 11, gpu) - prefill
    assert found == pytest.approx(11 * max(reading, computing)) and reading > computing
    slow = GPUSpec(tflops=gpu.tflops / 10)
    found = plan.verification_seconds(lvlm.model, tokens, 11, slow) - 10 * prefill
    assert found == pytest.approx(11 * 10 * computing)


def test_an_unknown_checkpoint_is_asked_for_its_configuration(lvlm, tmp_path):
    lvlm.model.config.save_pretrained(tmp_path)
    spec = LVLMSpec(name="mine", source=str(tmp_path))
    assert published_config(spec).model_type == lvlm.model.config.model_type
    assert SimpleNamespace(**vars(published_config(spec).get_text_config())).hidden_size == 64


def test_a_mixture_of_experts_is_refused(tmp_path):
    config = Qwen3VLMoeConfig(
        text_config=dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                         intermediate_size=32, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
        vision_config=dict(depth=1, hidden_size=32, num_heads=2, intermediate_size=32, out_hidden_size=64,
                           deepstack_visual_indexes=[0]),
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    paper = load_profile("paper")
    spec = LVLMSpec(name="experts", source=str(tmp_path), dtype="bfloat16")
    with pytest.raises(ValueError, match="experts is a mixture of experts.*leave `gpu` and `plan_here` out"):
        plan.make(paper.model_copy(update={"lvlms": (spec,)}), paper.gpu)


def test_a_family_that_cannot_count_is_refused(config):
    with pytest.raises(ValueError, match="LVLM does not say how many tokens an image has: write its `count_tokens`"):
        LVLM.count_tokens(config, 640, 480)
    with pytest.raises(ValueError, match="cannot load the LVLM 'mine': there is no adapter for the model type 'other'"):
        adapter_of("other", "mine")
