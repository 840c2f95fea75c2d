"""What mypy says of the public API, of what it stands on, and of code that uses it (its settings: pyproject.toml)."""

import re
import subprocess
import sys

from acs_lib import paths

# A user's code; behind # the kind of the mistake in that line.
USE = """\
from typing import assert_type

import numpy as np

import acs_lib
from acs_lib import Detections, Grounding, detect, ground, load_lvlm, score

lvlm = load_lvlm("internvl-embedded")
result = ground(lvlm, "x.png", "dog", selector="acs-learned", zoom=2)
assert_type(result, Grounding)
assert_type(result.box, np.ndarray | None)
assert_type(result.quality, float)
assert_type(ground(None, np.zeros((8, 8), np.uint8), ["dog", "cat"]), list[Grounding])
assert_type(detect(lvlm, "x.png", "dog"), Detections)
assert_type(score(lvlm, "x.png", "dog", ["a text"]), Grounding)


def either(asked: str | list[str]) -> None:
    assert_type(ground(lvlm, "x.png", asked), Grounding | list[Grounding])


result.box.tolist()  # union-attr
ground(lvlm, "x.png", ("dog",)).box  # attr-defined
ground(lvlm, "x.png", 3)  # call-overload
ground(lvlm, "x.png", "dog", zoom="2")  # call-overload
detect(lvlm, "x.png", ["dog"])  # arg-type
acs_lib.grund  # attr-defined


def untyped(image):  # no-untyped-def
    return image
"""


def mypy(*arguments):
    return subprocess.run([sys.executable, "-m", "mypy", *arguments], cwd=paths.ROOT, capture_output=True, text=True)


def test_the_library_holds_what_its_annotations_say():
    done = mypy()
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"no issues found in (\d+) source files", done.stdout)[1]) > 50


def test_a_users_code_is_checked(tmp_path):
    """So mypy can fail here, on each mistake and on nothing else."""
    (tmp_path / "use.py").write_text(USE)
    done = mypy(tmp_path / "use.py")
    found = re.findall(r"use\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    lines = enumerate(USE.splitlines(), 1)
    assert found == [(str(number), line.split("# ")[1]) for number, line in lines if "# " in line], done.stdout
    assert done.returncode == 1
