"""Which files of the library are imported, from a small library and from our own."""

import re
import subprocess
import sys

import pytest

from acs_lib import paths
from acs_lib.core.sources import imported_files

LIBRARY = {
    "__init__.py": "def __getattr__(name):\n    from kit.api import ground\n",
    "api.py": "import json\nfrom kit.deep import low\n",
    "deep/__init__.py": "from kit.deep.always import x\n\ndef late():\n    import kit.deep.sometimes\n",
    "deep/always.py": "x = 1\n",
    "deep/sometimes.py": "",
    "deep/low.py": "",
    "lone.py": "",
    "late.py": "def f():\n    if True:\n        from kit import lone\n",
}


@pytest.fixture
def kit(tmp_path):
    (tmp_path / "kit" / "deep").mkdir(parents=True)
    for name, text in LIBRARY.items():
        (tmp_path / "kit" / name).write_text(text)
    return tmp_path / "kit"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import json, numpy.linalg", ""),
        ("from kit import lone", "__init__ lone"),
        ("def f():\n    import kit.late as later", "__init__ late lone"),
        ("from kit.deep.low import anything", "__init__ deep/__init__ deep/always deep/low"),
        ("from kit.deep import late", "__init__ deep/__init__ deep/always deep/sometimes"),
        ("from kit import ground", "__init__ api deep/__init__ deep/always deep/low"),
        ("import kit\nkit.ground()", "__init__ api deep/__init__ deep/always deep/low"),
    ],
    ids=["none", "module", "late", "package on the way", "package itself", "lazy name", "root"],
)
def test_what_is_imported_is_followed(kit, code, expected):
    found = imported_files(code, kit)
    assert sorted(path.relative_to(kit).as_posix().removesuffix(".py") for path in found) == expected.split()


def test_our_own_library_is_followed_as_python_loads_it():
    code = "import acs_lib.datasets.splits"
    listing = (
        "import sys; print(*[m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'acs_lib'], sep='\\n')"
    )
    loaded = subprocess.run([sys.executable, "-c", f"{code}; {listing}"], capture_output=True, text=True, check=True)
    assert {str(path) for path in imported_files(code, paths.LIBRARY)} == set(loaded.stdout.split("\n")[:-1])


def test_our_own_library_has_no_relative_imports():
    for path in paths.LIBRARY.rglob("*.py"):
        assert not re.search(r"^\s*from \.", path.read_text(encoding="utf-8"), re.MULTILINE), path
