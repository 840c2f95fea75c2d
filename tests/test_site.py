"""The site builds without a warning, holds every notebook and module, and loads nothing from another host."""

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

from acs_lib import paths

ALONE = "acs_lib.lvlms.attention_rows"
ROOMS = ("method", "grounding", "evaluation")  # whose modules are all public
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "link": "href"}
NOT_FETCHED = {"next", "prev", "canonical", "index", "search", "author"}  # of links
OUTSIDE = re.compile(r"""(?:url\(|@import\s)\s*["']?((?:[a-z]+:)?//[^)"']*)""")  # of style sheets


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def loads_elsewhere(page: BeautifulSoup) -> list[str]:
    """What a browser fetches from other hosts to show the page."""
    found = [
        tag[attribute]
        for name, attribute in LOADED.items()
        for tag in page.find_all(name, {attribute: True})
        if not (name == "link" and NOT_FETCHED & set(tag.get("rel", [])))
    ]
    found += [part.split()[0] for tag in page.find_all(srcset=True) for part in tag["srcset"].split(",")]
    styles = [tag.get_text() for tag in page.find_all("style")] + [tag["style"] for tag in page.find_all(style=True)]
    return [*filter(is_elsewhere, found), *(address for style in styles for address in OUTSIDE.findall(style))]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the site, built without network."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", "-d", folder / "trees"]
    built = subprocess.run(
        [*command, ".", folder / "site"], cwd=paths.ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | nowhere | {"PYTHONPATH": str(paths.ROOT), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-4000:]
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, BeautifulSoup]:
    return {path: BeautifulSoup(path.read_text(), "html.parser") for path in sorted(site.rglob("*.html"))
            if "_downloads" not in path.parts}  # fmt: skip


def test_every_notebook_is_a_chapter_with_its_outputs(site, pages):
    for notebook in (paths.ROOT / "notebooks").glob("*.ipynb"):
        page = pages[site / "notebooks" / f"{notebook.stem}.html"]
        assert page.select("div.cell_input") and page.select("div.cell_output"), notebook.name


def test_every_public_module_is_described(site, pages):
    described = {
        tag["id"].removeprefix("module-") for path, page in pages.items() if path.parent == site / "docs" / "api"
        for tag in page.find_all(id=re.compile("^module-"))
    }  # fmt: skip
    modules = [path for room in ROOMS for path in (paths.LIBRARY / room).rglob("*.py") if path.stat().st_size]
    names = {".".join(path.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__") for path in modules}
    assert names | {ALONE} <= described
    (choose,) = pages[site / "docs" / "api" / "method.html"].find_all(id="acs_lib.method.selection.choose")
    assert "NaN never wins" in choose.parent.get_text()


def test_pages_load_nothing_from_other_hosts(site, pages):
    assert {path.relative_to(site).as_posix(): found for path in pages if (found := loads_elsewhere(pages[path]))} == {}
    styles = [*site.glob("_static/**/*.css"), *site.rglob("*.svg")]
    assert {path.name: found for path in styles if (found := OUTSIDE.findall(path.read_text()))} == {}


@pytest.mark.parametrize(
    "page",
    [
        '<link rel="stylesheet" href="https://fonts.example/a.css">', '<script src="//cdn.example/a.js"></script>',
        '<img src="http://a.example/b.png">', '<img srcset="a.png 1x, https://a.example/b.png 2x">',
        "<style>@import 'https://a.example/b.css';</style>", '<p style="background: url(//a.example/b.png)"></p>',
    ],
)  # fmt: skip
def test_what_is_loaded_from_elsewhere_is_found(page):
    assert len(loads_elsewhere(BeautifulSoup(page, "html.parser"))) == 1


def test_links_inside_the_site_lead_to_a_page_and_a_place_on_it(site, pages):
    places = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    dead = []
    for path, page in pages.items():
        for tag in page.find_all("a", href=True):
            link = urlsplit(tag["href"])
            if link.scheme or link.netloc:
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            place = unquote(link.fragment)
            if not target.is_file() or (place and target in places and place not in places[target]):
                dead.append(f"{path.relative_to(site)}: {tag['href']}")
    assert dead == []


def test_the_first_page_leads_to_the_documentation(site, pages):
    assert "url=docs/index.html" in pages[site / "index.html"].find("meta", {"http-equiv": "refresh"})["content"]
    assert "method.svg" in pages[site / "docs" / "index.html"].find("img", src=re.compile("svg"))["src"]
