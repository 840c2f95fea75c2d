"""Checkpoints that are not whole, or need a package that is not here, are refused in one sentence."""

import json
import logging
import shutil

import pytest
from safetensors.torch import load_file, save_file

from acs_lib import paths
from acs_lib.lvlms.load import load_checkpoint


@pytest.fixture
def copy(tmp_path):
    """A copy of the embedded InternVL, with changes to its settings and to its weights (name -> tensor)."""

    def changed(settings=None, weights=lambda found: found):
        folder = tmp_path / "copy"
        shutil.copytree(paths.EMBEDDED / "internvl", folder)
        config = json.loads((folder / "config.json").read_text()) | (settings or {})
        (folder / "config.json").write_text(json.dumps(config))
        found = weights(load_file(folder / "model.safetensors"))
        save_file(found, folder / "model.safetensors", {"format": "pt"})
        return folder

    return changed


def without(part):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def cut(part):
    return lambda weights: {
        name: weight[..., :-1].contiguous() if part in name else weight for name, weight in weights.items()
    }


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        (
            {},
            without("layers.2."),
            r"lacks 11 weights \(model.language_model.layers.2.input_layernorm.weight, .*\.\.\.",
        ),
        ({}, without("layers.2.mlp.up_proj"), r"lacks 1 weight \(model.language_model.layers.2.mlp.up_proj.weight\)"),
        ({"tie_word_embeddings": False}, lambda weights: weights, r"lacks 1 weight \(lm_head.weight\)"),
        (
            {},
            cut("layers.0.mlp.down_proj"),
            r"has weights of another shape than its config.json says \(model.language_model.layers.0.mlp.down_proj"
            r".weight: 128x255, not 128x256\)",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(copy, caplog, settings, weights, message):
    """Not loaded with random weights for those that it lacks."""
    logging.getLogger("transformers").propagate = True  # so that caplog sees its tables
    with pytest.raises(ValueError, match=f"cannot load the LVLM .*copy': its checkpoint {message}") as caught:
        load_checkpoint(copy(settings, weights))
    assert "\n" not in str(caught.value) and str(caught.value).endswith("fetch or save it again, whole")
    assert "MISSING" not in caplog.text and "MISMATCH" not in caplog.text


def test_weights_that_are_tied_need_not_be_in_the_checkpoint(copy):
    assert load_checkpoint(copy(weights=without("lm_head"))).layers == 6


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "optimum"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}, "gptqmodel"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": "int4"}}, "torchao"),
        ({"attn_implementation": "flash_attention_2"}, "flash-attn"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, "kernels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_whose_package_is_missing_is_refused_with_its_name(copy, settings, package):
    """None of them is a dependency of the kit."""
    with pytest.raises(
        ValueError, match=f"cannot load the LVLM .*copy'.*{package}.*; install what is missing"
    ) as caught:
        load_checkpoint(copy(settings))
    assert "\n" not in str(caught.value)


def test_the_reason_is_the_first_line_that_says_something(copy, monkeypatch):
    def needs_more(*_, **__):
        raise ImportError("\nIt requires the Torchvision library.\nCheck out the instructions")

    monkeypatch.setattr("transformers.AutoImageProcessor.from_pretrained", needs_more)
    with pytest.raises(ValueError, match=r"\(It requires the Torchvision library\); install what is missing"):
        load_checkpoint(copy())
