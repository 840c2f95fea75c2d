import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from acs_lib.report import figures, html, tables


@pytest.fixture
def report(tmp_path):
    frame = pd.DataFrame({"claim": ["greedy", "<script>alert(1)</script>"], "measured": [0.5, 0.75]})
    tables.write_table(frame, tmp_path, "layers", "Measured <here>.")
    entropy = pd.DataFrame(
        [
            ("l", "d", coordinate, layer, group, 3.0, 2.5, 3.5, 9)
            for coordinate in ("x1", "y1", "x2", "y2")
            for layer in range(3)
            for group in ("high", "low", "zero")
        ],
        columns=["lvlm", "dataset", "coordinate", "layer", "group", "mean", "q25", "q75", "n"],
    )
    figures.save(figures.entropy_by_layer(entropy), tmp_path, "entropy_by_layer")
    (tmp_path / "figures" / "captions.json").write_text(json.dumps({"entropy_by_layer": "Entropy & layers"}))
    return html.build("made-up", tmp_path)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.loads, self.cells, self.images, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.loads += [attributes[name] for name in ("src",) if attributes.get(name)]
        if tag == "link":
            self.loads.append(attributes.get("href", ""))
        if tag == "img":
            self.images.append(attributes)

    def handle_data(self, data):
        self.cells.append(data.strip())


def test_the_page_is_self_contained_and_escapes_what_it_shows(report):
    page = Page()
    page.feed(report.read_text())
    assert all(source.startswith("data:") for source in page.loads)
    assert "<script>alert(1)</script>" in page.cells and "<script>alert(1)" not in report.read_text()
    assert any("greedy" == cell for cell in page.cells)
    assert any(image.get("alt") for image in page.images) and page.images[0]["src"].startswith("data:image/png")


def test_entropy_figure_has_the_papers_panels_and_groups():
    rows = [
        ("l", "d", c, k, g, 3.0, 2.5, 3.5, 9)
        for c in ("x1", "y1", "x2", "y2")
        for k in (0, 1)
        for g in ("high", "low", "zero")
    ]
    names = ["lvlm", "dataset", "coordinate", "layer", "group", "mean", "q25", "q75", "n"]
    figure = figures.entropy_by_layer(pd.DataFrame(rows, columns=names))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["x1", "y1", "x2", "y2"]
    assert all(sum(len(line.get_xdata()) == 2 for line in axes.lines) >= 3 for axes in panels), "three drawn groups"


def test_boxes_are_yellow_for_truth_and_red_for_the_prediction():
    image = Image.new("RGB", (40, 40))
    figure = figures.attention_overlay(
        image, np.random.default_rng(0).random((2, 5, 5)), ["x1", "y1"], np.array([1, 1, 9, 9]), np.array([2, 2, 9, 9])
    )
    colours = {to_hex(patch.get_edgecolor()) for axes in figure.axes for patch in axes.patches}
    reds = [c for c in colours if int(c[1:3], 16) > 180 and int(c[3:5], 16) < 90 and int(c[5:7], 16) < 90]
    yellows = [c for c in colours if int(c[1:3], 16) > 200 and int(c[3:5], 16) > 180 and int(c[5:7], 16) < 100]
    assert reds and yellows


def test_figures_are_saved_the_same_bytes_for_the_same_input(tmp_path):
    frame = pd.DataFrame({"lvlm": "l", "layer": range(3), "attribution": [0.2, 0.5, 0.3], "rank": [3, 1, 2]})
    for name in ("a", "b"):
        figures.save(figures.layer_attribution(frame.assign(selected=[False, True, True])), tmp_path / name, "layers")
    for suffix in ("png", "pdf"):
        first, second = ((tmp_path / name / "figures" / f"layers.{suffix}").read_bytes() for name in ("a", "b"))
        assert first == second and len(first) > 1000
