"""A folder with nothing but a LoRA adapter is merged onto the LVLM that it names, or says in a sentence what lacks."""

import json
import re

import pytest
import torch

from acs_lib import ground, paths
from acs_lib.lvlms.checkpoint import lora_base, lvlm_digest
from acs_lib.lvlms.load import load_checkpoint, lvlm_config
from acs_lib.profiles import LVLMSpec

BASE = str(paths.EMBEDDED / "internvl")


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter of the embedded InternVL, of rank 2 on all queries and values, whose weights are not zero."""
    peft = pytest.importorskip("peft")
    model = load_checkpoint(BASE).model
    torch.manual_seed(0)
    wanted = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False
    )
    peft.get_peft_model(model, wanted).save_pretrained(tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    (tmp_path / "mine" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": BASE}))
    return tmp_path / "mine"


def test_it_is_merged_onto_its_base(adapter):
    lvlm, base = load_checkpoint(adapter), load_checkpoint(BASE)
    assert lvlm.name == "mine" and type(lvlm.model) is type(base.model)
    from safetensors.torch import load_file

    added = load_file(adapter / "adapter_model.safetensors")
    before, checked = dict(base.model.named_parameters()), 0
    for name, weight in lvlm.model.named_parameters():
        parts = {
            side: [w for key, w in added.items() if f"{name.removesuffix('.weight')}.lora_{side}" in key]
            for side in "AB"
        }
        change = 2 * parts["B"][0] @ parts["A"][0] if parts["A"] else torch.zeros_like(weight)  # alpha / rank = 2
        torch.testing.assert_close(weight, before[name] + change)
        checked += bool(parts["A"])
    assert checked == 2 * base.layers


def test_its_attention_is_read(adapter):
    scene = str(paths.EMBEDDED / "samples" / "images" / "000000.png")
    found = ground(load_checkpoint(adapter), scene, "car", "sequence-log-prob", samples=2)
    assert found.candidates.parsed.any()
    assert (found.candidates.maps[found.candidates.parsed].sum((-2, -1)) > 0).all(), "of every layer and head"


def test_its_digest_is_of_both_and_its_configuration_the_bases(adapter):
    spec = LVLMSpec(name="mine", source=str(adapter))
    digest = lvlm_digest(spec)
    assert lvlm_config(spec).model_type == "internvl" and lora_base(BASE) is None
    config = json.loads((adapter / "adapter_config.json").read_text())
    other = {**config, "base_model_name_or_path": str(paths.EMBEDDED / "internvl-plain")}
    (adapter / "adapter_config.json").write_text(json.dumps(other))
    assert lvlm_digest(spec) != digest


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, "adapter_config.json does not say to which LVLM it belongs"),
        ("no/where/at/all", "cannot load the LVLM 'no/where/at/all'"),
        (str(paths.EMBEDDED / "qwen2_5_vl"), "cannot add the LoRA adapter .* to .*qwen2_5_vl"),
    ],
)
def test_what_lacks_is_one_sentence(adapter, base, message):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    with pytest.raises((ValueError, OSError)) as caught:
        load_checkpoint(adapter)
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)


def test_without_peft_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": BASE}))
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "acs-kit\[lora\]"'):
        load_checkpoint(tmp_path)
