"""The page of `acs demo`: what it says and draws, and that it works in a real browser, on a phone too."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from acs_lib import demo, paths
from acs_lib.grounding.api import samples
from acs_lib.grounding.picture import CHOSEN, HEAT, draw_heads, head_at

SCENE = paths.EMBEDDED / "samples" / "images" / "000001.png"
EMBEDDED = [f"{family}-embedded{kind}" for family in ("internvl", "qwen2.5-vl") for kind in ("", "-plain")]
FEW = dict(samples=2, lvlm="internvl-embedded")


# ----------------------------------------------------------------------------------------------------- functions


@pytest.fixture(scope="module")
def found():
    (answer,), told = demo.ask(str(SCENE), "cherry", **FEW)
    assert told == [answer.summary]
    return answer


def test_objects_are_separated_by_commas_or_lines():
    assert demo.objects_of(" cherry ,police  car\n\ncherry,") == ["cherry", "police car"]
    assert demo.objects_of(" ,\n") == demo.objects_of("") == demo.objects_of(None) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(image=None), "choose a picture, or one of the samples"),
        (dict(objects=" , "), "name the object to look for"),
        (dict(objects="spaceship"), "internvl-embedded has no word for 'spaceship'"),
        (dict(lvlm="nothing"), "there is no LVLM 'nothing'"),
        (dict(selector="best"), "there is no selector 'best'"),
        (dict(lvlm="Qwen2.5-VL-7B", allowed=["internvl-embedded"]), "this page asks internvl-embedded only"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_visitor_can_mend_is_one_sentence(change, sentence):
    answers, told = demo.ask(**dict(image=str(SCENE), objects="cherry", **FEW) | change)
    assert answers == [] and len(told) == 1 and told[0].startswith(sentence)


def test_a_broken_picture_is_told_by_its_own_name(tmp_path):
    broken = tmp_path / "mine.png"
    broken.write_bytes(b"\x89PNG and nothing more")
    assert demo.ask(str(broken), "cherry", **FEW) == (
        [],
        ["mine.png is not an image that can be read; give a PNG, JPEG or WebP file"],
    )


def test_an_unknown_fault_is_not_hidden(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(demo, "ground", fails)
    message = "CUDA out of memory"
    answers, told = demo.ask(str(SCENE), "cherry", **FEW)
    assert answers == [] and told[0].startswith("out of memory (CUDA out of memory); ask for fewer samples")
    message = "a defect"
    with pytest.raises(RuntimeError, match="a defect"):
        demo.ask(str(SCENE), "cherry", **FEW)


def test_warnings_are_told_and_progress_names_what_is_done():
    progress = []
    answers, told = demo.ask(str(SCENE), "cherry, car", temperature=1.3, tell=progress.append, **FEW)
    assert [each.category for each in answers] == ["cherry", "car"]
    assert told[:2] == [each.summary for each in answers] and "temperature" in told[2] and len(told) == 3
    assert progress == ["loading internvl-embedded", "asking internvl-embedded 3 times for cherry, car"]


def test_the_table_marks_the_chosen_candidate_and_says_what_the_answer_says(found):
    table = demo.candidates_table(found)
    assert list(table["candidate"]) == [0, 1, 2] and table[""][0] == "greedy"
    assert table[""][found.chosen] == "chosen" and (table[""] == "chosen").sum() == 1
    assert float(table["score"][found.chosen]) == pytest.approx(found.score, rel=0.01)
    assert table["box"][found.chosen] == ", ".join(f"{side:.0f}" for side in found.box)


def test_candidates_without_a_box_have_empty_cells(found):
    gone = found.table.copy()
    gone.loc[1, ["x1", "y1", "x2", "y2", "score", "logprob", "predicted_iou"]] = np.nan
    row = demo.candidates_table(replace(found, table=gone)).iloc[1]
    assert (row["box"], row["score"], row["log-prob"], row["predicted IoU"]) == ("",) * 4


def test_a_map_is_that_of_the_head_and_the_coordinate_that_are_named(found, monkeypatch):
    monkeypatch.setattr(demo, "attention_panel", lambda image, share, box: (share, box))
    maps = found.candidates.maps[1]
    share, box = demo.map_of(found, 1, "layer 2, head 3", "y1")
    np.testing.assert_allclose(share, maps[1, 2, 3] / maps[1, 2, 3].sum(), rtol=1e-5)
    np.testing.assert_array_equal(box, found.candidates.boxes[1])
    usual, _ = demo.map_of(found, found.chosen)
    np.testing.assert_allclose(usual, found.attention)
    of_all, _ = demo.map_of(found, 1, demo.ALL, demo.ALL)
    each = maps.reshape(-1, *maps.shape[-2:]).astype(float)
    np.testing.assert_allclose(of_all, (each / each.sum((1, 2), keepdims=True)).mean(0), rtol=1e-5)


def test_each_head_can_be_named_and_clicked(found):
    layers, heads = found.candidates.statistics.shape[2:4]
    names = demo.head_names(found)
    assert len(set(names)) == 2 + layers * heads
    picture, clicked = demo.heads_of(found, 1), set()
    for x in range(2, picture.width, 9):
        for y in range(2, picture.height, 9):
            clicked.add(demo.head_clicked(found, x, y))
    assert clicked == set(names) - {demo.ALL}


def test_a_candidate_can_be_clicked(found):
    boxes = np.array([[10, 10, 90, 90], [20, 20, 40, 40], [np.nan] * 4], float)
    made_up = replace(found, candidates=replace(found.candidates, boxes=boxes))
    scale = 640 / max(found.image.size)
    clicked = [demo.candidate_clicked(made_up, x * scale, y * scale) for x, y in ((30, 30), (60, 30), (95, 50))]
    assert clicked == [1, 0, None], "the smaller one, the one around it, none"


def test_the_table_of_heads_has_each_map_in_its_place():
    maps = np.zeros((2, 3, 2, 2), np.float32)
    maps[1, 2, 0, 1] = 0.5
    picture = draw_heads(maps, ((0, 1),))
    light, dark, red = ((0xC9, 0xFF, 0xF4), (0x1B, 0x2A, 0x6B), (0xFF, 0, 0))
    assert (HEAT[-1], HEAT[0], CHOSEN) == ("#C9FFF4", "#1B2A6B", "#FF0000")
    pixels = np.asarray(picture)
    for colour, expected in ((light, {(1, 2)}), (red, {(0, 1)})):
        rows, columns = np.nonzero((pixels == colour).all(-1))
        assert {head_at(x, y, 2, 3) for x, y in zip(columns, rows)} == expected
    rows, columns = np.nonzero((pixels == light).all(-1))
    cell = [(head_at(x, y, 2, 3)) for x, y in zip(columns, rows)]
    assert len(cell) == pytest.approx(72 * 72 / 4, rel=0.1), "its upper right quarter"
    assert (pixels == dark).all(-1).any() and head_at(3, 3, 2, 3) is None and head_at(picture.width, 40, 2, 3) is None


def test_a_closer_look_can_be_seen(found):
    (answer,), _ = demo.ask(str(SCENE), "cherry", zoom=2.0, selector="sequence-log-prob", **FEW)
    assert len(answer.table) == 6 and list(demo.candidates_table(answer)["look"]) == [1] * 3 + [2] * 3
    second = next((row for row in (3, 4, 5) if answer.candidates.parsed[row]), None)
    if second is not None:
        left, top, right, bottom = answer.window
        share = answer.attention_of(second)
        assert share.shape > found.attention.shape and share.sum() == pytest.approx(1)
        rows, columns = np.nonzero(share)
        height, width = share.shape
        assert rows.min() >= np.floor(top / answer.image.height * height) - 1
        assert columns.max() <= np.ceil(right / answer.image.width * width)


# -------------------------------------------------------------------------------------------------------- server


def test_it_leaves_the_process_as_it_was(monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "mine")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="there is no LVLM 'nothing'"):
        demo.serve(lvlm="nothing")
    with demo.serving():
        assert os.environ["GRADIO_TEMP_DIR"] != "mine"
    assert (os.environ["GRADIO_TEMP_DIR"], signal.getsignal(signal.SIGTERM)) == ("mine", handler)


@pytest.fixture(scope="module")
def address():
    with demo.serving(port=None) as url:
        yield url


def test_it_is_served_to_this_machine_alone_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "acs_lib.cli", "demo"]
    environment = os.environ | {"PYTHONPATH": str(paths.LIBRARY.parent), "TMPDIR": str(tmp_path)}
    served = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url, _, rest = served.stdout.readline().partition(" ")
        assert url.startswith("http://127.0.0.1:") and rest == "(Ctrl-C ends it)\n"
        config = json.load(urllib.request.urlopen(f"{url}config"))
        assert config["analytics_enabled"] is False
        assert len(list(tmp_path.glob("acs-demo-*"))) == 1
    finally:
        served.send_signal(signal.SIGTERM)
        assert served.wait(30) == 0, served.stderr.read()
    assert list(tmp_path.glob("acs-demo-*")) == [] and "GRADIO_TEMP_DIR" not in os.environ


def test_others_may_choose_the_embedded_lvlms_only():
    with demo.serving(host="0.0.0.0") as url:
        config = json.load(urllib.request.urlopen(f"{url.replace('0.0.0.0', '127.0.0.1')}config"))
    (lvlms,) = [each["props"] for each in config["components"] if each["props"].get("label") == "LVLM"]
    choices = [name for name, _ in lvlms["choices"]]
    assert choices[0] == "internvl-embedded" and sorted(choices) == EMBEDDED
    assert lvlms["allow_custom_value"] is False


# ------------------------------------------------------------------------------------------------------- browser


class Visitor:
    """The page in a browser, on a screen of that width."""

    def __init__(self, browser, address, width):
        self.browser, self.width = browser, width
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.get(address)
        self.until("#find")

    def until(self, css, what=lambda element: True):
        """The first element of that selector, as soon as `what` holds of it."""

        def there(browser):
            return next((each for each in browser.find_elements(By.CSS_SELECTOR, css) if what(each)), None)

        return WebDriverWait(self.browser, 20, ignored_exceptions=[StaleElementReferenceException]).until(there)

    def seen(self, css):
        """The picture of that selector, scrolled to: pictures are loaded when they come near the screen."""
        self.browser.execute_script("arguments[0].scrollIntoView()", self.until(css))
        return self.until(css, lambda image: int(image.get_attribute("naturalWidth")) > 300)

    def click(self, css):
        self.browser.execute_script("arguments[0].click()", self.until(css))

    def upload(self, path):
        for button in self.browser.find_elements(By.CSS_SELECTOR, "#picture button[aria-label='Remove Image']"):
            button.click()
        self.until("#picture input[type=file]").send_keys(str(path))
        self.until("#picture button[aria-label='Remove Image']")

    def find(self, objects=None):
        if objects is not None:
            self.until("#objects textarea").send_keys(objects)
        self.click("#find")

    def told(self, part):
        return self.until("#told", lambda element: part in element.text).text

    def scrolls_sideways(self):
        script = "return document.documentElement.scrollWidth > window.innerWidth || window.innerWidth > arguments[0]"
        return self.browser.execute_script(script, self.width)


@pytest.mark.parametrize("width", [1200, 390])
def test_a_visitor_uploads_asks_and_sees(address, browser, width, tmp_path):
    broken = tmp_path / "mine.png"
    broken.write_bytes(b"\x89PNG and nothing more")
    visitor = Visitor(browser, address, width)
    assert not visitor.scrolls_sideways()
    visitor.find()
    visitor.told("choose a picture")
    visitor.upload(broken)
    visitor.find("cherry")
    assert visitor.told("mine.png") == "mine.png is not an image that can be read; give a PNG, JPEG or WebP file"
    assert browser.find_elements(By.CSS_SELECTOR, "#table") == [], "no answer, no results"

    visitor.upload(SCENE)
    visitor.find()
    assert "'cherry' at (" in visitor.told("px, chosen by ACS-Free")
    before = visitor.until("#attention img").get_attribute("src")
    for name in ("candidates", "maps"):
        assert visitor.seen(f"#{name} img").get_attribute("alt")
    assert "internvl-embedded" in visitor.until("#json", lambda element: "lvlm" in element.text).text
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    visitor.click("#save")
    WebDriverWait(browser, 60).until(lambda _: (tmp_path / "found.png").is_file())
    assert Image.open(tmp_path / "found.png").format == "PNG"
    cells = browser.find_elements(By.CSS_SELECTOR, "#table [data-testid^='cell-'][data-testid$='-0']")
    chosen = visitor.until("#candidate input").get_property("value")
    other = next(cell for cell in cells if cell.text and not chosen.startswith(cell.text))
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", other)
    other.click()
    visitor.until("#attention img", lambda image: image.get_attribute("src") != before)
    assert visitor.until("#candidate input").get_property("value").startswith(other.text)
    assert not visitor.scrolls_sideways()
    third = next(cell for cell in cells if cell.text and cell.text != other.text)
    ActionChains(browser).move_to_element(third).perform()
    visitor.until("#candidate input", lambda box: box.get_property("value").split(",")[0] == third.text)

    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => new URL(e.name).host)")
    assert {host for host in loaded if host} == {address.split("/")[2]}, "nothing is fetched from elsewhere"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_sample_is_one_click_away_and_a_large_upload_is_told(address, browser, tmp_path):
    visitor = Visitor(browser, address, 1200)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate((demo.LARGEST + 1) * 2**20)
    visitor.until("#picture input[type=file]").send_keys(str(large))
    visitor.until(".toast-body", lambda element: "size" in element.text)
    visitor.until("table tbody tr", lambda row: row.text.strip() == samples()["category"][0]).click()
    visitor.until("#objects textarea", lambda box: box.get_property("value") == samples()["category"][0])
