"""Figures from small made-up frames: the right panels, lines, colours and files."""

import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.display import Markdown
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from acs_lib.method.heads import ATTRIBUTIONS
from acs_lib.report import figures, figures_beyond_paper
from acs_lib.report.pictures import _window, attention_overlay, candidate_boxes, check_and_cross, large_and_small
from acs_lib.report.style import METHOD_LOOKS, save_figure
from acs_lib.study import ablations

COORDINATES = ("x1", "y1", "x2", "y2")


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))


def entropy_frame(dataset: str = "scenes") -> pd.DataFrame:
    rows = [
        (
            "tiny",
            dataset,
            coordinate,
            layer,
            group,
            4 + layer / 10 + shift,
            3.9 + shift,
            4.3 + shift,
            3.8 + shift,
            4.5 + shift,
        )
        for coordinate in COORDINATES
        for layer in range(3)
        for group, shift in (("high", 0.0), ("low", 0.1), ("zero", 0.2))
    ]
    return pd.DataFrame(rows, columns="lvlm dataset coordinate layer group mean mean_lo mean_hi q25 q75".split())


def size_frame(lvlms=("tiny",)) -> pd.DataFrame:
    rows = [
        (lvlm, "scenes", size, *(acc - less + end for less in (0, 0.2, 0.1) for end in (0, -0.05, 0.05)))
        for lvlm in lvlms
        for size, acc in (("small", 0.5), ("medium", 0.7), ("large", 0.9))
    ]
    rates = [f"{rate}{end}" for rate in ("acc50", "acc75", "miou") for end in ("", "_lo", "_hi")]
    return pd.DataFrame(rows, columns=["lvlm", "dataset", "size", *rates])


def results_frame() -> pd.DataFrame:
    rows = [
        (method, family, acc, acc - 0.03, acc + 0.03, acc - 0.5, known)
        for method, family, acc, known in (
            ("greedy", "control", 0.5, 0.491),
            ("oracle best of N", "control", 0.65, np.nan),
            ("mean token log-prob", "likelihood", 0.48, np.nan),
            ("ACS-Free", "acs-free", 0.53, np.nan),
            ("ACS-Learned", "acs-learned", 0.56, 0.586),
        )
    ]
    columns = "method family acc50 acc50_lo acc50_hi delta_vs_greedy published_acc50".split()
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(**{f"acc75{end}": frame[f"acc50{end}"] - 0.2 for end in ("", "_lo", "_hi")})


def sweep_frame() -> pd.DataFrame:
    rows = [(n, method, 0.5, 0.45, 0.55) for method in ("greedy", "ACS-Free", "medoid") for n in (1, 2, 4)]
    return pd.DataFrame(rows, columns="n_samples method acc50 acc50_lo acc50_hi".split())


def legend_texts(figure) -> list[str]:
    legends = [*figure.legends, *(legend for part in figure.subfigs for legend in part.legends)]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def boxes(axes, gid: str) -> list[Rectangle]:
    return [patch for patch in axes.patches if patch.get_gid() == gid]


def test_entropy_has_a_panel_a_coordinate_and_a_line_a_group():
    figure = figures.entropy_by_layer(entropy_frame())
    assert [axes.get_ylabel() for axes in figure.axes] == [f"{name}: nats" for name in COORDINATES]
    assert figure.axes[0].get_title() == "scenes"
    for axes in figure.axes:
        lines = [container.lines[0] for container in axes.containers]
        high, zero = (found for found in axes.collections if isinstance(found, PolyCollection))
        assert high.get_hatch() and not zero.get_hatch(), "two bands, told apart without colour"
        assert len(lines) == len({line.get_linestyle() for line in lines}) == 3, "told apart without colour"
        assert len({line.get_marker() for line in lines}) == 3
    assert set(legend_texts(figure)) == {
        "high IoU (> 0.6)", "low IoU (0-0.3)", "zero IoU (0)", "quartiles, high", "quartiles, zero",
    }  # fmt: skip
    line, _, (bars,) = figure.axes[0].containers[0].lines
    assert list(line.get_ydata()) == pytest.approx([4.0, 4.1, 4.2])
    assert list(bars.get_segments()[0][:, 1]) == pytest.approx([3.9, 4.3])


def test_entropy_of_two_datasets_is_two_columns():
    figure = figures.entropy_by_layer(pd.concat([entropy_frame(), entropy_frame("scenes-shift")]))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["scenes", "scenes-shift"]
    assert len(figure.axes) == 8


def test_the_heads_of_d_c_stand_apart_by_group_beside_r():
    rows = [
        (lvlm, "scenes", name, group, mean, mean - 0.1, mean + 0.1, mean - 1, mean + 1)
        for lvlm, names in (("tiny", ["3, 5", "R"]), ("other", ["0, 1", "2, 2", "R"]))
        for name in names
        for group, mean in (("high", 2.0), ("low", 2.5), ("zero", 3.0))
    ]
    columns = "lvlm dataset heads group mean mean_lo mean_hi q25 q75".split()
    figure = figures.entropy_by_head(pd.DataFrame(rows, columns=columns))
    ticks = [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
    assert ticks == [["3, 5", "R"], ["0, 1", "2, 2", "R"]]
    (high, *_), (zero, *_) = ([line for line in figure.axes[0].lines if line.get_marker() == m] for m in "o^")
    assert list(high.get_ydata()) == [2, 2] and list(zero.get_xdata() - high.get_xdata()) == pytest.approx([0.4, 0.4])
    assert legend_texts(figure) == ["high IoU (> 0.6)", "low IoU (0-0.3)", "zero IoU (0)"]


def test_sizes_are_told_by_three_rates_above_the_published_numbers():
    figure = figures.by_size(size_frame(("tiny", "other")))
    assert [axes.get_title() for axes in figure.axes] == ["Acc@0.5", "Acc@0.75", "mean IoU"]
    published = "published: Qwen2.5-VL-7B, COCO"
    for axes, known in zip(figure.axes, ([0.8719, 0.6135], [], [0.8037, 0.5222])):
        places = dict(zip((label.get_text() for label in axes.get_yticklabels()), axes.get_yticks()))
        assert list(places) == ["tiny, scenes", "other, scenes", published] and min(places, key=places.get) == published
        found = [line for line in axes.lines if line.get_gid() == "published" and len(line.get_xdata())]
        assert [line.get_xdata()[0] for line in found] == known
        assert {line.get_ydata()[0] for line in found} <= {places[published]}
    large = next(line for line in figure.axes[1].lines if line.get_marker() == "s")
    assert list(large.get_xdata()) == pytest.approx([0.7, 0.7])
    assert legend_texts(figure) == ["large objects", "medium objects", "small objects"]


def differences_frame() -> pd.DataFrame:
    rows = [
        (lvlm, dataset, condition, method, family, delta + shift)
        for dataset in ("scenes", "shift")
        for lvlm, condition, shift in (("tiny", "habit", 0.0), ("tiny-plain", "plain", -0.1))
        for method, family, delta in (
            ("medoid", "consensus", 0.01), ("token entropy", "likelihood", 0.02),
            ("entropy, all heads", "attention", 0.5),
            ("ACS-Free", "acs-free", 0.03), ("ACS-Learned", "acs-learned", 0.04),
        )
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns="lvlm dataset condition method family delta_vs_greedy".split())
    return frame.assign(delta_lo=frame["delta_vs_greedy"] - 0.02, delta_hi=frame["delta_vs_greedy"] + 0.02)


def test_differences_have_a_panel_a_column_and_both_conditions_in_it():
    figure = figures.differences(differences_frame())
    assert [axes.get_title() for axes in figure.axes] == ["tiny, scenes", "tiny, shift"]
    assert legend_texts(figure) == ["with the habit", "without the habit"]
    for axes in figure.axes:
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names in (["ACS-Learned", "ACS-Free", "best sampling baseline"], [])
        assert [text.get_text().strip() for text in axes.texts] == ["token entropy"] * 2, "the best of two families"
        filled, hollow = (line for line in axes.lines if line.get_marker() == "*")
        assert filled.get_xdata()[0] == pytest.approx(4) and hollow.get_xdata()[0] == pytest.approx(-6), "points"
        assert hollow.get_markerfacecolor() == "white" != filled.get_markerfacecolor()
        assert 0 < hollow.get_ydata()[0] < 0.5 and -0.5 < filled.get_ydata()[0] < 0


def test_differences_without_a_condition_have_one_row_a_method():
    frame = differences_frame().query("condition == 'habit'").drop(columns="condition")
    figure = figures.differences(frame)
    assert not figure.legends and len([line for line in figure.axes[0].lines if line.get_marker() == "*"]) == 1


def test_main_results_mark_greedy_oracle_and_published():
    (axes,) = figures.main_results(results_frame()).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["mean token log-prob", "greedy", "ACS-Free", "ACS-Learned", "oracle best of N"]
    greedy = [line for line in axes.lines if line.get_gid() == "greedy"]
    assert [line.get_xdata()[0] for line in greedy] == pytest.approx([0.5, 0.3]), "Acc@0.5 and Acc@0.75"
    (least,) = [line for line in axes.lines if line.get_marker() == "."]
    assert list(least.get_xdata()) == pytest.approx([0.3, 0.45, 0.28, 0.33, 0.36])
    (known,) = [line for line in axes.lines if line.get_gid() == "published"]
    assert sorted(known.get_xdata()) == [0.491, 0.586]
    heights = list(axes.get_yticks())
    assert heights[-1] - heights[-2] > heights[1] - heights[0], "the oracle stands apart"


def test_main_results_do_not_need_published_numbers():
    figure = figures.main_results(results_frame().drop(columns="published_acc50"))
    assert "published" not in legend_texts(figure)


def layers_frame() -> pd.DataFrame:
    frame = pd.DataFrame({"lvlm": "tiny", "layer": range(4), "selected": [False, True, True, False]})
    for name in ATTRIBUTIONS:
        frame[name] = [0.05, 0.45, 0.4, 0.1]
        frame[f"{name}_lo"], frame[f"{name}_hi"] = frame[name] - 0.02, frame[name] + 0.03
    return frame


def test_layers_have_all_attributions_and_those_with_selected_heads_stand_on_grey():
    figure = figures.layer_attribution(layers_frame())
    (axes,) = figure.axes
    grey = [patch for patch in axes.patches if mpl.colors.to_hex(patch.get_facecolor()).upper() == figures.LIGHT]
    assert [round(patch.get_x() + patch.get_width() / 2) for patch in grey] == [1, 2]
    assert legend_texts(figure) == ["layers with heads in $D_c$", *ATTRIBUTIONS]
    ends = [found.get_segments() for found in axes.collections if hasattr(found, "get_segments")]
    assert ends[0][1][:, 1] == pytest.approx([0.43, 0.48]) and [len(found) for found in ends] == [4, 4, 4]


def test_selected_heads_are_outlined():
    heads = pd.DataFrame([("tiny", layer, head, 0.5 + layer / 10) for layer in range(3) for head in range(2)])
    heads.columns = ["lvlm", "layer", "head", "auroc"]
    heads["selected"] = (heads["layer"] == 2) & (heads["head"] == 1)
    axes = figures.head_heatmap(heads).axes[0]
    assert {patch.get_xy() for patch in axes.patches} == {(1, 2)}
    low, high = axes.collections[0].get_clim()
    assert (low + high) / 2 == pytest.approx(0.5), "chance is the middle of the colours"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head (from 0)", "decoder layer (from 0)")


def answers_frame(dataset: str = "scenes") -> pd.DataFrame:
    true = np.linspace(0, 1, 50)
    frame = pd.DataFrame({"image": np.arange(50) // 5, "predicted_iou": true, "iou": true})
    return pd.concat([frame, pd.DataFrame({"image": [99], "predicted_iou": [np.nan], "iou": [0.5]})]).assign(
        lvlm="tiny", dataset=dataset
    )


BINS = pd.DataFrame(
    {"lvlm": "tiny", "predicted_iou": [0.2, 0.8], "iou": [0.3, 0.7], "iou_lo": 0.2, "iou_hi": [0.4, 0.9]}
)


def test_predicted_against_true_shows_r_the_diagonal_and_skips_nan():
    bins = pd.concat([BINS.assign(dataset=name) for name in ("shift", "scenes")])
    bins["predicted_iou"] += 0.1 * (bins["dataset"] == "shift")
    figure = figures.predicted_vs_true(pd.concat([answers_frame(), answers_frame("shift")]), bins)
    axes, second, _ = figure.axes
    assert (axes.get_title(), second.get_title()) == ("tiny, scenes", "tiny, shift")
    assert [text.get_text() for text in axes.texts] == ["Pearson r = 1.000\n50 answers, 10 images"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted IoU", "true IoU")
    assert "predicted = true" in legend_texts(figure)
    for panel, place in ((axes, 0.2), (second, 0.3)):  # the bins of its own columns, in whatever order
        (means,) = [line for line in panel.lines if line.get_marker() == "o"]
        assert means.get_xydata()[0] == pytest.approx([place, 0.3])
        (ends,) = [found for found in panel.collections if hasattr(found, "get_segments")]
        assert ends.get_segments()[1][:, 1] == pytest.approx([0.2, 0.9])
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.predicted_vs_true(answers_frame().tail(1), bins)


def test_sweep_has_a_line_a_method():
    figure = figures.candidates_sweep(sweep_frame())
    assert legend_texts(figure) == ["greedy", "ACS-Free, 95 % interval", "medoid"]
    assert list(figure.axes[0].get_xticks()) == [1, 2, 4]
    greedy, free, _ = figure.axes[0].lines
    assert (greedy.get_linestyle(), greedy.get_marker()) == ("--", "") and free.get_marker() == "P"


def test_overlay_has_a_panel_a_map_and_the_papers_colours(image):
    maps = np.ones((4, 3, 5))
    figure = attention_overlay(image, maps, list(COORDINATES), [10, 10, 30, 30], [12, 10, 32, 30])
    panels = figure.axes[:4]
    assert [axes.get_title() for axes in panels] == list(COORDINATES)
    for axes in panels:
        assert axes.images[1].get_array().shape == (60, 80), "up-sampled to the image"
        ((truth,), (prediction,)) = boxes(axes, "truth"), boxes(axes, "prediction")
        assert to_hex(truth.get_edgecolor()) == "#ffff00" and to_hex(prediction.get_edgecolor()) == "#ff0000"
        assert prediction.get_bbox().extents.tolist() == [10, 10, 30, 30]
    with pytest.raises(ValueError, match="titles"):
        attention_overlay(image, maps, ["x1"])


def test_every_map_of_an_overlay_can_have_a_box_of_its_own(image):
    two = np.array([[10, 10, 30, 30], [np.nan] * 4])
    first, second = attention_overlay(image, np.ones((2, 3, 5)), ["greedy, x1", "chosen, x1"], two).axes[:2]
    assert boxes(first, "prediction")[0].get_bbox().extents.tolist() == [10, 10, 30, 30]
    assert not boxes(second, "prediction"), "an answer without a box"


def a_pair(truth: list[float]) -> tuple[dict, dict]:
    """A greedy answer without a box, and a right one beside the truth."""
    x1, y1, x2, y2 = truth
    seen = {"map": np.eye(3, 4)}
    return (
        {"name": "greedy", "score": "R = 2.10 nats", "box": None, "iou": 0.0, **seen},
        {"name": "ACS-Free", "score": "R = 1.10 nats", "box": [x1 + 1, y1, x2 + 1, y2], "iou": 0.78, **seen},
    )


def test_check_and_cross_follow_the_truth_and_the_object_is_enlarged(image):
    truth = [40, 30, 48, 38]
    figure = check_and_cross({"image": image, "category": "a $5 note", "truth": truth}, a_pair(truth))
    missed, found, *zooms = figure.axes
    assert (missed.get_title(), found.get_title()) == ("✗ greedy\nR = 2.10 nats", "✓ ACS-Free\nR = 1.10 nats")
    assert [zoom.get_xlabel() for zoom in zooms] == ["no box", "IoU 0.78"]
    for zoom in zooms:
        (left, right), (bottom, top) = zoom.get_xlim(), zoom.get_ylim()
        assert 0 <= left < 40 and 49 < right <= 80 and right - left < 40
        assert 0 <= top < 30 and 38 < bottom <= 60
    assert not boxes(zooms[0], "prediction") and not boxes(missed, "prediction")
    assert to_hex(boxes(zooms[1], "truth")[0].get_edgecolor()) == "#ffff00"
    assert to_hex(boxes(zooms[1], "prediction")[0].get_edgecolor()) == "#ff0000"


def test_large_and_small_of_one_image_with_both_attentions(image):
    truth, large = [40, 30, 48, 38], {"category": "bus", "truth": [0, 0, 30, 50], "greedy": [1, 0, 30, 50]}
    case = {"image": image, "category": "kite", "truth": truth, "large": large | {"greedy_iou": 0.97}}
    whole, zoom, missed, found = large_and_small(case, a_pair(truth)).axes
    assert (whole.get_title(), zoom.get_title()) == ("large: bus\ngreedy IoU 0.97", "small: kite\nenlarged")
    assert boxes(whole, "truth")[0].get_bbox().extents.tolist() == [0, 0, 30, 50]
    assert boxes(zoom, "truth")[0].get_bbox().extents.tolist() == truth and len(boxes(zoom, "prediction")) == 1
    assert missed.get_title().startswith("✗ greedy") and found.get_title().startswith("✓ ACS-Free")


@pytest.mark.parametrize("truth", [[0, 0, 3, 3], [76, 55, 80, 60], [0, 0, 80, 60]])
def test_zoom_window_stays_inside_the_image(truth):
    x1, y1, x2, y2 = _window([None, [70, 50, 80, 60]], np.array(truth), 80, 60)
    assert 0 <= x1 < x2 <= 80 and 0 <= y1 < y2 <= 60
    assert x2 - x1 == pytest.approx(y2 - y1)


def test_candidates_are_all_drawn_but_those_without_a_box(image):
    answers = np.array([[1, 1, 9, 9], [2, 2, 10, 10], [np.nan] * 4, [3, 3, 12, 12]])
    scores = np.array([0.1, 0.9, np.nan, 0.4])
    axes = candidate_boxes(image, answers, scores, [2, 2, 9, 9], 1).axes[0]
    assert [len(boxes(axes, gid)) for gid in ("candidate", "truth", "prediction")] == [2, 1, 1]
    axes = candidate_boxes(image, answers).axes[0]
    assert [len(boxes(axes, gid)) for gid in ("candidate", "truth", "prediction")] == [3, 0, 0]


def test_the_highlighted_candidate_has_its_own_name(image):
    figure = candidate_boxes(image, np.array([[1, 1, 9, 9], [2, 2, 10, 10]]), chosen=0, label="greedy")
    assert legend_texts(figure) == ["greedy", "candidates"]


def test_files_are_whole_and_the_same_bytes_each_time(tmp_path):
    for run in "ab":
        save_figure(figures.candidates_sweep(sweep_frame()), tmp_path / run, "candidates_sweep", "A sweep.")
    for suffix in ("png", "pdf"):
        first, second = ((tmp_path / run / "figures" / f"candidates_sweep.{suffix}").read_bytes() for run in "ab")
        assert first == second and len(first) > 1000 and b"CreationDate" not in first
    assert {path.name for path in (tmp_path / "a" / "figures").iterdir()} == {
        "candidates_sweep.png", "candidates_sweep.pdf", "captions.json",
    }  # fmt: skip


def test_a_large_pdf_is_not_kept(tmp_path):
    stale = tmp_path / "figures" / "cloud.pdf"
    save_figure(figures.candidates_sweep(sweep_frame()), tmp_path, "cloud", "A small one.")
    assert stale.exists()
    cloud, axes = plt.subplots()
    axes.plot(*np.random.default_rng(0).random((2, 30_000)), ".")
    save_figure(cloud, tmp_path, "cloud", "A large one.")
    assert stale.with_suffix(".png").exists() and not stale.exists()
    plt.close(cloud)


def test_of_an_image_there_is_a_png_alone(tmp_path):
    save_figure(Image.new("RGB", (3, 2), "red"), tmp_path, "found", "An answer.")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"found.png", "captions.json"}
    assert Image.open(tmp_path / "figures" / "found.png").getpixel((0, 0)) == (255, 0, 0)


def test_captions_gather_in_one_file(tmp_path):
    figure = figures.candidates_sweep(sweep_frame())
    save_figure(figure, tmp_path, "candidates_sweep", "A sweep.")
    save_figure(figure, tmp_path, "other", "Another.")
    captions = json.loads((tmp_path / "figures" / "captions.json").read_text(encoding="utf-8"))
    assert captions == {"candidates_sweep": "A sweep.", "other": "Another."}


def test_a_caption_ends_with_what_is_seen(tmp_path):
    figure = figures.candidates_sweep(sweep_frame())
    save_figure(figure, tmp_path, "plain", "A sweep.", Markdown("**Takeaway.** More is better."))
    save_figure(figure, tmp_path, "points", "A sweep.", Markdown("**Takeaway.** More is better:\n- here\n- there"))
    captions = json.loads((tmp_path / "figures" / "captions.json").read_text(encoding="utf-8"))
    assert captions == {"plain": "A sweep. More is better.", "points": "A sweep. More is better: here; there."}


def test_nothing_leaks_into_the_callers_matplotlib():
    before = dict(mpl.rcParams)
    own = plt.figure()
    figures.candidates_sweep(sweep_frame())
    assert plt.get_fignums() == [own.number] and dict(mpl.rcParams) == before
    plt.close(own)


SHOWN = """import pandas as pd
from acs_lib.report import figures, style
from acs_lib.method.heads import ATTRIBUTIONS
frame = pd.DataFrame({"layer": [0, 1], "selected": [True, False]})
for name in ATTRIBUTIONS:
    frame[name], frame[f"{name}_lo"], frame[f"{name}_hi"] = [0.4, 0.6], 0.3, 0.7
for _ in range(2):
    figure = figures.layer_attribution(frame)
style.save_figure(figure, folder, "layers", "Layers.")
None"""


def test_a_notebook_shows_each_figure_once(tmp_path):
    import nbclient
    import nbformat

    cells = [f"folder = {str(tmp_path)!r}", SHOWN, "figure = figures.layer_attribution(frame)", "figure.axes; None"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    pictures = [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in notebook.cells]
    assert pictures == [0, 2, 1, 0]


def test_an_empty_frame_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        figures.main_results(results_frame().iloc[:0])


def ablations_frame() -> pd.DataFrame:
    apart, same, unknown = (0.05, 0.01, 0.09), (0.0, -0.02, 0.02), (np.nan,) * 3
    rows = [
        (ablations.STANDARD, "-", "greedy", "scenes", 400, 0.5, *same),
        ("heads in D_c", "2", "ACS-Free", "scenes", 400, 0.52, *apart),
        ("heads in D_c", "1", "ACS-Free", "scenes", 400, 0.52, *same),
        *[("samples", str(n), method, "scenes", 400, 0.53, *same)
          for n in range(1, 21) for method in ("greedy", "ACS-Free")],
        *[("applied to size", size, method, "scenes", n, 0.54, *unknown)
          for size, n in (("small", 400), ("large", 90)) for method in ("greedy", "ACS-Free", "oracle best of N")],
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns="factor value method dataset n_queries acc50 delta delta_lo delta_hi".split())
    return frame.assign(acc50_lo=frame["acc50"] - 0.02, acc50_hi=frame["acc50"] + 0.02)


def points(axes) -> list[tuple[float, float, str]]:
    """x, y and face of every marker with an interval."""
    lines = [container.lines[0] for container in axes.containers]
    return [(float(x), float(y), line.get_markerfacecolor()) for line in lines for x, y in line.get_xydata()]


def test_ablations_are_a_forest_of_paired_differences():
    frame = ablations_frame()
    both = pd.concat([frame.assign(lvlm="a"), frame.assign(lvlm="b")])
    first, second = figures_beyond_paper.ablation_forest(both).axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == ["heads in $D_c$: 1", "2", "samples: 1", "4", "6", "9", "12", "15", "17", "20"]
    ticks, green = dict(zip(names, first.get_yticks())), METHOD_LOOKS["ACS-Free"][0]
    found = {(round(y - 0.18, 2), x): face for x, y, face in points(second)}
    assert found[round(ticks["2"], 2), 5.0] == green
    assert found[round(ticks["heads in $D_c$: 1"], 2), 0.0] == "white"
    assert len(found) == len(names), "no row where the queries are others"
    gaps = np.diff(first.get_yticks())
    assert gaps[1] > gaps[0] == gaps[2], "factors stand apart"


def test_risk_has_intervals_at_coverages_of_each_methods_own():
    coverage = np.arange(1, 21) / 20
    frame = pd.DataFrame({"coverage": coverage, "risk": 0.3, "risk_lo": 0.2, "risk_hi": 0.5})
    (axes,) = figures_beyond_paper.risk_coverage(pd.concat([frame.assign(method=name) for name in "ab"])).axes
    bars = [container.lines[2][0].get_segments() for container in axes.containers]
    first, second = ({round(float(bar[0, 0]), 2) for bar in found} for found in bars)
    assert len(first) == len(second) == 10 and not first & second
    assert bars[0][0][:, 1].tolist() == [0.2, 0.5]


def test_names_of_acs_are_bold_in_every_row_of_panels():
    frame = pd.DataFrame({"auroc": 0.6, "auroc_lo": 0.5, "auroc_hi": 0.7, "answers": "all"}, index=range(8))
    frame = frame.assign(method=["medoid", "ACS-Free"] * 4, lvlm=np.repeat(["a", "b"], 4), dataset=list("ccdd") * 2)
    left = figures_beyond_paper.confidence(frame).axes[::2]
    for axes in left:
        weights = {label.get_text(): label.get_fontweight() for label in axes.get_yticklabels()}
        assert weights == {"medoid": "normal", "ACS-Free": "bold"}


def test_correlations_over_heads_have_intervals_and_single_heads_none():
    frame = pd.DataFrame(
        {"score": [*(f"entropy, {name}" for name in ("one head", "all heads", "D_c")), "ACS-Learned"]}
    ).assign(pearson=[0.1, 0.2, -0.5, 0.8], partial_pearson_category=[0.1, 0.1, -0.3, 0.6])
    for end, values in {"lo": [np.nan, 0.0, -0.4, 0.5], "hi": [np.nan, 0.2, -0.1, 0.7]}.items():
        frame[f"partial_pearson_category_{end}"] = values
    figure = figures_beyond_paper.size_effect(frame)
    assert legend_texts(figure) == ["entropy, one head", "entropy, all heads", "entropy, $D_c$", "ACS-Learned"]
    ends = [container.lines[2][0].get_segments()[0][:, 1] for container in figure.axes[0].containers]
    assert np.ptp(ends[0]) == 0 and [list(found) for found in ends[1:]] == [[0.0, 0.2], [-0.4, -0.1], [0.5, 0.7]]
