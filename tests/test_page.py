"""The report page: complete, escaped, self-contained, and working in a real browser."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from acs_lib import paths
from acs_lib.report.page import FIGURES, _shown, build, page_table, render

NASTY = "<img src=x onerror=alert(1)></script><b>&\"'"
OTHER = "tiny-plain on scenes without the habit"
PUBLISHED = ("embedded", "ablations", "beyond")  # whose pages are committed
VOID = {"meta", "img", "input", "link", "br", "hr"}


class Page(HTMLParser):
    """What the tests ask of a page; fails on a tag that is not closed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.loads, self.links, self.rows = [], [], [], [], {}
        self.table, self.text, self.cells = None, [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)
        if "src" in attrs:
            self.loads.append(attrs["src"])
        if "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "table":
            self.table = attrs.get("id")
            self.rows[self.table] = -1  # the header
            self.cells[self.table] = []
        if tag == "tr":
            self.rows[self.table] += 1
            self.cells[self.table].append([])
        if tag in {"th", "td"}:
            self.cells[self.table][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.text.append(data)
            if {"th", "td"} & set(self.open):
                self.cells[self.table][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def png(size=(8, 6), colour="red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def query(number: int, outcome: str, category: str = "ball", of: str = "tiny on scenes") -> dict:
    address = "data:image/png;base64," + base64.b64encode(png()).decode()
    box = [1.0, 1.0, 4.0, 4.0]
    return {
        "id": f"q{number}", "of": of, "category": category, "image": address, "overlay": address,
        "read": f"the selected box's at x1 {NASTY}",
        "truth": box, "width": 8, "height": 6, "outcome": outcome, "greedy": {"box": None, "iou": 0.0},
        "chosen": {"box": box, "iou": 1.0, "score": 0.9},
        "candidates": [
            {"number": 0, "box": box, "score": 0.9, "iou": 1.0},
            {"number": 2, "box": None, "score": float("nan"), "iou": 0.0},
        ],
    }  # fmt: skip


@pytest.fixture
def report(tmp_path):
    tables, figures, notebooks = (tmp_path / name for name in ("tables", "figures", "notebooks"))
    for folder in (tables, figures, notebooks):
        folder.mkdir()
    main = pd.DataFrame(
        [
            ("tiny", "scenes", "greedy", "control", 50, 0.5, 0.45, 0.55, 0.0),
            ("tiny", "scenes", "oracle best of N", "control", 50, 0.7, 0.65, 0.75, 0.2),
            ("tiny", "scenes", "ACS-Learned", "acs-learned", 50, 0.56, 0.51, 0.61, 0.06),
            ("tiny", "scenes", NASTY, "likelihood", 50, 0.48, 0.43, 0.53, None),
        ],
        columns="lvlm dataset method family n_queries acc50 acc50_lo acc50_hi delta_vs_greedy".split(),
    )
    main.to_csv(tables / "main_results.csv", index=False)
    pd.DataFrame({"layer": range(100), "auroc": 0.5}).to_csv(tables / "heads.csv", index=False)
    pd.DataFrame(
        [("r > 0.67", "0.67", "0.7", "reproduced")], columns="claim published measured verdict".split()
    ).to_csv(tables / "claims.csv", index=False)
    for stem in ("main_results", "zebra"):
        (figures / f"{stem}.png").write_bytes(png())
    (figures / "main_results.pdf").write_bytes(b"%PDF")
    (figures / "captions.json").write_text(json.dumps({"main_results": f"Dots & intervals {NASTY}"}))
    (notebooks / "01_candidate_sampling.html").write_text("<h1 id='x'>Sampling <em>candidates</em></h1>")
    outcomes = ("gained", "lost", "gained", "unchanged")
    queries = [query(i, outcome, NASTY if i == 0 else "ball") for i, outcome in enumerate(outcomes)]
    queries += [query(9, "lost", of=OTHER)]
    (tmp_path / "browser.json").write_text(json.dumps(queries))
    differences = [f"a.csv: row {number}" for number in range(7)]
    compared = {"said": "every table as the reference's", "differences": differences}
    manifest = {"git": {"commit": "abc123"}, "seeds": [1, 2], "wall": [{"name": "01"}], "compared": compared}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_page_holds_everything(report):
    path = build("smoke", report)
    assert path == report / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert page.rows["table-main_results"] == 4 and page.rows["table-claims"] == 1
    assert page.rows["table-heads"] == 100 and "100 rows" in text
    assert len(page.all("figure")) == 3 and "Sampling candidates" in text
    for part in ("git.commit", "abc123", "wall[0].name", "reproduced", OTHER, "reference: every table as"):
        assert part in text
    assert (
        "a.csv: row 4 ... and 2 more: acs compare lists all" in text
        and "a.csv: row 5" not in text.split("Provenance")[0]
    )
    assert page.all("h1") and "results of the profile “smoke”" in text and "In short" not in text
    assert {"tables/heads.csv", "figures/main_results.pdf", "notebooks/01_candidate_sampling.html"} <= set(page.links)
    assert not list(report.glob(".index*")), "nothing is left of the temporary file"


def test_page_is_accessible(report):
    page = Page(build("smoke", report).read_text(encoding="utf-8"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(head.get("scope") == "col" for head in page.all("th"))
    assert [tag for tag, _ in page.tags if tag in {"h1", "h2", "h3"}][:2] == ["h1", "h2"] and len(page.all("h1")) == 1
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(identifiers)


def test_page_loads_nothing_from_elsewhere(report):
    text = build("smoke", report).read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith("data:image/") for address in page.loads) and page.loads
    for address in page.links:
        assert not re.match(r"[a-z]+:|//", address), address
    assert not page.all("link") and not re.search(r"url\(|@import", text)
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy


def test_everything_is_escaped(report):
    text = build("smoke", report).read_text(encoding="utf-8")
    assert "onerror=alert(1)>" not in text
    page = Page(text)
    assert "onerror" not in {name for _, attrs in page.tags for name in attrs}
    assert NASTY in "".join(page.text)
    found = re.findall(r'<script type="application/json" class="queries">(.*?)</script>', text, re.DOTALL)
    queries, others = map(json.loads, found)
    assert [query["id"] for query in others] == ["q9"]
    assert queries[0]["category"] == NASTY and queries[0]["candidates"][1]["score"] is None


def test_main_results_come_first(report):
    text = build("smoke", report).read_text(encoding="utf-8")
    assert text.index('id="table-main_results"') < text.index('id="table-heads"')
    assert text.index('id="figure-main_results"') < text.index('id="figure-zebra"')


def shown(cell: str) -> str:
    return "" if cell in {"nan", "None"} else _shown(cell) or cell


@pytest.mark.parametrize("profile", [*PUBLISHED, "smoke"])
def test_no_committed_table_is_cut(profile):
    page, files = Page(render(profile, paths.reference(profile))), list(paths.reference(profile).glob("tables/*.csv"))
    assert len(files) > 10
    for path in files:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        header, *rows = page.cells[f"table-{path.stem}"]
        assert header == list(frame.columns), path.name
        here, whole = (sorted([shown(cell) for cell in row] for row in table) for table in (rows, frame.to_numpy()))
        assert here == whole, path.name


def test_acs_and_the_controls_come_first_in_a_long_table(report):
    names = [(f"method {number}", "likelihood") for number in range(30)]
    rows = [names[0], ("greedy", "control"), *names[1:], ("ACS-Free", "acs-free"), ("ACS-Learned", "acs-learned")]
    pd.DataFrame(rows, columns=["method", "family"]).to_csv(report / "tables" / "by_size.csv", index=False)
    cells = Page(build("smoke", report).read_text(encoding="utf-8")).cells
    first = ["greedy", "ACS-Free", "ACS-Learned", *(name for name, _ in names)]
    assert [row[0] for row in cells["table-by_size"][1:]] == first
    assert [row[2] for row in cells["table-main_results"][1:3]] == ["greedy", "oracle best of N"], "short: as it is"


def test_captions_come_from_the_markdown_files(report):
    (report / "tables" / "heads.md").write_text("Each <head>; measured.\n\n| layer | auroc |\n")
    (report / "tables" / "claims.md").write_text("| claim |\n")
    text = "".join(Page(build("smoke", report).read_text(encoding="utf-8")).text)
    assert "Each <head>; measured." in text and "claims.csv: 1 row" in text


CARD = {
    "title": "ACS beats greedy", "published": f"+1 to +2 {NASTY}",
    "parts": [
        {"under": "with the habit", "verdict": "reproduced", "rows": [["tiny, scenes", "+6.2 [+3.9, +8.6]"]]},
        {"under": "without the habit", "verdict": "in part: in 1 of 2 columns", "rows": [["tiny, scenes", "-1.0"]]},
    ],
}  # fmt: skip


def headed(report) -> dict:
    told = {"title": f"A & B {NASTY}", "sentences": ["One.", "Two."], "cards": [CARD] * 4}
    (report / "tables" / "headline.json").write_text(json.dumps(told))
    return told


def test_the_headline_is_the_notebooks(report):
    told = headed(report)
    page = Page(build("smoke", report).read_text(encoding="utf-8"))
    text = "".join(page.text)
    assert told["title"] in text and "Two." in text and "In short" in text
    assert text.count("+6.2 [+3.9, +8.6]") == text.count("ACS beats greedy") == 4
    chips = [attrs["class"] for attrs in page.all("span") if "verdict" in attrs.get("class", "")]
    assert chips[:2] == ["verdict good", "verdict mid"]


def test_results_are_pivoted_and_whole(report):
    rows = [("tiny", "d", "greedy", 0.5), ("tiny", "d", "ACS-Free", 0.6), ("tiny-plain", "d", "greedy", 0.7)]
    main = pd.DataFrame(rows, columns=["lvlm", "dataset", "method", "acc50"])
    main = main.assign(acc50_lo=main["acc50"] - 0.1, acc50_hi=main["acc50"] + 0.1)
    main.to_csv(report / "tables" / "main_results.csv", index=False)
    cells = Page(build("smoke", report).read_text(encoding="utf-8")).cells
    assert cells["table-main_results-acc50"] == [
        ["method", "tiny, d", "tiny-plain, d"],
        ["greedy", "50.0 [40.0, 60.0]", "70.0 [60.0, 80.0]"],
        ["ACS-Free", "60.0 [50.0, 70.0]", ""],
    ]
    assert len(cells["table-main_results"]) == 4 and "table-main_results-acc75" not in cells


def test_figures_come_in_the_order_of_the_notebooks(report):
    for stem in ("your_own_image", "main_results-plain", "heads", "candidates"):
        (report / "figures" / f"{stem}.png").write_bytes(png())
    text = build("smoke", report).read_text(encoding="utf-8")
    order = ["method", "candidates", "heads", "main_results", "main_results-plain", "your_own_image", "zebra"]
    assert re.findall(r'id="figure-([\w-]+)"', text) == order


def test_the_figures_are_named_in_the_order_in_which_the_notebooks_save_them():
    cells = [cell for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")) for cell in json.loads(path.read_text())["cells"]]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    saved = [stem for source in code for stem in re.findall(r'save_figure\(.*?, report, f?"([a-z_0-9]+)', source)]
    assert len(saved) == sum(source.count("save_figure(") for source in code) and list(dict.fromkeys(saved)) == list(
        FIGURES
    )


def test_an_empty_folder_says_what_to_run(tmp_path):
    text = "".join(Page(build("smoke", tmp_path).read_text(encoding="utf-8")).text)
    assert "./run_all.sh --profile smoke" in text
    assert "Provenance" not in text and "Figures" not in text
    with pytest.raises(FileNotFoundError, match="run_all.sh --profile smoke"):
        build("smoke", tmp_path / "nowhere")


def test_images_from_elsewhere_are_refused(report):
    elsewhere = query(0, "gained") | {"image": "https://example.org/a.png"}
    (report / "browser.json").write_text(json.dumps([elsewhere]))
    with pytest.raises(ValueError, match="image of q0"):
        build("smoke", report)
    assert not (report / "index.html").exists()
    (report / "browser.json").write_text(json.dumps([query(0, "better")]))
    with pytest.raises(ValueError, match="'better'"):
        build("smoke", report)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("reproduced", "good"),
        ("in part", "mid"),
        ("in part: in 2 of 4 columns", "mid"),
        ("not shown", "mid"),
        ("contradicted", "bad"),
        ("see notes", ""),
    ],
)
def test_verdicts(tmp_path, text, kind):
    pd.DataFrame({"claim": ["reproduced"], "verdict": [text]}).to_csv(tmp_path / "claims.csv", index=False)
    claim, verdict = page_table(tmp_path / "claims.csv")["rows"][0]["cells"]
    assert (claim["verdict"], verdict["verdict"]) == ("", kind)


@pytest.mark.parametrize(("raw", "shown"), [("0.61349", "0.6135"), ("816", "816"), ("nan", ""), ("12345.6", "12,346")])
def test_numbers_as_shown(raw, shown):
    assert _shown(raw) == shown


# ------------------------------------------------------------------------------------------------- in a real browser

CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const [r, g, b, alpha = 1] = numbers(getComputedStyle(at).backgroundColor);
    if (alpha > 0) return [r, g, b];
  }
  return [255, 255, 255];
};
const weak = [], seen = new Set();
for (const element of document.body.querySelectorAll("*")) {
  const written = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!written || element.disabled || !element.getClientRects().length) continue;
  const [text, back] = [numbers(getComputedStyle(element).color).slice(0, 3), behind(element)];
  const [low, high] = [light(text), light(back)].sort((a, b) => a - b);
  const ratio = (high + 0.05) / (low + 0.05);
  seen.add(element.tagName);
  if (ratio < 4.5) weak.push(`${element.tagName} ${element.className} ${ratio.toFixed(2)}`);
}
return [weak, seen.size];
"""
BROKEN = """
const done = arguments[0];
const inside = [...document.querySelectorAll("svg image")].map((part) => {
  const image = new Image();
  image.src = part.getAttribute("href");
  return image;
});
const all = [...document.images, ...inside];
Promise.allSettled(all.map((image) => image.decode())).then((results) =>
  done([all.length, results.filter((result) => result.status === "rejected").length]));
"""


@pytest.fixture
def look(browser):
    """A function that opens a page as a screen of that width and colour scheme shows it."""

    def opened(page, width=1000, scheme="light"):
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        browser.get_log("browser")  # empties it
        browser.get(page.as_uri())
        assert browser.find_element(By.TAG_NAME, "body").get_attribute("data-ready") == "true"
        return browser

    return opened


def texts(browser, selector):
    return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]


def click(browser, selector):
    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def told(place: str, number: int, of: str = "tiny on scenes") -> str:
    return f"{place} · {of} · query q{number}"


def at_queries(browser):
    """The same page where its browser of queries is on the screen, and read."""
    browser.execute_script("document.getElementById('queries').scrollIntoView()")
    WebDriverWait(browser, 30).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#browser[data-ready]"))
    return browser


def test_queries_are_filtered_and_walked_through(report, look):
    browser = at_queries(look(build("smoke", report)))
    assert texts(browser, "[data-filter]") == ["all (4)", "gained (2)", "lost (1)", "unchanged (1)"]
    place = browser.find_element(By.ID, "place")
    assert place.text == told("1 of 4 · gained", 0)
    assert NASTY in texts(browser, "#category"), "shown, not obeyed"
    click(browser, "[data-filter=all]")
    keys = browser.switch_to.active_element
    seen = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_LEFT):
        keys.send_keys(key)
        seen.append(place.text)
    assert seen == [told("2 of 4 · lost", 1), told("1 of 4 · gained", 0), told("4 of 4 · unchanged", 3)]
    for name, wanted in (("gained", told("1 of 2 · gained", 0)), ("lost", told("1 of 1 · lost", 1))):
        click(browser, f"[data-filter={name}]")
        assert place.text == wanted
    assert not browser.find_element(By.ID, "next").is_enabled(), "there is one query"
    browser.switch_to.active_element.send_keys(Keys.TAB, Keys.ENTER)  # the next filter, without a mouse
    assert place.text == told("1 of 1 · unchanged", 3)
    assert texts(browser, "[data-filter][aria-pressed=true]") == ["unchanged (1)"]
    click(browser, "[data-filter=all]")
    Select(browser.find_element(By.ID, "of")).select_by_visible_text(OTHER)
    assert place.text == told("1 of 1 · lost", 9, OTHER) and texts(browser, "[data-filter=all]") == ["all (1)"]
    assert browser.get_log("browser") == []


def test_overlay_boxes_and_scores_of_a_query(report, look):
    browser = at_queries(look(build("smoke", report)))
    drawn = "return ['image', 'rect'].map((name) => document.querySelectorAll(`#picture svg ${name}`).length)"
    assert browser.execute_script(drawn) == [1, 4], "the picture; truth and selected box, each with its casing"
    assert texts(browser, "#read") == [""], "nothing is told of what is not drawn"
    click(browser, "#show-overlay")
    click(browser, "#show-candidates")
    assert texts(browser, "#read") == [f"Attention: the selected box's at x1 {NASTY}, over its maximum."]
    assert browser.execute_script(drawn) == [2, 6]
    assert texts(browser, "#candidates tr") == ["0 0.900 1.000", "2 – 0.000"]
    picture = "#picture svg"
    assert browser.find_element(By.CSS_SELECTOR, picture).get_attribute("aria-label").endswith("IoU 1.000")
    click(browser, "#show-zoom")
    assert browser.find_element(By.CSS_SELECTOR, picture).get_dom_attribute("viewBox") == "0 0 6 6", "not 0 0 8 6"


def test_tables_sort_by_every_column(report, look):
    browser = look(build("smoke", report))
    browser.execute_script("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    names = "#table-main_results tbody td:nth-child(3)"
    click(browser, "#table-main_results th:nth-child(6) button")
    assert texts(browser, names)[0] == "oracle best of N"
    click(browser, "#table-main_results th:nth-child(6) button")
    assert texts(browser, names)[0] == NASTY
    assert browser.find_element(By.CSS_SELECTOR, "th[aria-sort]").get_attribute("aria-sort") == "ascending"
    click(browser, "#table-main_results th:nth-child(9) button")
    assert texts(browser, names)[-1] == NASTY, "a missing value comes last"


def test_every_row_of_a_long_table_can_be_scrolled_to(report, look):
    browser = look(build("smoke", report))
    region = browser.find_element(By.CSS_SELECTOR, ".scroll:has(#table-heads)")
    rows = region.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(rows) == 100 and region.size["height"] < 600
    browser.execute_script("arguments[0].scrollTop = arguments[0].scrollHeight", region)
    last, edge = rows[-1].rect, region.rect
    assert last["height"] > 10 and last["y"] + last["height"] <= edge["y"] + edge["height"] + 1
    names = browser.find_element(By.CSS_SELECTOR, "#table-heads thead th").rect
    assert edge["y"] <= names["y"] < edge["y"] + 60, "the columns' names stay in sight"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_page_is_readable_on_every_screen(report, look, width, scheme):
    headed(report)
    browser = look(build("smoke", report), width, scheme)
    assert not browser.find_elements(By.CSS_SELECTOR, "#picture svg"), "the queries are read when they are near"
    at_queries(browser)
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 380) == (scheme == "dark")
    weak, kinds = browser.execute_script(CONTRAST)
    assert weak == [] and kinds > 10
    page, screen = browser.execute_script("return [document.scrollingElement.scrollWidth, window.innerWidth]")
    assert page <= screen, "no scrolling to the side"
    assert browser.execute_async_script(BROKEN) == [4, 0]
    assert browser.get_log("browser") == []


def test_claims_are_stacked_on_a_phone_with_the_verdict_first(report, look):
    places = "return [...document.querySelectorAll('.claims tbody td')].map((cell) => cell.getBoundingClientRect().top)"
    *others, verdict = look(build("smoke", report), 1400).execute_script(places)
    assert set(others) == {verdict}
    *others, verdict = look(report / "index.html", 390).execute_script(places)
    assert verdict < others[0] < others[1] < others[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("profile", PUBLISHED)
def test_published_pages_are_small_and_readable(look, profile, width, scheme):
    path = paths.reference(profile) / "index.html"
    assert path.stat().st_size < 3_000_000
    browser = look(path, width, scheme)
    assert browser.execute_script(CONTRAST)[0] == []
    page, screen = browser.execute_script("return [document.scrollingElement.scrollWidth, window.innerWidth]")
    assert page <= screen, "no scrolling to the side"
    assert browser.get_log("browser") == []


@pytest.mark.skipif(not (paths.reference("embedded") / "index.html").is_file(), reason="no published report here")
def test_published_page_works_offline(look):
    folder = paths.reference("embedded")
    browser = at_queries(look(folder / "index.html", 390, "dark"))
    images, broken = browser.execute_async_script(BROKEN)
    assert images > len(list((folder / "figures").glob("*.png"))) and broken == 0, "the figures and a query"
    counts = {}
    for name in ("gained", "lost", "unchanged"):
        click(browser, f"[data-filter={name}]")
        (label,), (place,) = texts(browser, f"[data-filter={name}]"), texts(browser, "#place")
        counts[name] = int(label.split("(")[1].rstrip(")"))
        assert place.startswith(f"1 of {counts[name]} · {name}") if counts[name] else place == ""
    (everything,) = texts(browser, "[data-filter=all]")
    assert everything == f"all ({sum(counts.values())})" and sum(counts.values()) > 5
    assert browser.execute_script(CONTRAST)[0] == []
    assert browser.get_log("browser") == []
