import pytest
import torch

from acs_lib.embedded.models import TINY
from acs_lib.lvlms.adapter import LVLM
from acs_lib.lvlms.load import load_checkpoint


def _untrained(tmp_path_factory, family: str) -> LVLM:
    folder = tmp_path_factory.mktemp("untrained")
    TINY[family].save(TINY[family].build(0), folder)
    return load_checkpoint(folder, name="untrained", dtype="float32")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The embedded InternVL before any training, loaded from files as a user's would be."""
    return _untrained(tmp_path_factory, "internvl")


@pytest.fixture(scope="session")
def untrained_qwen(tmp_path_factory):
    """The embedded Qwen2.5-VL before any training, loaded likewise."""
    return _untrained(tmp_path_factory, "qwen2_5_vl")


@pytest.fixture(params=sorted(TINY))
def family(request) -> str:
    """A family of which there is an embedded LVLM."""
    return request.param


@pytest.fixture
def tiny(family):
    """What the embedded LVLM of a family is made of."""
    return TINY[family]


@pytest.fixture
def both(family, untrained, untrained_qwen):
    """The embedded LVLM of a family before any training."""
    return {"internvl": untrained, "qwen2_5_vl": untrained_qwen}[family]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
