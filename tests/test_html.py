"""The report page: complete, escaped, self-contained, and working in a real browser."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from acs_lib.report import html

NASTY = "<img src=x onerror=alert(1)></script><b>&\"'"
VOID = {"meta", "img", "input", "link", "br", "hr"}


class Page(HTMLParser):
    """What the tests ask of a page; fails on a tag that is not closed."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.loads, self.links, self.rows = [], [], [], [], {}
        self.table, self.text = None, []
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
        if tag == "tr":
            self.rows[self.table] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def png(size=(8, 6), colour="red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def query(number: int, outcome: str, category: str = "ball") -> dict:
    address = "data:image/png;base64," + base64.b64encode(png()).decode()
    box = [1.0, 1.0, 4.0, 4.0]
    return {
        "id": f"q{number}", "category": category, "image": address, "overlay": address, "truth": box, "width": 8,
        "height": 6, "outcome": outcome, "greedy": {"box": None, "iou": 0.0},
        "chosen": {"box": box, "iou": 1.0, "score": 0.9},
        "candidates": [{"box": box, "score": 0.9, "iou": 1.0}, {"box": None, "score": float("nan"), "iou": 0.0}],
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
    (tmp_path / "browser.json").write_text(json.dumps(queries))
    manifest = {"git": {"commit": "abc123"}, "seeds": [1, 2], "wall": [{"name": "01"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_page_holds_everything(report):
    path = html.build("smoke", report)
    assert path == report / "index.html"
    page = Page(path.read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    assert page.rows["table-main_results"] == 4 and page.rows["table-claims"] == 1
    assert page.rows["table-heads"] == html.LIMIT and "All 100 rows as CSV" in text
    assert len(page.all("figure")) == 2 and "Sampling candidates" in text
    for part in ("git.commit", "abc123", "wall[0].name", "reproduced", "gained (2)", "all (4)"):
        assert part in text
    assert "ACS-Learned 56.0 % [51.0, 61.0] (+6.0 points against greedy)" in text
    assert {"tables/heads.csv", "figures/main_results.pdf", "notebooks/01_candidate_sampling.html"} <= set(page.links)
    assert not list(report.glob(".index*")), "nothing is left of the temporary file"


def test_page_is_accessible(report):
    page = Page(html.build("smoke", report).read_text(encoding="utf-8"))
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(head.get("scope") == "col" for head in page.all("th"))
    assert [tag for tag, _ in page.tags if tag in {"h1", "h2", "h3"}][:2] == ["h1", "h2"] and len(page.all("h1")) == 1
    identifiers = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(identifiers)


def test_page_loads_nothing_from_elsewhere(report):
    text = html.build("smoke", report).read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith("data:image/") for address in page.loads) and page.loads
    for address in page.links:
        assert not re.match(r"[a-z]+:|//", address), address
    assert not page.all("link") and not re.search(r"url\(|@import", text)
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy


def test_everything_is_escaped(report):
    text = html.build("smoke", report).read_text(encoding="utf-8")
    assert "onerror=alert(1)>" not in text
    page = Page(text)
    assert "onerror" not in {name for _, attrs in page.tags for name in attrs}
    assert NASTY in "".join(page.text)
    data = re.search(r'<script type="application/json" id="queries-data">(.*?)</script>', text, re.DOTALL)[1]
    queries = json.loads(data)
    assert queries[0]["category"] == NASTY and queries[0]["candidates"][1]["score"] is None


def test_main_results_come_first(report):
    text = html.build("smoke", report).read_text(encoding="utf-8")
    assert text.index('id="table-main_results"') < text.index('id="table-heads"')
    assert text.index('id="figure-main_results"') < text.index('id="figure-zebra"')


def test_captions_come_from_the_markdown_files(report):
    (report / "tables" / "heads.md").write_text("Each <head>; measured.\n\n| layer | auroc |\n")
    (report / "tables" / "claims.md").write_text("| claim |\n")
    text = "".join(Page(html.build("smoke", report).read_text(encoding="utf-8")).text)
    assert "Each <head>; measured." in text and "claims.csv: 1 row" in text


def test_headline_file_goes_before_the_table(report):
    told = {"title": f"A & B {NASTY}", "sentences": ["One.", "Two."]}
    (report / "tables" / "headline.json").write_text(json.dumps(told))
    page = Page(html.build("smoke", report).read_text(encoding="utf-8"))
    text = "".join(page.text)
    assert told["title"] in text and "Two." in text and "points against greedy" not in text


def test_an_empty_folder_says_what_to_run(tmp_path):
    text = "".join(Page(html.build("smoke", tmp_path).read_text(encoding="utf-8")).text)
    assert "./run_all.sh --profile smoke" in text
    assert "Provenance" not in text and "Figures" not in text
    with pytest.raises(FileNotFoundError, match="run_all.sh --profile smoke"):
        html.build("smoke", tmp_path / "nowhere")


def test_images_from_elsewhere_are_refused(report):
    elsewhere = query(0, "gained") | {"image": "https://example.org/a.png"}
    (report / "browser.json").write_text(json.dumps([elsewhere]))
    with pytest.raises(ValueError, match="image of q0"):
        html.build("smoke", report)
    assert not (report / "index.html").exists()
    (report / "browser.json").write_text(json.dumps([query(0, "better")]))
    with pytest.raises(ValueError, match="'better'"):
        html.build("smoke", report)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("reproduced", "good"),
        ("not reproduced", "bad"),
        ("contradicted", "bad"),
        ("partly", "mid"),
        ("differs", "bad"),
        ("see notes", ""),
    ],
)
def test_verdicts(text, kind):
    assert html._verdict(text) == kind


@pytest.mark.parametrize(("raw", "shown"), [("0.61349", "0.6135"), ("816", "816"), ("nan", ""), ("12345.6", "12,346")])
def test_numbers_as_shown(raw, shown):
    assert html._shown(raw) == shown


PROBE = """<script>
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const place = () => document.getElementById("place").textContent;
const seen = [place()];
document.getElementById("browser").scrollIntoView();
press("ArrowRight"); seen.push(place());
press("ArrowLeft"); press("ArrowLeft"); seen.push(place());
document.querySelector("[data-filter=gained]").click(); seen.push(place());
document.getElementById("show-overlay").click();
for (const name of ["image", "rect"]) seen.push(document.querySelectorAll(`#picture svg ${name}`).length);
const head = [...document.querySelectorAll("#table-main_results th")].find((th) => th.textContent === "acc50");
head.querySelector("button").click();
seen.push(document.querySelector("#table-main_results tbody td:nth-child(3)").textContent);
seen.push(head.getAttribute("aria-sort"));
document.body.dataset.seen = JSON.stringify(seen);
</script></body>"""


def test_scripts_run_in_a_browser(report, tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium or Chrome on this machine: the page's scripts are not run")
    page = html.build("smoke", report)
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--window-size=1000,800"]
    command = [chromium, *options, f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    dom = Page(done.stdout)
    (body,) = dom.all("body")
    assert body["data-ready"] == "true"
    start, after_right, after_left, gained, images, rectangles, best, order = json.loads(body["data-seen"])
    assert start == "1 of 4 · gained · query q0" and after_right == "2 of 4 · lost · query q1"
    assert after_left == "4 of 4 · unchanged · query q3" and gained == "1 of 2 · gained · query q0"
    assert images == 2 and rectangles == 4, "picture and overlay; truth and selected box, each with its casing"
    assert best == "oracle best of N" and order == "descending"
    assert "alert" not in " ".join(attrs.get("onerror", "") for _, attrs in dom.tags)
