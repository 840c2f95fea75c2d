"""Every path of the kit, from one root; nothing here depends on the current folder.

In a checkout the root is its folder. A wheel has none: what it computes and fetches goes to a folder of the user's,
$XDG_DATA_HOME/acs-kit or ~/.local/share/acs-kit, so that a calibration is found again from anywhere (without a home,
among temporary files); the LVLMs and samples that it carries lie in the package itself. The environment's ACS_ROOT goes
before both.
"""

import os
import tempfile
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent
PROFILES = LIBRARY / "profiles"  # <profile>.yaml
CARRIED = LIBRARY / "shipped"  # a wheel's copy of data/embedded


def users() -> Path:
    """The folder of a user's, outside any checkout."""
    try:
        data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError:  # who has no home
        data = tempfile.gettempdir()
    return Path(data) / "acs-kit"


def _root() -> Path:
    if given := os.environ.get("ACS_ROOT"):
        return Path(given).expanduser().resolve()
    return users() if CARRIED.is_dir() else LIBRARY.parent


ROOT = _root()
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
EMBEDDED = DATA / "embedded"  # weights of the embedded LVLMs, sample scenes, the icons' licence
if CARRIED.is_dir() and not EMBEDDED.is_dir():
    EMBEDDED = CARRIED


RUNS = DATA / "runs"  # what a run computes: candidates, maps, regressors; not kept in git
REPORTS = ROOT / "reports"  # what runs write, and in reference/ what is kept of them in git


def place(name: str) -> Path:
    """The file or folder that a profile names: under data/embedded what is shipped, all else under the root."""
    embedded = Path("data", "embedded")
    return EMBEDDED / Path(name).relative_to(embedded) if Path(name).is_relative_to(embedded) else ROOT / name


def runs(profile: str) -> Path:
    """The folder of everything that a profile's run computes on the way."""
    return RUNS / profile


def reports(profile: str) -> Path:
    """The folder of a profile's tables, figures, executed notebooks and index.html."""
    return REPORTS / profile


def reference(profile: str) -> Path:
    """The folder of the committed report that a profile's runs are compared with; `acs accept` writes it."""
    return REPORTS / "reference" / profile
