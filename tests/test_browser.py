"""The browser's queries: chosen by rank, with the attention that ACS-Free reads."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from acs_lib.report.browser import write_browser
from tests.test_examples import an_experiment


@pytest.fixture
def entries(tmp_path):
    write_browser([an_experiment(tmp_path, [(0, 0.6), (0, 1), (0.9, 0.25), (0.6, 0.7), (0, 0)])], tmp_path)
    return json.loads((tmp_path / "browser.json").read_text())


def test_the_overlay_is_read_at_the_coordinates_of_d_c_and_says_so(entries):
    address = entries[0]["overlay"].partition(",")[2]
    opacity = np.asarray(Image.open(io.BytesIO(base64.b64decode(address))))[..., 3].sum(0)
    assert opacity[0] == opacity[2] > 2 * opacity[1] == 2 * opacity[3], "x1 and x2 alone"
    assert entries[0]["read"] == "the selected box's at x1, x2, mean over the heads of D_c: (1, 0), (0, 1)"


def test_a_few_of_each_outcome_with_their_true_iou(entries):
    assert {entry["of"] for entry in entries} == {"internvl-embedded on scenes with the habit"}
    assert [entry["outcome"] for entry in entries] == ["gained", "gained", "lost", "unchanged", "unchanged"]
    assert [entry["chosen"]["iou"] for entry in entries] == pytest.approx([0.6, 1, 0.25, 0, 0.7])
    assert [candidate["iou"] for candidate in entries[2]["candidates"]] == pytest.approx([0.9, 0.25, 0])
