"""docs/supervision.md: its lines run on real answers, with the package if it is here, else with its shape alone."""

import importlib.util
import re
import runpy
import sys
from types import SimpleNamespace

import pytest

from acs_lib import detect, ground, load_lvlm, paths

PAGE = (paths.ROOT / "docs" / "supervision.md").read_text()
SCENE = paths.EMBEDDED / "samples" / "images" / "000001.png"


def detections(xyxy, confidence):
    """As supervision's: [n, 4] and [n]."""
    assert xyxy.ndim == 2 and xyxy.shape[1] == 4 and confidence.shape == (len(xyxy),)
    return SimpleNamespace(xyxy=xyxy, confidence=confidence)


@pytest.fixture
def supervision(monkeypatch):
    if importlib.util.find_spec("supervision") is None:
        monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=detections))


def test_the_pages_lines_make_detections(supervision, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    lvlm = load_lvlm()
    result, found = (
        ground(lvlm, SCENE, "cherry", samples=2),
        detect(lvlm, SCENE, "cherry", samples=2, max_new_tokens=64),
    )
    file = tmp_path / "page.py"
    file.write_text(code)
    names = runpy.run_path(str(file), {"result": result, "found": found})
    one, every = names["one"], names["every"]
    assert one.xyxy.tolist() == [result.box.tolist()] and one.confidence.tolist() == [result.quality]
    assert len(every.xyxy) == len(found) and every.confidence.tolist() == found.table["score"].tolist()
