"""docs/supervision.md: its lines run on real answers, with the package if it is here, else with its shape alone."""

import importlib.util
import re
import runpy
import sys
from types import SimpleNamespace

import pytest

from acs_lib import paths

PAGE = (paths.ROOT / "docs" / "supervision.md").read_text()


def detections(xyxy, confidence):
    """As supervision's: [n, 4] and [n]."""
    assert xyxy.ndim == 2 and xyxy.shape[1] == 4 and confidence.shape == (len(xyxy),)
    return SimpleNamespace(xyxy=xyxy, confidence=confidence)


@pytest.fixture
def supervision(monkeypatch):
    if importlib.util.find_spec("supervision") is None:
        monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=detections))


def test_the_pages_lines_make_detections_and_cocos_results(supervision, tmp_path, monkeypatch):
    file = tmp_path / "page.py"
    file.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    monkeypatch.chdir(paths.ROOT)
    names = runpy.run_path(str(file))
    result, found, one, every = (names[name] for name in ("result", "found", "one", "every"))
    assert one.xyxy.tolist() == [result.box.tolist()] and one.confidence.tolist() == [result.quality]
    assert len(every.xyxy) == len(found) and every.confidence.tolist() == found.table["score"].tolist()
    assert [each["image_id"] for each in names["results"]] == [139] + [285] * len(found)
