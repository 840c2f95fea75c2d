"""A folder with a LoRA adapter alone: merged onto its base, or refused in one sentence that says what is missing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from acs_lib import paths
from acs_lib.core.images import read_image
from acs_lib.grounding.api import samples
from acs_lib.lvlms import load
from acs_lib.lvlms.checkpoint import adapter_base, lvlm_digest, model_files
from acs_lib.lvlms.load import load_checkpoint, lvlm_config, lvlm_spec
from acs_lib.method.sampling import sample_candidates
from acs_lib.profiles import Sampling

peft = pytest.importorskip("peft")
BASE = paths.EMBEDDED / "internvl"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
HOW = Sampling(samples=4, temperature=0.8, top_p=0.6, max_new_tokens=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An adapter of the embedded InternVL with a B that is not zero, as PEFT saves it, and what it makes of each
    weight that it changes, by hand: W + alpha / r B A."""
    folder = tmp_path_factory.mktemp("adapter")
    base = load_checkpoint(BASE, dtype="float32").model
    whole = {name: weight.clone() for name, weight in base.state_dict().items()}
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], bias="none")
    model = peft.get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = str(BASE)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    adapter, expected = load_file(folder / WEIGHTS), {}
    for name in (one for one in adapter if "lora_A" in one):
        changed = name.removeprefix("base_model.model.").replace(".lora_A", "")
        expected[changed] = whole[changed] + 8 / 4 * adapter[name.replace("lora_A", "lora_B")] @ adapter[name]
    return folder, expected


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy of it, with changes to its settings."""

    def changed(**settings):
        folder = tmp_path / "mine"
        folder.mkdir()
        known = json.loads((trained[0] / SETTINGS).read_text()) | settings
        (folder / SETTINGS).write_text(json.dumps(known))
        save_file(load_file(trained[0] / WEIGHTS), folder / WEIGHTS)
        return folder

    return changed


def answered(lvlm):
    scene = samples().iloc[0]
    prompt = lvlm.prompt(read_image(scene["image"]), scene["category"])
    return sample_candidates(lvlm, [prompt], ["q"], [7], [scene["category"]], HOW)[0]


def test_it_answers_as_the_merged_weights_do(trained):
    folder, expected = trained
    lvlm = load_checkpoint(folder, dtype="float32")
    assert type(lvlm.model).__name__ == "InternVLForConditionalGeneration", "no wrapper is left"
    assert lvlm.name == folder.name and lvlm.model.name_or_path == str(folder)
    state = lvlm.model.state_dict()
    assert sum("language_model" in name for name in expected) == 3 * lvlm.layers
    for name, weight in expected.items():
        torch.testing.assert_close(state[name], weight)
    merged, plain = load_checkpoint(BASE, dtype="float32"), load_checkpoint(BASE, dtype="float32")
    merged.model.load_state_dict(expected, strict=False)
    (found, records), (same, told), (_, other) = map(answered, (lvlm, merged, plain))
    assert [record["text"] for record in records] == [record["text"] for record in told]
    assert [record["text"] for record in records] != [record["text"] for record in other], "the adapter says something"
    assert torch.from_numpy(found.statistics).allclose(torch.from_numpy(same.statistics), atol=1e-5, equal_nan=True)


def test_its_digest_is_that_of_adapter_and_base(adapter, monkeypatch):
    folder = adapter()
    spec = lvlm_spec(folder)
    first = lvlm_digest(spec)
    assert first == lvlm_digest(spec) and lvlm_config(spec).model_type == "internvl"
    (folder / SETTINGS).write_text((folder / SETTINGS).read_text().replace(str(BASE), f"{BASE}-plain"))
    assert lvlm_digest(spec) != first and adapter_base(folder).source == f"{BASE}-plain"
    weights = load_file(folder / WEIGHTS)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, folder / WEIGHTS)
    assert len({first, lvlm_digest(spec)}) == 2


def test_other_sources_have_no_base():
    assert adapter_base(BASE) is None and adapter_base("owner/name") is None
    assert model_files("owner/name", "main") == ("owner/name", "main")


def test_without_the_package_it_says_so(trained, monkeypatch):
    def none(module, extra):
        raise ImportError(f'this needs {module}, which is not installed here: pip install "acs-kit[{extra}]"')

    monkeypatch.setattr(load, "load_extra", none)
    with pytest.raises(ValueError, match=r'needs peft, which is not installed here: pip install "acs-kit\[lora\]"'):
        load_checkpoint(trained[0])


def test_a_base_that_is_not_here_is_named(adapter, offline_hub):
    with pytest.raises(OSError, match="mine is a LoRA adapter of 'owner/base', which is not here: "):
        load_checkpoint(adapter(base_model_name_or_path="owner/base"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_model_name_or_path": None}, "names no base model; merge the adapter into its model"),
        ({"peft_type": "IA3"}, "is of the kind IA3, and only LORA is merged"),
        ({"target_modules": ["w1"]}, "does not fit its base model"),
        ({"target_modules": ["q_proj"]}, "does not fit its base model .*48 weights, of which not all have a place"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "up_proj"]}, "does not fit its base model .*missing"),
        ({"r": 8}, "does not fit its base model .*size mismatch"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapter, settings, message):
    with pytest.raises(ValueError, match=message):
        load_checkpoint(adapter(**settings))


def test_an_adapter_as_a_pickle_is_refused(adapter):
    folder = adapter()
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="it has no adapter_model.safetensors; save the adapter so"):
        load_checkpoint(folder)


def test_settings_that_name_nothing_are_told(tmp_path):
    (tmp_path / SETTINGS).write_text("{}")
    with pytest.raises(ValueError, match="adapter_config.json names no base_model_name_or_path and peft_type"):
        adapter_base(tmp_path)


def test_it_is_not_merged_into_quantised_weights(adapter, tmp_path):
    base = tmp_path / "quantised"
    base.mkdir()
    config = json.loads((BASE / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ValueError, match="cannot be merged into the quantised weights of .*quantised; name the model"):
        load_checkpoint(adapter(base_model_name_or_path=str(base)))
