"""The report of a run as one self-contained page: tables, figures, claims, a browser of queries, provenance.

Images are inlined, styles and scripts too; the page loads nothing from anywhere (its content security policy forbids
it) and links to other files of the report by relative paths only. All text from files is escaped.
"""

import csv
import html
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup

from acs_lib import paths
from acs_lib.core.files import write_text
from acs_lib.evaluation import compare
from acs_lib.report.encoding import data_address, inlined
from acs_lib.report.tables import pivoted

TEMPLATE = Path(__file__).with_name("page.html")
METHOD = "The method: one question, several boxes, the attention of each, two ways to choose."
TALL = 24  # rows: a longer table scrolls
OUTCOMES = ("gained", "lost", "unchanged")
VERDICTS = {"reproduced": "good", "in part": "mid", "not shown": "mid", "contradicted": "bad"}  # up to a colon -> style
ACS = ("acs-free", "acs-learned")
INLINE_IMAGE = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+")
TITLES = {  # table stem -> title; the order of the page
    "main_results": "Main results: small objects, test split",
    "significance": "Every method against greedy: two tests, effect sizes",
    "comparisons": "Paired differences",
    "evidence": "Claims, column by column",
    "fusions": "Fusion methods: boxes that are none of the candidates",
    "ranks": "Mean ranks of the training-free methods",
    "by_size": "Accuracy by object size",
    "greedy_to_oracle": "From greedy to oracle: the room to choose",
    "candidates_sweep": "Number of candidates",
    "regressor": "Attention-IoU regressor",
    "seed_spread": "Spread over seeds",
    "habit": "With the habit and without, like for like",
    "size_and_category": "Choosing by size alone, and by categories",
    "partial_correlation": "Scores and IoU at equal size and category",
    "layers": "Layers by gradient attribution",
    "heads": "Heads by entropy separation",
    "head_sets": "The discriminative heads",
    "acs_free": "ACS-Free against references",
    "entropy_by_layer": "Attention entropy by layer",
    "entropy_by_head": "Attention entropy of the discriminative heads",
    "attention_statistics": "Attention statistics by layer",
    "ablations": "Ablations",
    "confidence": "Scores as confidence",
    "reliability_error": "Reliability of the predicted IoU",
    "attributions": "Layers by three attributions",
    "attribution_agreement": "Agreement of the attributions",
    "head_set_stability": "Stability of the selected heads",
    "head_overlap": "Overlap of the heads between data",
    "head_transfer": "Heads found on other data",
    "cost": "Cost",
    "advice": "What should I use?",
    "renderings": "The same scenes with more detail and without",
    "zoom": "A closer look",
    "instances": "All instances",
    "instances_curve": "All instances: precision by recall",
    "risk": "A box with a guarantee",
    "risk_curve": "A box with a guarantee: risk by coverage",
    "effort": "Samples only where they are needed",
    "label_free_heads": "Heads without labels",
    "intervention": "Heads by intervention",
    "sinks": "Attention sinks",
    "sinks_masked": "ACS-Free without sinks",
}
FIGURES = (  # the order of the notebooks; one of these with an ending ("-plain") comes after it, others follow
    "candidates", "attention_coordinates", "attention_layers",  # 01, 02
    "regressor", "layers", "heads", "entropy_by_layer", "entropy_by_head",  # 03, 04
    "acs_free_gained", "acs_free_lost",  # 05
    "main_results", "differences", "by_size", "large_and_small", "candidates_sweep", "gained", "lost",  # 06
    "your_own_image",  # 07
    "ranked_right", "gains_by_category", "partial_correlation", "training_variants",  # 08
    "ablations", "cost",  # 09
    "zoom", "instances_curve", "risk_curve", "effort", "label_free_heads", "intervention",  # 10
    "confidence", "risk_coverage", "reliability", "head_stability", "head_transfer", "sampling_seeds",  # 11
)  # fmt: skip
PIVOTS = {  # table stem -> columns that name a row, rates that are shown an LVLM and dataset beside the other
    "main_results": (["method"], {"acc50": "Acc@0.5", "acc75": "Acc@0.75"}),
    "by_size": (["size", "method"], {"acc50": "Acc@0.5"}),
}


def _first(stems: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Stems in the order of `wanted`, one with an ending ('a-b') after its first part, the others after them by
    name."""
    place = {stem: number for number, stem in enumerate(wanted)}
    return sorted(stems, key=lambda stem: (place.get(stem.partition("-")[0], len(place)), stem))


def verdict_style(text: str) -> str:
    """How a verdict of evaluation.claims is shown: good, mid, bad, or '' for another text."""
    return VERDICTS.get(text.partition(":")[0], "")


def _number(text: str) -> float | None:
    """The finite number a cell holds, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _shown(text: str) -> str:
    """A number as shown: fractions with four digits, whole numbers as they are, nothing for a missing value."""
    value = _number(text)
    if value is None:
        return ""
    if not re.search(r"[.eE]", text) or value == 0:
        return text
    return f"{value:.4f}" if 0.0001 <= abs(value) <= 1 else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def page_table(path: Path) -> dict | None:
    """What the page shows of a CSV: stem, title, caption, href, columns and all rows, in the file's order, but that a
    table which scrolls and names families begins with ACS and the controls; None for an empty file."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    if not header:
        return None
    lines = [line for line in lines if line]
    columns = []
    for index, name in enumerate(header):
        values = [line[index].strip() for line in lines if index < len(line)]
        values = [value for value in values if value.lower() not in {"", "nan", "none"}]
        numeric = bool(values) and all(_number(value) is not None for value in values)
        columns.append({"name": name, "numeric": numeric})
    rows = []
    for line in lines:
        cells = []
        for column, text in zip(columns, [*line, *[""] * len(header)], strict=False):
            kind = "" if column["numeric"] else "text" if len(text) > 28 else "w"
            number = _number(text)
            shown = _shown(text) if column["numeric"] else text
            raw = f"{number:.8g}" if column["numeric"] and "," in shown else shown  # what is sorted by
            verdict = verdict_style(text) if column["name"] == "verdict" else ""
            cells.append({"raw": raw, "text": shown, "kind": kind, "verdict": verdict})
        named = {cell["raw"] for cell in cells}
        rows.append({"cells": cells, "ours": not named.isdisjoint(ACS), "control": "control" in named})
    if len(rows) > TALL and "family" in header:  # what scrolls begins with what the paper is about
        rows.sort(key=lambda row: not (row["ours"] or row["control"]))
    stem = path.stem
    title = TITLES.get(stem) or stem.replace("_", " ").capitalize()
    told = path.with_suffix(".md")
    caption = told.read_text(encoding="utf-8").partition("\n")[0].strip() if told.exists() else ""
    if not caption or caption.startswith("|"):  # a table without a caption
        caption = f"{stem}.csv: {len(rows)} row{'s' if len(rows) != 1 else ''}"
    href = f"{quote(path.parent.name)}/{quote(path.name)}"
    table = {"stem": stem, "title": title, "caption": caption, "href": href, "columns": columns, "rows": rows}
    return table | {"pivots": page_pivots(path)}


def page_pivots(path: Path) -> list[dict]:
    """The rates of a table in PIVOTS, each as a table with a column an LVLM and dataset; none for other tables."""
    keys, rates = PIVOTS.get(path.stem, ([], {}))
    frame = pd.read_csv(path, keep_default_na=False) if rates else pd.DataFrame()
    return [_pivot(frame, path.stem, keys, rate, rates[rate]) for rate in rates if {*keys, f"{rate}_lo"} <= set(frame)]


def _pivot(frame: pd.DataFrame, stem: str, keys: list[str], rate: str, name: str) -> dict:
    wide, rows = pivoted(frame, keys, rate), []
    columns = [{"name": column, "numeric": column not in keys} for column in wide]
    for line in wide.astype(str).itertuples(index=False):
        cells = [
            {"raw": text, "text": text, "verdict": "", "kind": "" if column["numeric"] else "w"}
            for column, text in zip(columns, line)
        ]
        rows.append({"cells": cells, "ours": any(text.startswith("ACS") for text in line), "control": False})
    caption = f"{name} in %, 95 % intervals over images."
    return {
        "stem": f"{stem}-{rate}",
        "pivot": True,
        "title": name,
        "caption": caption,
        "columns": columns,
        "rows": rows,
    }


def headline(folder: Path, profile: str) -> dict:
    """{"title", "sentences", "cards"} (see report.sentences.cards) as notebook 06, 10 or 11 wrote them; a title alone
    where none was run."""
    told = folder / "tables" / "headline.json"
    if not told.exists():
        title = f"Small object grounding by attention: results of the profile “{profile}”"
        return {"title": title, "sentences": [], "cards": []}
    content = json.loads(told.read_text(encoding="utf-8"))
    parts = [part for card in content.get("cards", []) for part in card["parts"]]
    for part in parts:
        part["style"] = verdict_style(part["verdict"])
    return {"cards": [], **content}


def read_figures(folder: Path) -> list[dict]:
    """The method's picture, and every figures/*.png with its caption, inlined, in the order of the notebooks."""
    captions_path = folder / "figures" / "captions.json"
    captions = json.loads(captions_path.read_text(encoding="utf-8")) if captions_path.exists() else {}
    pngs = {path.stem: path for path in (folder / "figures").glob("*.png") if not path.name.startswith(".")}
    shown = []
    if pngs and (drawing := paths.ROOT / "docs" / "method.svg").exists():
        source = data_address("svg+xml", drawing.read_bytes())
        shown.append({"stem": "method", "source": source, "alt": METHOD, "caption": METHOD, "pdf": ""})
        shown[0] |= {"width": 440, "height": 584}
    for stem in _first(pngs, FIGURES):
        png = pngs[stem].read_bytes()
        if png[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"not a PNG file: {pngs[stem]}")
        width, height = struct.unpack(">II", png[16:24])
        caption = str(captions.get(stem) or stem.replace("_", " ").capitalize() + ".")
        pdf = f"figures/{quote(stem)}.pdf" if pngs[stem].with_suffix(".pdf").exists() else ""
        source = inlined(png)
        shown.append(
            {"stem": stem, "source": source, "alt": caption, "caption": caption, "pdf": pdf}
            | {"width": round(width / 1.5), "height": round(height / 1.5)}  # 150 dpi to the page's 100
        )
    return shown


def read_notebooks(folder: Path) -> list[dict]:
    """notebooks/*.html with their first heading, or their file name where there is none."""
    notebooks = []
    for path in sorted((folder / "notebooks").glob("*.html")):
        found = re.search(r"<h1[^>]*>(.*?)</h1>", path.read_text(encoding="utf-8"), re.DOTALL | re.IGNORECASE)
        text = html.unescape(re.sub(r"<a class=\"anchor-link\".*?</a>|<[^>]+>", "", found[1])) if found else ""
        title = " ".join(text.replace("¶", "").split())
        notebooks.append({"href": f"notebooks/{quote(path.name)}", "title": title or path.stem})
    return notebooks


def _finite(value: object) -> object:
    """The same JSON value with NaN and infinity as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def read_queries(path: Path) -> list[dict]:
    """The browser's queries of each LVLM on a dataset: `of`, and JSON that is safe inside a script element.

    Raises ValueError for an unknown outcome, or an image that is not inlined: the page must load nothing.
    """
    parts: dict[str, list] = {}
    for query in json.loads(path.read_text(encoding="utf-8")):
        if query["outcome"] not in OUTCOMES:
            raise ValueError(f"{path.name}: outcome of {query['id']} is {query['outcome']!r}, not one of {OUTCOMES}")
        for key in ("image", "overlay"):
            if query.get(key) and not INLINE_IMAGE.fullmatch(query[key]):
                raise ValueError(f"{path.name}: {key} of {query['id']} is not a data:image/...;base64 address")
        parts.setdefault(query["of"], []).append(_finite(query))
    return [{"of": of, "json": _for_script(queries)} for of, queries in parts.items()]


def _for_script(value: object) -> Markup:
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _flat(value: object, name: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, text); short lists of plain values stay on one line."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        return [pair for index, item in enumerate(value) for pair in _flat(item, f"{name}[{index}]")]
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)))]
    return [(name, value if isinstance(value, str) else json.dumps(value))]


def render(profile: str, folder: Path) -> str:
    """The page of `folder` as HTML text; parts that are not there are left out."""
    files = {path.stem: path for path in (folder / "tables").glob("*.csv") if not path.name.startswith(".")}
    tables = {stem: page_table(files[stem]) for stem in _first(files, list(TITLES))}
    tables = {stem: table for stem, table in tables.items() if table}
    claims = tables.pop("claims", None)
    browser, manifest = folder / "browser.json", folder / "manifest.json"
    known = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    compared = known.get("compared")
    story = headline(folder, profile)
    parts = {
        "claims": claims,
        "figures": read_figures(folder),
        "queries": read_queries(browser) if browser.exists() else [],
        "tables": list(tables.values()),
        "notebooks": read_notebooks(folder),
        "provenance": _flat(known),
    }
    names = {"headline": "In short", "claims": "Claims", "queries": "Queries"}
    sections = [("headline", names["headline"])] if story["sentences"] or story["cards"] else []
    sections += [(part, names.get(part, part.capitalize())) for part, content in parts.items() if content]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=f"acs-kit: {profile}",
        profile=profile,
        headline=story,
        against=compared["said"] if compared else None,
        differences=compare.first(compared["differences"]) if compared else [],
        sections=sections,
        tall=TALL,
        outcomes=OUTCOMES,
        **parts,
    )


def build(profile: str, folder: Path | None = None) -> Path:
    """Write index.html of a profile's report (default folder: reports/<profile>) and return its path.

    The page appears whole or not at all. Raises FileNotFoundError where there is no such folder.
    """
    if folder is None:
        folder = paths.reports(profile)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no report at {folder}: run ./run_all.sh --profile {profile}")
    text = render(profile, folder)
    page = folder / "index.html"
    write_text(page, text)
    return page
