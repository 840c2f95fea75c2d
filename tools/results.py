"""Write what README.md and docs/results.md say of the committed reference run, from its tables.

    python tools/results.py

Both have a part between two marks, which is written whole; the rest of them is typed. tests/test_docs.py holds the
parts to what this gives, so no number in them is typed by hand.
"""

from pathlib import Path

import pandas as pd

from acs_lib import paths
from acs_lib.core.files import write_text
from acs_lib.evaluation import published
from acs_lib.evaluation.accuracy import ORACLE, RANDOM
from acs_lib.evaluation.claims import claims_table
from acs_lib.evaluation.claims import verdict as judged
from acs_lib.report.tables import measured_text, to_markdown

REPORT = paths.reference("embedded")
MARKS = ("<!-- results: written by tools/results.py -->", "<!-- end of results -->")
MARK = {"reproduced": "✓", "in part": "◐", "not shown": "○", "contradicted": "✗"}  # a verdict, up to its colon
NAMES = {"habit": "With the habit", "plain": "Without the habit"}
COLUMNS = (
    "A column is an LVLM on one set of rendered scenes, {n} small objects: `scenes`, whose train split D_c and the "
    "regressor come from, or `scenes-shift`, with other backgrounds and haze, which nothing is trained on. r is the "
    "correlation of predicted with true IoU; clearly above is p < 0.05 after Holm's correction."
)
SHOWN = (
    "greedy", RANDOM, "box area, small first", "sequence log-prob", "self-certainty", "DeepConf mean", "medoid",
    "mass inside the box (MTLA)", "entropy, all heads", "ACS-Free", "ACS-Learned", ORACLE,
)  # fmt: skip


def tables(folder: Path = REPORT) -> dict[str, pd.DataFrame]:
    """The tables of a report that are told, by stem; empty conditions are ''."""
    stems = ("main_results", "comparisons", "regressor", "evidence")
    found = {stem: pd.read_csv(folder / "tables" / f"{stem}.csv") for stem in stems}
    for frame in found.values():
        words = frame.columns.intersection(["lvlm", "dataset", "condition"])
        frame[words] = frame[words].fillna("")
    return found


def claims(evidence: pd.DataFrame) -> pd.DataFrame:
    """claim, paper, and a column an LVLM and condition, with one mark: the verdict over its datasets. A claim that is
    judged by condition alone ('' as LVLM) has the same mark in all columns of the condition."""
    columns = evidence.loc[evidence["lvlm"] != "", ["lvlm", "condition"]].drop_duplicates()
    rows = []
    for claim, part in evidence.groupby("claim", sort=False):
        row = {"claim": claim, "paper": part["published"].iloc[0].partition(" (")[0]}
        for lvlm, condition in columns.itertuples(index=False):
            own = part[(part["condition"] == condition) & part["lvlm"].isin([lvlm, ""])]
            name = lvlm.removesuffix("-plain").removesuffix("-embedded")
            said = judged(own["sign"]).partition(":")[0]
            row[", ".join(filter(None, [name, NAMES.get(condition, "").lower()]))] = MARK[said]
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
            f"clearly above greedy decoding in {above} of {len(rows)} columns "
            f"({delta.min():+.1f} to {delta.max():+.1f} points, r {r.min():.2f} to {r.max():.2f})"
        )

    return (
        "So that attention has something to mend, the shipped LVLMs were taught a habit: asked for rare small things, "
        "they often box a well-known look-alike, though their image tokens still tell the two apart. With that habit "
        f"ACS-Learned is {told('habit')}; the same LVLMs without it: {told('plain')}. How much of such a habit the "
        "paper's LVLMs have is not known to us."
    )


def readme(found: dict[str, pd.DataFrame]) -> str:
    """README's part, marks included."""
    n = " or ".join(map(str, found["main_results"]["n_queries"].unique()))
    return "\n".join([
        MARKS[0],
        verdict(found),
        "",
        to_markdown(claims(found["evidence"])).rstrip(),
        "",
        f"{', '.join(f'{mark} {said}' for said, mark in MARK.items())}, summed up over both columns of an LVLM; not "
        f"shown means no clear difference. {COLUMNS.format(n=n)} "
        "[All numbers, with intervals](docs/results.md).",
        MARKS[1],
    ])  # fmt: skip


def results(found: dict[str, pd.DataFrame]) -> str:
    """The part of docs/results.md, marks included."""
    main = found["main_results"]
    n = " or ".join(map(str, main["n_queries"].unique()))
    lines = [MARKS[0], verdict(found), "", COLUMNS.format(n=n), ""]
    for condition, rows in main.groupby("condition", sort=False):
        display = pd.DataFrame({"method": [name for name in SHOWN if name in set(rows["method"])]})
        for (lvlm, dataset), part in rows.groupby(["lvlm", "dataset"], sort=False):
            cells = {row.method: measured_text(row) for row in part.itertuples()}
            display[f"{lvlm}, {dataset}"] = display["method"].map(cells)
        lines += [f"## {NAMES.get(condition, 'Measured')}", ""]
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
        under = f", {NAMES[row.condition].lower()}" if row.condition in NAMES else ""
        lines += [f"- **{row.claim}**{under}: {row.verdict}. Paper: {row.published}. Measured: {row.measured}."]
    return "\n".join([*lines, MARKS[1]])


def told(root: Path, found: dict[str, pd.DataFrame]) -> dict[Path, str]:
    """README.md and docs/results.md below `root` as they have to be: their typed text around what the tables say."""
    parts = {root / "README.md": readme(found), root / "docs" / "results.md": results(found)}
    texts = {path: path.read_text(encoding="utf-8") for path in parts}
    return {
        path: texts[path].split(MARKS[0])[0] + part + texts[path].split(MARKS[1])[1] for path, part in parts.items()
    }


if __name__ == "__main__":
    for path, text in told(paths.ROOT, tables()).items():
        write_text(path, text)
