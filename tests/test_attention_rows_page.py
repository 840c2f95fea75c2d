"""docs/attention_rows.md: its example runs as it stands, and its short form says the same."""

import re
import runpy

import pytest
import torch

from acs_lib import paths

PAGE = (paths.ROOT / "docs" / "attention_rows.md").read_text()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The names of the example once it has run."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path_factory.mktemp("page") / "example.py"
    file.write_text(code)
    return runpy.run_path(str(file))


def test_the_example_gives_a_map_of_each_token_and_its_entropy(example):
    assert len(example["written"]) == 6 and example["maps"].shape == (5, 3, 4, 4, 4)
    assert torch.allclose(example["share"].sum((-2, -1)), torch.ones(5, 3, 4))
    assert example["entropy"].max() <= torch.tensor(16.0).log() + 1e-5
    model, ids = example["model"], example["ids"]
    model.set_attn_implementation("eager")
    output = model(
        **example["inputs"] | {"input_ids": example["answer"], "attention_mask": torch.ones_like(example["answer"])},
        output_attentions=True,
    )  # fmt: skip
    for layer, attention in enumerate(output.attentions):
        expected = attention[0, :, ids.shape[1] : -1][..., example["columns"][0]]
        assert (example["maps"][:, layer].flatten(2).transpose(0, 1) - expected).abs().max() < 1e-5


def test_the_five_lines_are_those_of_the_example(example, tmp_path):
    (short,) = re.findall(r"```\n(from acs_lib.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "short.py"
    file.write_text(short.replace("=64", "=3"))
    names = runpy.run_path(str(file), {"model": example["model"], "inputs": example["inputs"]})
    assert torch.equal(names["columns"], example["columns"]) and len(names["rows"]) == 2
    assert len([line for line in short.splitlines() if line]) == 5
