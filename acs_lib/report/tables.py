"""Tables as files: CSV for programs, Markdown for reading, LaTeX (booktabs) for a paper."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from acs_lib.core.candidates import COORDINATES
from acs_lib.core.files import write_text
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.bootstrap import estimate
from acs_lib.evaluation.published import BASELINE_FAMILIES, BEST_BASELINE, main_results
from acs_lib.method.baselines.likelihood import P_TRUE
from acs_lib.method.heads import HeadSet
from acs_lib.profiles import Profile

FIRST = ("greedy", RANDOM, ORACLE, "ACS-Free", "ACS-Learned")  # rows of a table of methods
TEX_ESCAPES = str.maketrans(  # of a caption, which pandas leaves as it is
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {character: "\\" + character for character in "&%$#_{}"}
)


def _cell(value: object) -> str:
    """Text of one cell: four significant digits, nothing for a missing value."""
    if pd.isna(value):
        return ""
    if not isinstance(value, float | np.floating):
        return str(value)
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def to_markdown(frame: pd.DataFrame, caption: str | None = None) -> str:
    """A pipe table without the index, numbers to the right, under its caption."""
    rows = [[str(name) for name in frame.columns], *frame.map(_cell).itertuples(index=False)]
    rule = ["---:" if pd.api.types.is_numeric_dtype(kind) else ":---" for kind in frame.dtypes]
    escaped = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in (escaped[0], rule, *escaped[1:])]
    return "\n".join([*([caption, ""] if caption else []), *lines]) + "\n"


def to_latex(frame: pd.DataFrame, caption: str | None = None) -> str:
    """A `table` float in the booktabs style without the index, numbers to the right."""
    cells = frame.reset_index(drop=True).style.hide(axis="index").format(_cell, escape="latex")
    titled = cells.format_index(escape="latex", axis="columns")
    return titled.to_latex(hrules=True, position_float="centering", caption=caption and caption.translate(TEX_ESCAPES))


def write_table(frame: pd.DataFrame, folder: str | Path, stem: str, caption: str | None = None) -> None:
    """Write `folder`/tables/`stem`.csv, .md and .tex; each appears whole or not at all.

    The index is not written. The CSV keeps full precision, and an empty field is a missing value.
    """
    tables = Path(folder) / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    texts = {
        "csv": frame.to_csv(index=False, lineterminator="\n"),
        "md": to_markdown(frame, caption),
        "tex": to_latex(frame, caption),
    }
    for suffix, text in texts.items():
        write_text(tables / f"{stem}.{suffix}", text)


def read_table(folder: str | Path, stem: str) -> pd.DataFrame:
    """A table that an earlier notebook wrote; FileNotFoundError, with the mend, where it has not run."""
    path = Path(folder) / "tables" / f"{stem}.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; run the earlier notebooks of the profile first")
    return pd.read_csv(path)


def in_order(table: pd.DataFrame, value: str) -> list[str]:
    """The methods of a table: what a method is set against, ACS, then the others, the highest mean of `value` first."""
    means = table.groupby("method", sort=False)[value].mean().sort_values(ascending=False, kind="stable")
    return [*(name for name in FIRST if name in means), *(name for name in means.index if name not in FIRST)]


def pivoted(table: pd.DataFrame, rows: list[str], value: str) -> pd.DataFrame:
    """A rate with its interval as text in %, '49.1 [45.6, 52.7]', a difference with its sign: a row for each
    combination of the columns `rows`, methods `in_order`, a column an LVLM and dataset; empty where there is none."""
    texts = [estimate(row, value, "+.1f" if value.startswith("delta") else ".1f", 100) for row in table.itertuples()]
    places = {name: in_order(table, value) if name == "method" else list(dict.fromkeys(table[name])) for name in rows}
    wide = table[rows].drop_duplicates().sort_values(rows, key=lambda names: names.map(places[names.name].index))
    table = table.assign(text=texts)
    for (lvlm, dataset), part in table.groupby(["lvlm", "dataset"], sort=False):
        cells = part[[*rows, "text"]].rename(columns={"text": f"{lvlm}, {dataset}"})
        wide = wide.merge(cells, on=rows, how="left")
    return wide.fillna("").reset_index(drop=True)


def head_set_table(head_sets: list[HeadSet]) -> pd.DataFrame:
    """head_sets.csv: lvlm, D_c's heads as (layer, head), counted from 0, and the coordinates at which they are read."""
    rows = []
    for found in head_sets:
        heads = ", ".join(f"({layer}, {head})" for layer, head in found.heads)
        rows.append((found.lvlm, heads, ", ".join(COORDINATES[index] for index in found.coordinates)))
    return pd.DataFrame(rows, columns=["lvlm", "heads", "coordinates"])


def measured_text(row) -> str:
    """Acc@0.5 of a row of main_results.csv with its interval as text in %."""
    return f"{estimate(row, 'acc50', '.1f', 100)}, n = {row.n_queries}"


def published_and_measured(main_table: pd.DataFrame) -> pd.DataFrame:
    """The paper's table again, with what was measured beside it, one row a published number.

    main_table: rows of main_results.csv, of any columns of the paper's table, or none
    Returns lvlm, dataset, method, published_acc50 (%), measured_acc50 ('49.1 [45.6, 52.7], n = 816', %, or 'not run'),
    measured_method: for the best sampling baseline the best measured one, by Acc@0.5 of the same column, as in the
    paper; else the method itself, empty where it was not run.
    """
    rows = []
    for cell in main_results().itertuples():
        part = main_table[(main_table["lvlm"] == cell.lvlm) & (main_table["dataset"] == cell.dataset)]
        if cell.method == BEST_BASELINE:
            part = part[part["family"].isin(BASELINE_FAMILIES)].sort_values("acc50", kind="stable").tail(1)
        else:
            part = part[part["method"] == cell.method]
        text, method = "not run", ""
        for row in part.itertuples():
            text, method = measured_text(row), row.method
        rows.append((cell.lvlm, cell.dataset, cell.method, round(100 * cell.acc50, 1), text, method))
    names = ["lvlm", "dataset", "method", "published_acc50", "measured_acc50", "measured_method"]
    return pd.DataFrame(rows, columns=names)


def side_by_side(
    main_table: pd.DataFrame, published: pd.DataFrame, unavailable: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Acc@0.5 in %, measured and published in columns of their own: a number never stands under the other's name.

    main_table: main_results.csv, of one or several LVLMs and datasets
    published: rows of `published.main_results`
    unavailable: LVLM -> why it was not asked for P(True); its cells say so
    Returns text: method, then 'measured, <lvlm>, <dataset>' as '49.1 [45.6, 52.7], n = 816' (95 % interval), then
    'published, <lvlm>, <dataset>' as '61.4'; empty where there is no number. Measured methods come
    first, `in_order`.
    """
    unavailable = unavailable or {}
    methods = [*in_order(main_table, "acc50"), *([P_TRUE] if unavailable else []), *published["method"]]
    display = pd.DataFrame({"method": list(dict.fromkeys(methods))})
    for (lvlm, dataset), part in main_table.groupby(["lvlm", "dataset"], sort=False):
        cells = {row.method: measured_text(row) for row in part.itertuples()}
        if lvlm in unavailable:
            cells[P_TRUE] = f"not asked: {unavailable[lvlm]}"
        display[f"measured, {lvlm}, {dataset}"] = display["method"].map(cells).fillna("")
    for (lvlm, dataset), part in published.groupby(["lvlm", "dataset"], sort=False):
        cells = {row.method: f"{100 * row.acc50:.1f}" for row in part.itertuples()}
        display[f"published, {lvlm}, {dataset}"] = display["method"].map(cells).fillna("")
    return display


def at_a_glance(table: pd.DataFrame) -> pd.DataFrame:
    """advice.csv with a row a way, the highest mean first: method, what it needs, and '<lvlm>, <dataset>' for its
    Acc@0.5 in % with the 95 % interval, as text; empty where a way is not there."""
    rows = []
    for method, part in table.groupby("method", sort=False):
        first = part.iloc[0]
        row = {"method": method, "answers": f"{part['answers'].mean():.1f}", "looks": f"{part['looks'].mean():.1f}"}
        row |= {"labels": first["labels"]} | {n: "yes" if first[n] else "no" for n in ("training", "attention")}
        row |= {f"{each.lvlm}, {each.dataset}": estimate(each, "acc50", ".1f", 100) for each in part.itertuples()}
        rows.append((part["acc50"].mean(), row))
    rows.sort(key=lambda each: -each[0])
    return pd.DataFrame([row for _, row in rows]).fillna("")


def write_comparison(profile: Profile, folder: Path) -> bool:
    """Write published_and_measured for a profile with LVLMs and data of the paper, whatever of it has been run; returns
    whether it is one."""
    published = main_results()
    columns = set(zip(published["lvlm"], published["dataset"]))
    if columns.isdisjoint((lvlm.name, dataset.name) for lvlm in profile.lvlms for dataset in profile.datasets):
        return False
    file = Path(folder) / "tables" / "main_results.csv"
    measured = (
        pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["lvlm", "dataset", "method", "family", "acc50"])
    )
    caption = "Acc@0.5 on small objects in %: the paper's numbers, and those measured here (95 % interval)."
    write_table(published_and_measured(measured), folder, "published_and_measured", caption)
    return True
