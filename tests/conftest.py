import pytest
import torch

from acs_lib.lvlms import embedded
from acs_lib.lvlms.base import load_lvlm


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """The embedded LVLM before any training, loaded from files as a user's would be."""
    folder = tmp_path_factory.mktemp("untrained")
    embedded.save_lvlm(embedded.build_lvlm(0), folder)
    return load_lvlm(folder, name="untrained", dtype="float32")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
