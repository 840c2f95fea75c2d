"""Write what README.md and docs/results.md say of the committed reference run, from its tables.

    python tools/results.py

README's part stands between two marks; docs/results.md is written whole. A test holds both to what this gives, so no
number in them is typed by hand.
"""

from pathlib import Path

import pandas as pd

from acs_lib import paths
from acs_lib.core.files import write_text
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.claims import claims_table
from acs_lib.report.tables import measured_text, to_markdown

MARKS = ("<!-- results: written by tools/results.py -->", "<!-- end of results -->")
SIGNS = {1: "✓", 0: "○", -1: "✗"}  # for the claim, neither, against it
SHOWN = (
    "greedy", RANDOM, "box area, small first", "sequence log-prob", "self-certainty", "DeepConf mean", "medoid",
    "mass inside the box (MTLA)", "entropy, all heads", "ACS-Free", "ACS-Learned", ORACLE,
)  # fmt: skip


def tables(profile: str = "embedded") -> dict[str, pd.DataFrame]:
    """The tables of the reference run that are told, by stem; empty conditions are ''."""
    folder = paths.reference(profile) / "tables"
    found = {
        stem: pd.read_csv(folder / f"{stem}.csv") for stem in ("main_results", "comparisons", "regressor", "evidence")
    }
    for frame in found.values():
        words = frame.columns.intersection(["lvlm", "dataset", "condition"])
        frame[words] = frame[words].fillna("")
    return found


def _column(lvlm: str, dataset: str) -> str:
    """An LVLM on a dataset, whichever its condition."""
    return f"{lvlm.removesuffix('-plain').removesuffix('-embedded')}, {dataset}" if lvlm else "all"


def claims(evidence: pd.DataFrame) -> pd.DataFrame:
    """claim, paper, and a mark a column: with the habit / without it."""
    found = evidence.assign(column=[_column(*each) for each in zip(evidence["lvlm"], evidence["dataset"])])
    columns = [c for c in dict.fromkeys(found["column"]) if found.loc[found["column"] == c, "dataset"].ne("").all()]
    rows = []
    for claim, part in found.groupby("claim", sort=False):
        row = {"claim": claim, "paper": part["published"].iloc[0]}
        for column in columns:
            lvlm = column.partition(",")[0]
            own = part[part["column"].isin([column, f"{lvlm}, ", "all"])]
            row[column] = " / ".join(SIGNS[sign] for sign in own.sort_values("condition")["sign"])
        rows.append(row)
    return pd.DataFrame(rows)


def verdict(found: dict[str, pd.DataFrame]) -> str:
    """Three sentences: what was planted, what follows, what is unknown."""
    gains = found["comparisons"].query("method == 'ACS-Learned' and reference == 'greedy' and size == 'small'")
    test = found["regressor"].query("split == 'test'")

    def told(condition: str) -> str:
        rows, r = gains[gains["condition"] == condition], test.loc[test["condition"] == condition, "pearson"]
        above, delta = ((rows["p_holm"] < 0.05) & (rows["delta"] > 0)).sum(), 100 * rows["delta"]
        return (
            f"above greedy decoding in {above} of {len(rows)} columns ({delta.min():+.1f} to {delta.max():+.1f} "
            f"points, predicted IoU at r {r.min():.2f} to {r.max():.2f})"
        )

    return (
        "The shipped LVLMs were taught a habit on purpose: asked for rare small things, they often name a well-known "
        f"look-alike, though their image tokens know better. With that habit ACS-Learned is {told('habit')}; the same "
        f"LVLMs without it: {told('plain')}. How much of such a habit the paper's LVLMs have is not known to us."
    )


def readme(found: dict[str, pd.DataFrame]) -> str:
    """README's part, marks included."""
    n = found["main_results"]["n_queries"].unique()
    return "\n".join([
        MARKS[0],
        verdict(found),
        "",
        to_markdown(claims(found["evidence"])).rstrip(),
        "",
        f"Measured on rendered scenes, {' or '.join(map(str, n))} small objects a column; ✓ shown, ○ not shown, ✗ the "
        "contrary, with the habit / without it. [All numbers, with intervals](docs/results.md).",
        MARKS[1],
    ])  # fmt: skip


def results(found: dict[str, pd.DataFrame]) -> str:
    """docs/results.md."""
    lines = ["# Results", "", verdict(found), ""]
    lines += ["Every number on this page is written by `tools/results.py` from the committed reference run.", ""]
    main, names = found["main_results"], {"habit": "With the habit", "plain": "Without the habit"}
    for condition, rows in main.groupby("condition", sort=False):
        display = pd.DataFrame({"method": [name for name in SHOWN if name in set(rows["method"])]})
        for (lvlm, dataset), part in rows.groupby(["lvlm", "dataset"], sort=False):
            cells = {row.method: measured_text(row) for row in part.itertuples()}
            display[_column(lvlm, dataset)] = display["method"].map(cells)
        lines += [f"## {names.get(condition, 'Measured')}", ""]
        lines += [to_markdown(display, "Acc@0.5 on small objects in %, 95 % intervals over images; measured here.")]
    known = published.main_results()
    known = known.assign(
        column=known["lvlm"] + ", " + known["dataset"], acc50=(100 * known["acc50"]).map("{:.1f}".format)
    )
    wide = known.pivot(index="method", columns="column", values="acc50")[list(dict.fromkeys(known["column"]))]
    wide = wide.loc[list(dict.fromkeys(known["method"]))].reset_index()
    lines += ["## Published", ""]
    lines += [to_markdown(wide, f"Acc@0.5 on small objects in %, {published.PAPER}: other LVLMs and other data.")]
    lines += ["## Claims", ""]
    for row in claims_table(found["evidence"]).itertuples():
        under = f", {names[row.condition].lower()}" if row.condition in names else ""
        lines += [f"- **{row.claim}**{under}: {row.verdict}. Paper: {row.published}. Measured: {row.measured}."]
    return "\n".join(lines) + "\n"


def write(root: Path = paths.ROOT) -> None:
    """Put both where they belong."""
    found = tables()
    text = (root / "README.md").read_text(encoding="utf-8")
    before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    write_text(root / "README.md", before + readme(found) + after)
    write_text(root / "docs" / "results.md", results(found))


if __name__ == "__main__":
    write()
