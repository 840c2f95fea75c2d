"""The fixed splits are not in the repository: they are rendered anew, and must come out the same."""

import json
from pathlib import Path

import pytest

from acs_lib.embedded import scenes
from acs_lib.profiles import load_profile

DIGESTS = json.loads((Path(__file__).parent / "digests.json").read_text())


@pytest.mark.parametrize("name", DIGESTS)
def test_a_fixed_split_is_rebuilt_byte_for_byte(name, tmp_path):
    profile, dataset, split = name.split("/")
    spec = next(d for d in load_profile(profile).datasets if d.name == dataset).splits[split]
    assert scenes.write_split(tmp_path / "split", dataset, spec.images, spec.seed) == DIGESTS[name]


def test_every_test_split_of_a_rendered_world_has_a_digest():
    expected = {f"{p}/{d.name}/test" for p in ("smoke", "embedded") for d in load_profile(p).datasets}
    assert expected <= set(DIGESTS)
