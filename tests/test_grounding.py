"""`ground`: the notebooks' candidates, one chosen; its head sets and regressors; what it says to wrong input.

The embedded LVLM's weights may be trained anew: nothing here depends on what it answers.
"""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from acs_lib import paths
from acs_lib.core.candidates import ENTROPY
from acs_lib.core.files import query_key
from acs_lib.datasets.splits import load_split
from acs_lib.embedded import scenes
from acs_lib.grounding import api
from acs_lib.grounding.api import ground, read_image
from acs_lib.grounding.calibration import calibration
from acs_lib.grounding.form import explore
from acs_lib.grounding.picture import HEAT, draw_picture
from acs_lib.lvlms.adapter import ParsedAnswer
from acs_lib.lvlms.checkpoint import calibration_folder, is_embedded, lvlm_digest
from acs_lib.lvlms.load import load_lvlm, loaded_digest, lvlm_spec
from acs_lib.method import regressor, sampling
from acs_lib.method.baselines import METHODS, SELECTORS, slug
from acs_lib.method.baselines.consensus import FUSIONS
from acs_lib.method.heads import HeadSet
from acs_lib.method.origin import Origin
from acs_lib.method.regressor import AttentionIoURegressor
from acs_lib.method.selection import choose
from acs_lib.method.zoom import cut_out, mapped_back, window_around
from acs_lib.profiles import Sampling, load_profile, sampling_of
from acs_lib.runs import store
from acs_lib.study.calibrate import (
    find_label_free,
    fit_heads,
    fit_thresholds,
    make_profile,
    publish,
    unlabelled_queries,
)
from acs_lib.study.risk import calibration_set
from acs_lib.study.stages import Study

FEW = {"samples": 3, "seed": 4}


@pytest.fixture(scope="module")
def lvlm():
    return load_lvlm()


@pytest.fixture(scope="module")
def scene():
    """(path, object) of one shipped scene."""
    first = api.samples().iloc[0]
    return first["image"], first["category"]


@pytest.fixture(scope="module")
def heads(lvlm):
    return HeadSet(lvlm.name, "made up", ((2, 1), (4, 0)))


@pytest.fixture(scope="module")
def result(lvlm, scene, heads):
    return ground(lvlm, *scene, head_set=heads, **FEW)


def test_the_library_is_imported_at_once():
    code = "import sys, acs_lib; assert 'torch' not in sys.modules; acs_lib.ground; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.LIBRARY.parent)
    assert api.ground is ground and load_lvlm is load_lvlm
    with pytest.raises(AttributeError, match="no attribute 'grond'"):
        __import__("acs_lib").grond  # noqa: B018


def test_the_box_is_the_selectors_choice_among_the_notebooks_candidates(lvlm, scene, heads, result):
    picture = read_image(scene[0])
    how = Sampling(samples=3, temperature=0.8, top_p=0.6, max_new_tokens=16, seed=4)  # as the embedded profile samples
    name = result.candidates.query_id
    [(expected, records)] = sampling.sample_candidates(
        lvlm, [lvlm.prompt(picture, scene[1])], [name], [query_key(name)], [scene[1]], how
    )
    np.testing.assert_array_equal(result.candidates.boxes, expected.boxes)
    np.testing.assert_array_equal(result.candidates.maps, expected.maps)
    assert list(result.table["text"]) == [record["text"] for record in records]
    entropy = expected.statistics[..., ENTROPY]
    score = -(entropy[:, :, 2, 1].mean(1) + entropy[:, :, 4, 0].mean(1)) / 2
    np.testing.assert_allclose(result.table["score"], score, atol=1e-5)
    assert result.chosen == choose(score, expected.parsed)
    if result.box is not None:
        np.testing.assert_array_equal(result.box, expected.boxes[result.chosen])
        assert result.score == pytest.approx(score[result.chosen], abs=1e-5)


def test_paths_images_and_arrays_of_the_same_pixels_give_the_same(lvlm, scene, result):
    path, category = scene
    with Image.open(path) as image:
        same = [image.convert("RGB"), np.asarray(image.convert("RGB")), image.convert("RGBA")]
    for picture in same:
        again = ground(lvlm, picture, f" {category} ", **FEW)
        np.testing.assert_array_equal(again.candidates.boxes, result.candidates.boxes)
    other = ground(lvlm, path, category, samples=3, seed=5)
    assert list(other.table["logprob"][1:]) != list(result.table["logprob"][1:])
    assert other.table["text"][0] == result.table["text"][0], "the greedy answer has no noise"


def test_boxes_are_in_the_pixels_that_a_viewer_shows(lvlm, tmp_path):
    """A photograph taken upright is stored lying, with an EXIF note to turn it by 90 degrees."""
    stored = Image.new("RGB", (90, 40), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "upright.jpg"
    stored.save(path, exif=exif)
    for picture, size in ((path, (40, 90)), (Image.open(path), (40, 90)), (np.asarray(stored), (90, 40))):
        found = ground(lvlm, picture, "car", selector="greedy", samples=1)
        assert found.image.size == (found.candidates.width, found.candidates.height) == size
        boxes = found.candidates.boxes[found.candidates.parsed]
        assert (boxes >= 0).all() and (boxes <= [*size, *size]).all()


def test_predicted_iou_is_what_the_notebooks_predict_from_stored_maps(lvlm, scene, tmp_path):
    """The store rounds maps to float16; a regressor on a coarser grid averages them, too."""
    for grid in ((10, 10), (4, 4)):
        model = AttentionIoURegressor(lvlm.layers, lvlm.heads, grid=grid).eval()
        found = ground(lvlm, *scene, regressor=model, samples=8, seed=4)
        records = [{"text": row.text, "token_ids": [], "failure": row.failure} for row in found.table.itertuples()]
        query = {"query_id": found.candidates.query_id, "image": "", "category": scene[1]}
        query |= {"x1": 0, "y1": 0, "x2": 9, "y2": 9}
        answers = [(found.candidates, records)]
        run = store.fill(tmp_path / str(grid), pd.DataFrame([query]), lambda _, answers=answers: answers, {}, 1)
        stored = regressor.predict(model, run).set_index("candidate")["predicted_iou"]
        kept = found.candidates.parsed
        assert list(stored.index) == list(np.flatnonzero(kept)) and kept.any()
        np.testing.assert_allclose(found.table["predicted_iou"][kept], stored, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "p-true"])
def test_every_method_answers(lvlm, scene, heads, name):
    model = AttentionIoURegressor(lvlm.layers, lvlm.heads).eval()
    found = ground(lvlm, *scene, selector=name, head_set=heads, regressor=model, **FEW)
    assert slug(found.selector) == name
    assert (found.chosen is None) == (name in map(slug, FUSIONS))
    if found.box is not None:
        np.testing.assert_allclose(found.attention.sum(), 1)
        assert found.box[0] < found.box[2] and found.box[1] < found.box[3]
        assert found.chosen is None or 0 <= found.quality <= 1
    if name == "acs-learned":
        with torch.inference_mode():
            iou = model(torch.from_numpy(found.candidates.maps[found.candidates.parsed])).numpy()  # unrounded maps
        np.testing.assert_allclose(found.table["score"][found.candidates.parsed], iou, rtol=1e-2)


@pytest.mark.parametrize("name", ["Sequence Log-Prob", "sequence_log_prob", "SEQUENCE  LOG PROB"])
def test_methods_are_found_in_any_case_and_spacing(lvlm, scene, name):
    assert ground(lvlm, *scene, selector=name, **FEW).selector == "sequence log-prob"
    assert len(METHODS) == len(set(METHODS)) == 4 + len(SELECTORS) + len(FUSIONS)


def test_p_true_asks_about_the_answers_with_a_box(lvlm, scene, monkeypatch):
    asked = []

    def score(lvlm, image, category, answers):
        asked.append((image.size, category, answers))
        return np.array([float(text != "") - index / 10 for index, text in enumerate(answers)])

    monkeypatch.setattr(api.p_true_, "yes_no_tokens", lambda tokenizer: (1, 2))
    monkeypatch.setattr(api.p_true_, "ask_p_true", score)
    found = ground(lvlm, *scene, selector="P(True)", **FEW)
    texts = ["" if row.failure else row.text for row in found.table.itertuples()]
    assert asked == [((160, 160), scene[1], texts)]
    assert found.chosen == next(index for index in (1, 2, 3, 0) if texts[index]) and found.selector == "P(True)"


def test_an_lvlm_without_yes_and_no_is_not_asked(both, scene, monkeypatch):
    monkeypatch.setattr("acs_lib.method.baselines.p_true.YES", "Ja")
    with pytest.raises(ValueError, match="untrained cannot be asked .* no Ja and No; take another selector"):
        ground(both, *scene, selector="p-true")


def test_the_sampling_is_that_of_the_profile_that_knows_the_lvlm():
    def found(*arguments):
        how = sampling_of(*arguments)
        return how.samples, how.temperature, how.top_p, how.seed

    for profile in ("embedded", "paper"):
        known = load_profile(profile)
        for spec in known.lvlms:
            assert found(spec.name) == (10, known.sampling.temperature, known.sampling.top_p, 0)
    assert found("someone's") == (10, Sampling().temperature, Sampling().top_p, 0)
    assert found("Qwen2.5-VL-7B", 3, 0.2, 0.9, 5) == (3, 0.2, 0.9, 5)
    assert found("internvl-embedded", 3, 0.2) == (3, 0.2, 0.6, 0)


def test_attention_and_entropies_are_those_of_the_chosen_box(result):
    chosen = result.candidates.maps[result.chosen].astype(float)
    two = [chosen[:, layer, head] for layer, head in result.heads]
    expected = np.mean([maps / maps.sum((1, 2), keepdims=True) for maps in two], axis=(0, 1))
    np.testing.assert_allclose(result.attention, expected)
    assert result.entropies.shape == chosen.shape[1:3]
    share = chosen[:, 2, 1] / chosen[:, 2, 1].sum((1, 2), keepdims=True)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum((1, 2)).mean()
    assert result.entropies.loc[2, 1] == pytest.approx(entropy, rel=1e-4)


def test_attention_and_entropies_are_read_at_the_coordinates_of_d_c(lvlm, scene, monkeypatch):
    found = ground(lvlm, *scene, head_set=HeadSet(lvlm.name, "made up", ((2, 1),), (2,)), **FEW)
    assert found.coordinates == (2,)
    assert found.entropies.loc[2, 1] == pytest.approx(-found.score, abs=1e-5), "ACS-Free's score"
    (expected,) = found.candidates.maps[found.chosen].astype(float)[2:3, 2, 1]
    np.testing.assert_allclose(found.attention, expected / expected.sum())
    assert found.read == "attention at x2, mean over the heads of D_c"
    bare = dataclasses.replace(found, heads=(), coordinates=(0, 1, 2, 3))
    assert bare.read == "attention at x1, y1, x2, y2, mean over all heads"
    monkeypatch.setattr("acs_lib.grounding.api.draw_picture", lambda *told: told[-1])
    assert found.show() == found.read, "the name of the picture's panel"


def test_a_predicted_iou_of_a_large_box_comes_with_a_warning(result):
    whole = np.array([0, 0, result.image.width, result.image.height], float)
    small = whole * 0.09  # 0.8 % of the image
    told = [dataclasses.replace(result, box=box, quality=0.4).summary for box in (small, whole)]
    assert [text.endswith("predicted IoU 0.40") for text in told] == [True, False]
    assert "knows small objects alone" in told[1]
    assert "predicted" not in dataclasses.replace(result, box=whole, quality=np.nan).summary
    known = dataclasses.replace(result, box=whole * 0.2, quality=0.4, small=0.05)  # 4 % of the image
    assert known.summary.endswith("predicted IoU 0.40"), "a regressor of objects up to 5 %"


def test_a_regressor_says_up_to_which_size_its_objects_went(untrained, scene):
    model = AttentionIoURegressor(untrained.layers, untrained.heads)
    assert ground(untrained, *scene, "sequence-log-prob", regressor=model, samples=1).small == 0.01
    model.origin = Origin(weights=loaded_digest(untrained), question=untrained.question, sampling=Sampling(), small=0.3)
    assert ground(untrained, *scene, "sequence-log-prob", regressor=model, samples=1).small == 0.3


@pytest.mark.parametrize("name", ["Police  Car", " police car "])
def test_the_words_of_an_embedded_lvlm_are_in_lower_case(lvlm, scene, name):
    assert ground(lvlm, scene[0], name, "greedy", samples=1).category == "police car"


def test_a_word_with_a_slip_gets_the_one_that_is_meant(lvlm, scene):
    with pytest.raises(ValueError, match="no word for 'polise car'; did you mean 'police car'"):
        ground(lvlm, scene[0], "polise car")


def test_the_answer_is_json(result):
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["lvlm"] == "internvl-embedded" and content["selector"] == "ACS-Free"
    assert content["settings"] == {"samples": 3, "temperature": 0.8, "top_p": 0.6, "seed": 4, "max_new_tokens": 16}
    assert len(content["candidates"]) == 4
    assert content["box"] == content["candidates"][content["chosen"]]["box"]
    assert set(content["candidates"][0]) == {
        "candidate", "text", "score", "logprob", "predicted_iou", "failure", "box"
    }  # fmt: skip


def test_cocos_results(lvlm, scene):
    found = ground(lvlm, *scene, selector="medoid", **FEW)
    x1, y1, x2, y2 = found.box
    (told,) = found.to_coco(3, 4)
    assert told == {"image_id": 3, "category_id": 4, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": found.score}
    assert (
        dataclasses.replace(found, score=np.nan).to_coco(3, 4)[0]["score"] == 0
        and dataclasses.replace(found, box=None).to_coco(3, 4) == []
    )


def test_an_answer_has_at_most_as_many_tokens_as_one_allows(lvlm, scene):
    found = ground(lvlm, *scene, samples=1, max_new_tokens=3)
    assert found.settings.max_new_tokens == 3 and found.box is None
    assert set(found.table["failure"]) == {
        "no box in the answer, cut at max_new_tokens: raise it from 3 (acs ground --max-new-tokens)"
    }
    with pytest.raises(ValueError, match="max_new_tokens has to be at least 1, not 0"):
        ground(lvlm, *scene, max_new_tokens=0)


def test_an_answer_without_a_box_is_told(lvlm, scene, monkeypatch):
    monkeypatch.setattr(lvlm, "parse", lambda text, prompt: ParsedAnswer(failure="no box in the answer"))
    for name in ("medoid", "acs-free", "acs-learned", "pixel-vote"):
        found = ground(lvlm, *scene, selector=name, samples=2)
        assert found.box is None and not found.attention.any()
        assert "no box" in found.summary and set(found.table["failure"]) == {"no box in the answer"}
        content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert content["box"] is None and content["candidates"][1]["box"] is None
        assert found._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["internvl-embedded", "qwen2.5-vl-embedded"])
def test_several_objects_are_answered_as_each_alone_from_one_batch(name, scene, monkeypatch):
    lvlm, batches, sample = load_lvlm(name), [], sampling.sample_candidates
    objects = [*api.samples()["category"][:3]]
    alone = [ground(lvlm, scene[0], category, **FEW) for category in objects]
    monkeypatch.setattr(sampling, "sample_candidates", lambda *given: batches.append(given[4]) or sample(*given))
    together = ground(lvlm, scene[0], objects, **FEW)
    assert batches == [objects] and [found.category for found in together] == objects
    for found, expected in zip(together, alone, strict=True):
        assert (found.chosen, found.settings, found.heads) == (expected.chosen, expected.settings, expected.heads)
        pd.testing.assert_frame_equal(found.table, expected.table, atol=1e-4)
        np.testing.assert_allclose(found.candidates.maps, expected.candidates.maps, atol=1e-5)
        assert found.box is not None and list(found.box) == list(expected.box)
        assert found.quality == pytest.approx(expected.quality, abs=1e-4)
    assert len({tuple(found.box) for found in together}) == 3


def test_a_list_of_names_is_answered_in_its_order_each_asked_for_once(lvlm, scene, monkeypatch):
    batches, sample = [], sampling.sample_candidates
    monkeypatch.setattr(sampling, "sample_candidates", lambda *given: batches.append(given[4]) or sample(*given))
    first, second, third = ground(lvlm, scene[0], ("clock", "Car", " clock "), "greedy", samples=1)
    assert batches == [["clock", "car"]] and first is third and second.category == "car"
    (only,) = ground(lvlm, scene[0], ["car"], "greedy", samples=1)
    assert list(only.table["text"]) == list(second.table["text"])
    for nothing in ("", " ", [], ["car", ""]):
        with pytest.raises(ValueError, match="name the object to look for"):
            ground(lvlm, scene[0], nothing)
    with pytest.raises(ValueError, match="no word for 'sports ball'"):
        ground(lvlm, scene[0], ["car", "sports ball"])


def test_p_true_asks_about_each_objects_own_answers(lvlm, scene, monkeypatch):
    asked = {}

    def score(lvlm, image, category, answers):
        asked[category] = answers
        return np.arange(len(answers), dtype=float)

    monkeypatch.setattr(api.p_true_, "yes_no_tokens", lambda tokenizer: (1, 2))
    monkeypatch.setattr(api.p_true_, "ask_p_true", score)
    for found in ground(lvlm, scene[0], ["clock", "car"], "p-true", **FEW):
        assert asked[found.category] == ["" if row.failure else row.text for row in found.table.itertuples()]
    assert list(asked) == ["clock", "car"]


def test_a_full_gpu_is_told_how_to_ask_for_less(lvlm, scene, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(sampling, "sample_candidates", full)
    with pytest.raises(RuntimeError, match="^CUDA out of memory with 2 x 4 answers at once; name fewer objects"):
        ground(lvlm, scene[0], ["clock", "car"], **FEW)


# --------------------------------------------------------------------------------------------------------- pictures


def test_a_closer_look_adds_boxes_of_a_window_around_the_chosen_one(lvlm, scene, heads, result):
    closer = ground(lvlm, *scene, head_set=heads, **FEW, zoom=2)
    first, second = closer.candidates.first(4), closer.candidates.boxes[4:]
    assert np.array_equal(first.boxes, result.candidates.boxes) and np.array_equal(first.maps, result.candidates.maps)
    window = window_around(result.box, 2, *result.image.size)
    assert closer.window == window and len(second) == 4 and closer.table["look"].tolist() == [1] * 4 + [2] * 4
    held = second[np.isfinite(second).all(1)]
    assert len(held) and (held >= [*window[:2]] * 2).all() and (held <= [*window[2:]] * 2).all()
    shown = lvlm.prompts(cut_out(closer.image, window), [scene[1]])
    how = Sampling(samples=3, temperature=0.8, top_p=0.6, max_new_tokens=16, seed=4)
    key = query_key(f"{result.candidates.query_id}/{window}")
    [(alone, records)] = sampling.sample_candidates(lvlm, shown, ["q"], [key], [scene[1]], how)
    np.testing.assert_allclose(second, mapped_back(alone, window, *closer.image.size).boxes)
    assert list(closer.table["text"][4:]) == [record["text"] for record in records]
    assert closer.chosen == choose(closer.table["score"], closer.candidates.parsed)
    told = json.loads(json.dumps(closer.to_dict()))
    assert told["window"] == list(window) and [row["look"] for row in told["candidates"]] == [1] * 4 + [2] * 4
    assert "window" not in result.to_dict()


def test_attention_of_a_closer_look_lies_in_its_window(lvlm, scene, heads):
    closer = ground(lvlm, *scene, head_set=heads, **FEW, zoom=2)
    row = next(row for row in range(4, 8) if closer.candidates.parsed[row])
    there, before = dataclasses.replace(closer, chosen=row), dataclasses.replace(closer, chosen=0)
    assert before.attention.shape == (10, 10) and there.attention.shape == (20, 20)
    rows, columns = np.nonzero(there.attention)
    left, top, right, bottom = closer.window
    assert there.attention.sum() == pytest.approx(1)
    assert (columns * 8 >= left - 8).all() and (columns * 8 < right + 8).all()
    assert (rows * 8 >= top - 8).all() and (rows * 8 < bottom + 8).all()
    assert there.show().size == before.show().size


def test_a_closer_look_at_nothing_is_none(lvlm, scene, monkeypatch):
    monkeypatch.setattr(lvlm, "parse", lambda text, prompt: ParsedAnswer(failure="no box in the answer"))
    found = ground(lvlm, *scene, samples=2, zoom=2)
    assert found.box is None and found.window is None and len(found.table) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [({"zoom": 1}, "zoom has to be above 1, not 1"), ({"zoom": 2, "selector": "p-true"}, "one look at the image")],
)
def test_what_is_no_closer_look_is_refused(lvlm, scene, change, message):
    with pytest.raises(ValueError, match=message):
        ground(lvlm, *scene, **change)


def test_it_shows_itself(result, tmp_path):
    assert result.summary in repr(result)
    page = result._repr_html_()
    assert page.count("<tr") == 5 and 'src="data:image/webp;base64,' in page
    assert result._repr_png_().startswith(b"\x89PNG")
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".JPG", b"\xff\xd8"), (".webp", b"RIFF")):
        path = tmp_path / f"a{suffix}"
        result.save(path)
        assert path.read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="'a.svg'; name it .png"):
        result.save(tmp_path / "a.svg")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("size", [(160, 160), (60, 40), (3000, 2000)])
def test_its_picture_shows_the_boxes_where_they_are(size):
    """A black image with candidates of two scores, one without a score and one without a box."""
    share = np.array(
        [[0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.7, 0.4], [0.1, 0.6, 0.3, 0.8], [0.6, 0.6, 0.8, 0.9], [np.nan] * 4]
    )
    boxes, scores = share * np.tile(size, 2), np.array([1.0, 3.0, np.nan, 2.0, np.nan])
    attention = np.zeros((4, 4))
    attention[2, 2] = 5
    drawn = draw_picture(Image.new("RGB", size), boxes, scores, 3, boxes[3], attention, "dog " * 90)
    height, width = 640 * size[1] // size[0], 640

    def seen(panel, x, y):
        left = 24 + panel * (width + 24)
        return drawn.getpixel((left + round(x * width), 90 + round(y * height)))

    low, high = (tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5)) for colour in (HEAT[0], HEAT[-1]))
    assert seen(0, 0.1, 0.3) == low and seen(0, 0.5, 0.3) == high, "the scores' colours"
    assert seen(0, 0.2, 0.6) == (86, 180, 233), "no score"
    assert seen(0, 0.6, 0.75) == seen(1, 0.6, 0.75) == (255, 0, 0), "the chosen box"
    assert seen(1, 0.1, 0.3) == (25, 25, 25), "attention's panel holds no other box"
    assert seen(0, 0.68, 0.68) == (0, 0, 0) and seen(1, 0.68, 0.68)[2] > 100, "attention is in the third cell of four"
    white = np.asarray(drawn)[:, -24:]
    assert (white == 255).all(), "a long title is cut off"


def test_its_html_holds_nothing_but_text(lvlm, scene, monkeypatch):
    monkeypatch.setattr(lvlm, "decode", lambda token_ids: "<script>alert(1)</script>")
    monkeypatch.setattr(api, "object_name", lambda lvlm, category: category)
    page = ground(lvlm, scene[0], "<b onclick='x'>car</b>", selector="greedy", samples=1)._repr_html_()
    assert "<script" not in page and "<b " not in page and "&lt;script&gt;" in page


def test_the_form_asks_ground(lvlm, scene, capsys):
    form = explore(lvlm)
    assert "JupyterLab" in form._repr_mimebundle_()["text/plain"]
    fields = {getattr(field, "description", ""): field for field in form.children}
    assert {"image", "object", "selector", "samples", "temperature", "top-p", "seed"} <= set(fields)
    assert (fields["temperature"].value, fields["top-p"].value) == (0.8, 0.6)
    answered = form.f(scene[0], scene[1], "medoid", 2, 0.5, 1.0, 0)
    assert (answered.settings.temperature, answered.settings.top_p) == (0.5, 1)
    assert answered.selector == "medoid" and len(answered.table) == 3
    assert form.f("nowhere.png", "car", "medoid", 2, 0.5, 1.0, 0) is None
    assert "error: there is no image" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ head sets and regressors


def test_files_of_another_lvlm_are_refused_with_both_names(lvlm, scene, tmp_path):
    HeadSet("Qwen2.5-VL-7B", "COCO", ((0, 0),)).save(tmp_path / "h.json")
    regressor.save(AttentionIoURegressor(6, 8), tmp_path / "r.safetensors", "Qwen2.5-VL-7B")
    for given in ({"head_set": tmp_path / "h.json"}, {"regressor": tmp_path / "r.safetensors"}):
        with pytest.raises(ValueError, match="'Qwen2.5-VL-7B', not 'internvl-embedded'"):
            ground(lvlm, *scene, **given)
    with pytest.raises(ValueError, match="'Qwen2.5-VL-7B', not 'internvl-embedded'"):
        ground(lvlm, *scene, head_set=HeadSet("Qwen2.5-VL-7B", "COCO", ((0, 0),)))


def test_files_that_are_none_are_refused(lvlm, scene, tmp_path):
    path = tmp_path / "file"
    for text in ("[]", "{}", "no json", '{"lvlm": "internvl-embedded", "found_on": "", "heads": [1]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no head set; make it anew with acs calibrate"):
            ground(lvlm, *scene, head_set=path)
    with pytest.raises(ValueError, match="holds no regressor; make it anew with acs calibrate"):
        ground(lvlm, *scene, regressor=path)
    size = f"{lvlm.layers} layers x {lvlm.heads} heads"
    for pairs in ((), ((lvlm.layers, 0),), ((0, -1),)):
        with pytest.raises(ValueError, match=f"do not fit the {size} of {lvlm.name}; acs calibrate finds"):
            ground(lvlm, *scene, head_set=HeadSet(lvlm.name, "", pairs))
    with pytest.raises(ValueError, match=f"for 2 layers x 3 heads, and .* {lvlm.layers} x {lvlm.heads}; acs calibrate"):
        ground(lvlm, *scene, regressor=AttentionIoURegressor(2, 3))
    with pytest.raises(FileNotFoundError):
        ground(lvlm, *scene, head_set=tmp_path / "nowhere.json")


def test_an_lvlm_without_files_is_sent_to_calibrate(untrained, scene):
    for name in ("acs-free", "spatial-entropy", "acs-learned"):
        with pytest.raises(ValueError, match="untrained.*acs calibrate --lvlm"):
            ground(untrained, *scene, selector=name)
    assert ground(untrained, *scene, selector="medoid", samples=1).heads == ()


def test_the_shipped_files_belong_to_the_embedded_lvlm(lvlm):
    folder = paths.EMBEDDED / "internvl"
    found = HeadSet.load(folder / "head_set.json", lvlm.name)
    assert all(layer < lvlm.layers and head < lvlm.heads for layer, head in found.heads)
    model = regressor.load(folder / "regressor.safetensors", lvlm.name)
    assert model.settings["layers"] == lvlm.layers
    assert (folder / "regressor.safetensors").stat().st_size < 1_000_000
    spec = load_profile("embedded").lvlms[0]
    before = lvlm_digest(spec)
    assert before == lvlm_digest(spec.model_copy(update={"source": str(folder)}))


@pytest.mark.parametrize("spec", load_profile("embedded").lvlms, ids=lambda spec: spec.name)
def test_the_embedded_lvlms_are_known_as_such(spec):
    found = load_lvlm(spec.name)
    assert is_embedded(spec) and is_embedded(found)
    assert calibration_folder(spec) == calibration_folder(found) == paths.ROOT / spec.source
    with pytest.raises(ValueError, match=f"{spec.name} has no word for 'sports ball'; .*it knows: dog, fox"):
        ground(found, Image.new("RGB", (160, 160)), "sports ball")


def test_a_copy_of_an_embedded_lvlm_takes_the_same_files(scene, tmp_path):
    copy = tmp_path / "mine"
    shutil.copytree(paths.EMBEDDED / "internvl", copy)
    spec = lvlm_spec(copy)
    assert spec == lvlm_spec("internvl-embedded").model_copy(update={"source": str(copy)})
    assert is_embedded(spec) and calibration_folder(spec) == copy
    found = ground(load_lvlm(copy), scene[0], "Police Car", "acs-learned", samples=1)
    assert found.lvlm == "internvl-embedded" and found.heads and np.isfinite(found.quality)
    with (copy / "model.safetensors").open("r+b") as file:
        last = file.seek(-1, 2)
        changed = bytes([file.read(1)[0] ^ 1])
        file.seek(last)
        file.write(changed)
    assert lvlm_spec(copy).name == "mine", "other weights, another LVLM"


def test_other_lvlms_are_not(untrained):
    assert not is_embedded(untrained)
    assert calibration_folder(untrained) == paths.DATA / "calibrated" / "untrained"
    for spec in load_profile("paper").lvlms:
        assert not is_embedded(spec)
        assert calibration_folder(spec) == paths.DATA / "calibrated" / spec.name


def test_head_sets_are_found_beside_the_weights(untrained, scene, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    place = tmp_path / "calibrated" / "untrained"
    place.mkdir(parents=True)
    HeadSet("untrained", "COCO", ((1, 1),)).save(place / "head_set.json")
    assert ground(untrained, *scene, samples=1).heads == ((1, 1),)


def test_calibration_writes_files_that_ground_takes(lvlm, scene, tmp_path, monkeypatch):
    """All objects of a few scenes, few samples, much noise: boxes of every quality."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    scenes.write_split(tmp_path / "world", "scenes", 20, 5)
    spec = lvlm_spec("internvl-embedded")
    files = (tmp_path / "world" / "annotations.json", tmp_path / "world" / "images")
    usual = make_profile(spec, *files, queries=24, small=1.0).sampling
    assert usual == load_profile("embedded").sampling, "as `ground` samples"
    profile = make_profile(spec, *files, queries=24, small=1.0, samples=3, temperature=1.0, top_p=1.0)
    asked = {name: load_split(profile, profile.datasets[0], name)[0] for name in ("train", "validation")}
    asked["calibration"] = load_split(profile, calibration_set(Study(profile)), "calibration")[0]
    splits = [set(queries["image_id"]) for queries in asked.values()]
    assert all(not one & other for one, other in itertools.combinations(splits, 2)), "split by image"
    head_set, table, r = fit_heads(profile)
    assert head_set.lvlm == lvlm.name and len(table) == len(head_set.heads) and -1 <= r <= 1
    written = publish(profile, tmp_path / "out")
    assert [path.name for path in written] == ["head_set.json", "regressor.safetensors", "README.md", "SHA256SUMS"]
    found = ground(lvlm, *scene, selector="acs-learned", **calibration(tmp_path / "out"), **FEW)
    assert found.heads == head_set.heads
    assert found.settings == profile.sampling.model_copy(update=FEW), "drawn as the answers that both were found on"
    assert f"| r | {r:.3f} (Pearson, of " in written[2].read_text()
    less = publish(profile, tmp_path / "less", regressor=False)
    assert [path.name for path in less] == ["head_set.json", "README.md", "SHA256SUMS"]
    assert calibration(tmp_path / "less") == {"head_set": less[0]} and "| r | not recorded |" in less[1].read_text()
    risk, effort = fit_thresholds(profile)
    assert risk.questions == len(asked["calibration"]), "those that chose nothing"
    assert risk.absent == (asked["calibration"]["size"] == "absent").sum() > 0 and risk.images >= risk.absent
    for values in risk.values.values():
        kept = [value for value in values.values() if value is not None]
        assert kept == sorted(kept, reverse=True), "the more may be wrong, the lower the threshold"
    assert set(effort.values) == {"sequence-log-prob", "self-certainty", "acs-free", "acs-learned"}
    written = publish(profile, tmp_path / "out")
    assert [path.name for path in written[2:]] == ["risk.json", "effort.json", "README.md", "SHA256SUMS"]
    assert set(calibration(tmp_path / "out")) == {"head_set", "regressor"}, "digests of all four hold"
    (paths.RUNS / profile.name / lvlm.name / "risk.json").unlink()
    assert [path.name for path in publish(profile, tmp_path / "out")][2:] == ["effort.json", "README.md", "SHA256SUMS"]
    assert not (tmp_path / "out" / "risk.json").exists(), "it was another head set's"


def test_calibration_without_annotations(lvlm, scene, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    scenes.write_split(tmp_path / "world", "scenes", 16, 5)
    images = sorted((tmp_path / "world" / "images").glob("*.png"))
    how = Sampling(samples=6, temperature=1.0, max_new_tokens=16)
    asked = lvlm_spec("internvl-embedded"), images, ["car", "dog", "cup"], how, tmp_path / "out"
    path, head_set, counts = find_label_free(*asked)
    assert path == tmp_path / "out" / "head_set.json" and counts["questions"] == 48
    assert len(head_set.heads) == 3 and head_set.origin.sampling == how
    assert 0 < counts["high"] and 0 < counts["zero"] and counts["answers"] <= 48 * 5
    again = ground(lvlm, *scene, head_set=path, samples=1)
    assert again.heads == head_set.heads and again.settings.temperature == 1
    monkeypatch.setattr("acs_lib.runs.answer.answer_batch", None)
    assert find_label_free(*asked)[1] == head_set, "finished answers are read again"


def test_calibration_without_annotations_does_not_depend_on_where_the_images_lie(tmp_path):
    images = sorted((api.SAMPLES / "images").iterdir())[:3]
    moved = [Path(shutil.copy(path, tmp_path / f"moved {path.name}")) for path in images]
    asked = unlabelled_queries(images, ["car", "dog"])
    again = unlabelled_queries([*moved, moved[0]], ["car", "dog"])
    assert asked["query_id"].nunique() == 3 * 2 and asked["image_id"].nunique() == 3
    assert list(again["image"].unique()) == [str(path) for path in moved], "one that is there twice is asked about once"
    pd.testing.assert_frame_equal(again.drop(columns="image"), asked.drop(columns="image"))


def test_calibration_says_what_it_lacks(tmp_path):
    spec = lvlm_spec("internvl-embedded")
    files = (api.SAMPLES / "annotations.json", api.SAMPLES / "images")
    with pytest.raises(ValueError, match="8 each are the least"):
        make_profile(spec, *files)
    with pytest.raises(ValueError, match="has no small object"):
        make_profile(spec, *files, small=1e-9)
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        make_profile(spec, files[0], tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="acs run --profile unheard"):
        publish(load_profile("smoke").model_copy(update={"name": "unheard"}))


# -------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("nowhere.png", "there is no image nowhere.png"),
        (__file__, "is not an image that can be read; give a PNG"),
        (paths.ROOT, "is a folder; give an image in it"),
        (np.zeros((4, 4, 3)), r"uint16 and .* not float64 \[4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"not uint8 \[4, 4, 2\]"),
        (Image.new("F", (4, 4)), "pixels of floating point, whose range is not known; save it with 8 or 16 bits"),
    ],
)
def test_images_that_are_none(image, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_image(image)


def test_a_truncated_image_is_told(tmp_path, scene):
    path = tmp_path / "half.png"
    with open(scene[0], "rb") as file:
        path.write_bytes(file.read()[:9000])
    with pytest.raises(ValueError, match="half.png cannot be read .*save or fetch it again"):
        read_image(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": " "}, "name the object"),
        ({"category": "sports ball"}, "no word for 'sports ball'; ask for something it knows: dog, "),
        ({"selector": "best"}, "no selector 'best'; choose one of acs-free, "),
        ({"samples": 0}, "at least 1 sample"),
        ({"temperature": 0}, "temperature above 0"),
        ({"temperature": float("nan")}, "temperature above 0"),
        ({"top_p": 0}, "top-p above 0"),
        ({"top_p": 1.1}, "not 10, 0.8 and 1.1"),
        ({"lvlm": "gpt"}, "no LVLM 'gpt': give internvl-embedded, .*owner/model"),
    ],
)
def test_wrong_arguments(lvlm, scene, change, message):
    arguments = {"lvlm": lvlm, "image": scene[0], "category": scene[1]} | change
    with pytest.raises(ValueError, match=message):
        ground(**arguments)


def test_lvlms_go_by_name_folder_or_hub_name(tmp_path):
    embedded = lvlm_spec("internvl-embedded")
    assert embedded.source == "data/embedded/internvl"
    assert lvlm_spec(paths.EMBEDDED / "internvl") == embedded
    assert lvlm_spec("Qwen/Qwen2.5-VL-7B-Instruct").name == "Qwen2.5-VL-7B"
    assert lvlm_spec("someone/model-1.5").name == "someone/model-1.5"
    assert lvlm_spec(tmp_path).source == str(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "it has no config.json that names a model type; give a folder that holds the model"),
        (
            {"config.json": '{"model_type": "bert"}'},
            "no adapter for the model type 'bert', only for internvl, lfm2_vl, qwen2_vl",
        ),
        ({"config.json": '{"auto_map": {}, "model_type": "internvl_chat"}'}, "InternVL: names that end in -HF"),
        ({"config.json": "no json"}, r"not a valid JSON file\); give a folder"),
        ({"config.json": None}, r"no file named model.safetensors.*\); give a folder"),
        ({"config.json": None, "model.safetensors": "cut short"}, r"\); give a folder that holds the model"),
    ],
)
def test_folders_that_hold_no_model_are_one_sentence(tmp_path, files, message):
    """None stands for the embedded LVLM's own file."""
    for name, text in files.items():
        (tmp_path / name).write_text(text or (paths.EMBEDDED / "internvl" / name).read_text())
    with pytest.raises((ValueError, OSError), match=f"cannot load the LVLM .*{message}") as caught:
        load_lvlm(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_shipped_scenes_are_what_their_command_renders(tmp_path):
    info = json.loads((api.SAMPLES / "annotations.json").read_text())["info"]
    assert scenes.write_split(tmp_path / "samples", "scenes", 4, 1001) == info["digest"]
    assert len(api.samples()["image"].unique()) == 4
