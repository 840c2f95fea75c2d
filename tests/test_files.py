"""Text files that people bring: UTF-8 with or without a mark, whatever the locale; another encoding is named."""

import json
import os
import subprocess
import sys

import pytest

from acs_lib import profiles
from acs_lib.core.files import read_text
from acs_lib.datasets import coco
from acs_lib.method.heads import HeadSet

ANNOTATIONS = json.dumps(
    {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Köter"}]}, ensure_ascii=False
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    (tmp_path / "a.json").write_text(ANNOTATIONS, encoding=encoding)
    assert read_text(tmp_path / "a.json") == ANNOTATIONS
    assert coco.read_annotations(tmp_path / "a.json").cats[1]["name"] == "Köter"
    HeadSet("Müller's", "x", ((1, 2),)).save(tmp_path / "h.json")
    (tmp_path / "h.json").write_text((tmp_path / "h.json").read_text(encoding="utf-8"), encoding=encoding)
    assert HeadSet.load(tmp_path / "h.json", "Müller's").heads == ((1, 2),)


def test_a_profile_with_a_byte_order_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles.paths, "PROFILES", tmp_path)
    text = "name: mine\ndescription: Köter\nduration: ''\nlvlms: []\ndatasets: []\ntrain_on: x\nheads: {layers: [1]}\n"
    (tmp_path / "mine.yaml").write_text(text + "sampling: {temperature: 0.5}\n", encoding="utf-8-sig")
    assert profiles.load_profile("mine").description == "Köter"


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-32", "UTF-32"), ("latin-1", "Latin-1"), ("gbk", "Latin-1")],
)
def test_another_encoding_is_named(tmp_path, encoding, named):
    text = ANNOTATIONS if encoding != "gbk" else ANNOTATIONS.replace("Köter", "狗")
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=f"a.json is not UTF-8 but .*{named}.*; save it as UTF-8"):
        coco.read_annotations(tmp_path / "a.json")


def test_the_locale_does_not_matter(tmp_path):
    (tmp_path / "a.json").write_text(ANNOTATIONS, encoding="utf-8")
    code = f"from acs_lib.datasets import coco; print(ascii(coco.read_annotations({str(tmp_path / 'a.json')!r}).cats))"
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=plain)
    assert "K\\xf6ter" in done.stdout, done.stderr
