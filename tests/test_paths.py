"""The root of everything, in a checkout and in a wheel, with and without a home."""

import tempfile
from pathlib import Path

import pytest

from acs_lib import paths


@pytest.fixture(autouse=True)
def nobodys_home(monkeypatch):
    """A user whose home is not known."""

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    for name in ("ACS_ROOT", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths.Path, "home", unknown)


def test_a_checkout_needs_no_home(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CARRIED", tmp_path / "nothing")
    assert paths._root() == paths.LIBRARY.parent


def test_a_wheel_writes_to_the_users_folder_and_without_a_home_among_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CARRIED", tmp_path)
    assert paths._root() == Path(tempfile.gettempdir()) / "acs-kit"
    monkeypatch.setattr(paths.Path, "home", lambda: Path("/home/me"))
    assert paths._root() == Path("/home/me/.local/share/acs-kit")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert paths._root() == Path("/data/acs-kit")
    monkeypatch.setenv("ACS_ROOT", str(tmp_path / "größer"))
    assert paths._root() == tmp_path / "größer"
