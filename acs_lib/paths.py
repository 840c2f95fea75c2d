"""Every path of the kit, from one root; nothing here depends on the current folder."""

import os
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent


PROFILES = LIBRARY / "profiles"  # <profile>.yaml


# The project's folder; ACS_ROOT is for an acs_lib that is installed elsewhere than in its project.
ROOT = Path(os.environ.get("ACS_ROOT") or LIBRARY.parent).expanduser().resolve()


NOTEBOOKS = ROOT / "notebooks"


DATA = ROOT / "data"


EMBEDDED = DATA / "embedded"  # weights of the embedded LVLMs, the icons' licence


RUNS = DATA / "runs"  # what a run computes: candidates, maps, regressors; not kept in git


REPORTS = ROOT / "reports"  # what runs write, and in reference/ what is kept of them in git


def runs(profile: str) -> Path:
    """The folder of everything that a profile's run computes on the way."""
    return RUNS / profile


def reports(profile: str) -> Path:
    """The folder of a profile's tables, figures, executed notebooks and index.html."""
    return REPORTS / profile


def reference(profile: str) -> Path:
    """The folder of the committed report that a profile's runs are compared with; `acs accept` writes it."""
    return REPORTS / "reference" / profile
