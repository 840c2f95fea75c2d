import shutil
from pathlib import Path

import pytest
import torch

from acs_lib.embedded.models import TINY
from acs_lib.lvlms.adapter import LVLM
from acs_lib.lvlms.checkpoint import hub_commit
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


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """No network, and an empty cache of the hub's: (owner/name, commit) -> the folder of that commit, which `main` is
    from now on."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub_commit.cache_clear()

    def write(source: str, commit: str) -> Path:
        repository = cache / f"models--{source.replace('/', '--')}"
        for folder in ("refs", f"snapshots/{commit}"):
            (repository / folder).mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return repository / "snapshots" / commit

    yield write
    hub_commit.cache_clear()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, driven by Selenium; it has no page yet."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with its chromedriver on this machine: no page's scripts are run")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = f"user-data-dir={tmp_path_factory.mktemp('browser')}"
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1000,800"):
        options.add_argument(f"--{argument}")
    for argument in ("disable-background-networking", profile):
        options.add_argument(f"--{argument}")
    session = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield session
    session.quit()
