"""Seconds of a look: which looks there are, and that the first question is not timed."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from acs_lib.lvlms import load
from acs_lib.method import sampling
from acs_lib.profiles import Sampling
from acs_lib.study import looks


def test_the_looks_are_those_of_the_rounds_and_those_at_once():
    assert looks.looks(10) == [(0, 0), (0, 3), (3, 10), (0, 5), (0, 10)]
    assert looks.looks(16) == [(0, 0), (0, 3), (3, 16), (0, 5), (0, 10), (0, 16)]
    assert looks.looks(3) == [(0, 0), (0, 3)] and looks.looks(2) == [(0, 0), (0, 2)]


@dataclass
class Asked:
    """An experiment of one image, whose clock goes on by a second an answer."""

    folder: Path
    lvlm: str = "one"

    def __post_init__(self):
        Image.new("RGB", (8, 8)).save(self.folder / "a.png")
        row = {"query_id": "a", "image": str(self.folder / "a.png"), "width": 8, "height": 8, "category": "dog"}
        self.small = pd.DataFrame([row | {"query_id": f"q{n}"} for n in range(looks.TIMED + 3)])
        self.run = type("Run", (), {"folder": self.folder, "key": "k"})
        self.profile = type("Profile", (), {"sampling": Sampling(samples=10), "map_side": None})


def test_a_question_before_the_timed_ones_and_the_mean_of_these(tmp_path, monkeypatch):
    clock, asked = [0.0], []

    def sample(lvlm, prompts, ids, keys, names, how, map_side, drawn):
        asked.append((ids[0], drawn, how.samples))
        clock[0] += 100 if len(asked) == 1 else how.samples - drawn + 1

    monkeypatch.setattr(looks.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(sampling, "sample_candidates", sample)
    monkeypatch.setattr(load, "load_spec", lambda spec: type("LVLM", (), {"prompt": lambda *picture: None})())
    found = looks.look_seconds(Asked(tmp_path))
    assert found == pytest.approx({(0, 0): 1, (0, 3): 4, (3, 10): 8, (0, 5): 6, (0, 10): 11}), "the first took 100"
    assert len(asked) == 1 + 5 * looks.TIMED and asked[0] == ("q0", 0, 10)
    again = looks.look_seconds(Asked(tmp_path))
    assert again == found and len(asked) == 1 + 5 * looks.TIMED, "it is kept"
