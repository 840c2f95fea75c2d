"""Is a run the same as a reference, up to the rounding of another processor? Every number within a stated tolerance.

Processors add up floats in different orders, so the same code ends in other last digits, and now and then in another
token or another choice. So words and whole numbers are compared to the letter, and every other number within what one
changed answer does to it:

    rates, means, correlations   0.01 + 1.5 / n, n: of how many queries, pairs or answers it is the mean
    r inside queries             0.1: few queries hold both good and bad answers
    ends of intervals            2.5 times that
    p-values, shares of draws    0.7, and after Holm's correction 1: where few queries decide, one moves p as far
    odds ratios o                0.5 of o / (1 + o); where one query decides there may be none
    ranks of methods             3 places
    counts of answers, mixed queries, pairs   2, 2 and 10
    seconds and memory           not at all: they are a machine's own

The lower end of an interval or a spread is never above the upper one. One answer moves few numbers. So, besides, less
than three quarters of a column may have moved by more than 0.001: other weights or a column in the place of another
move them all.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_numeric_dtype

FEWEST = 48  # queries, where a table does not say of how many a number is the mean: those of the smoke profile
SIZES = ("n_queries", "pairs", "n")  # the columns that say it
COUNTS = {"n": 2, "n_answers": 2, "n_mixed": 2, "gained": 2, "lost": 2, "pairs": 10}
KEYS = (  # they name a row
    "edition", "layer", "head", "seed", "epoch", "candidate", "n_samples", "coverage", "from", "temperature", "top_p",
)  # fmt: skip
MACHINES_OWN = re.compile("seconds|^peak_mb")
HOLM = re.compile("_holm$")
PROBABILITY = re.compile("^p_|^share_of_draws$")
ODDS = re.compile("^odds_ratio")
RANK = re.compile("^mean_rank")
WITHIN = re.compile("^within_query")
END = re.compile("(^|_)(lo|hi)$")
LOWER = re.compile("(?<![^_])lo(west)?$")  # the upper one is hi or highest
NUMBER = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d+)?%?)(?!\w)")
COLUMNS = ("lvlm", "dataset", "condition")  # what a number is about
MOVED, MOST_MOVED, FEW_ROWS = 0.001, 0.75, 8  # of a column
FIRST = 5  # differences that the end of a run names


def allowed(column: str, n: np.ndarray | float) -> np.ndarray:
    """How far numbers of a column may move, [rows] in the column's unit (of odds o in that of o / (1 + o)).

    n: [rows] of how many queries, pairs or answers each number is the mean
    """
    n = np.asarray(n, float)
    for kind, most in ((MACHINES_OWN, np.inf), (HOLM, 1), (PROBABILITY, 0.7), (ODDS, 0.5), (RANK, 3), (WITHIN, 0.1)):
        if kind.search(column):
            return np.full(n.shape, float(most))
    return (0.01 + 1.5 / np.maximum(n, 1)) * (2.5 if END.search(column) else 1)


def texts(reference: str, found: str) -> list[str]:
    """What differs, a sentence each. Words and whole numbers must be equal (up to 10 pairs more or fewer); percentages,
    points and ranks, which have one decimal, may move by 5, rates and nats, which have more, by 0.13 (one query of the
    twelve large ones), and a 'p = ...' by 0.7."""
    parts, others = NUMBER.split(reference), NUMBER.split(found)
    if parts[::2] != others[::2]:
        return [f"{found!r}, the reference says {reference!r}"]
    differences = []
    for before, number, after, other in zip(parts[::2], parts[1::2], parts[2::2], others[1::2]):
        decimals = len(number.rstrip("%").partition(".")[2])
        if before.endswith("p = "):
            most = 0.7
        elif decimals > 1:
            most = 0.13
        elif number.endswith("%") or (decimals and (number[0] in "+-" or float(number) >= 1)):
            most = 5
        else:
            most = 0.13 if decimals else COUNTS["pairs"] * after.startswith(" pairs")
        step = abs(float(other.rstrip("%")) - float(number.rstrip("%")))
        if step > most:
            differences.append(f"{other}, the reference says {number}: moved by {step:.3g}, {most:g} is allowed")
    return differences


def tables(reference: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """What differs, a sentence each: other columns, missing or further rows, words, numbers that moved by more than
    `allowed`, and by how much, and columns of which most numbers moved. Rows are known by the first columns of words,
    and of KEYS, that tell them apart, and by their order where none do."""
    if list(reference) != list(found):
        return [f"columns are {list(found)}, the reference has {list(reference)}"]
    numeric = [name for name in reference if all(is_numeric_dtype(frame[name]) for frame in (reference, found))]
    words = [name for name in reference if name not in numeric]
    left, right = (frame.assign(**{name: frame[name].fillna("").astype(str) for name in words})
                   for frame in (reference, found))  # fmt: skip
    one_sided = [name for name in words if is_numeric_dtype(reference[name]) != is_numeric_dtype(found[name])]
    if one_sided:
        return [f"{', '.join(one_sided)}: numbers in one of both, words in the other"]
    size = next((name for name in SIZES if name in numeric), None)
    n = np.full(len(left), float(FEWEST)) if size is None else left[size].fillna(FEWEST).to_numpy(float)
    if "coverage" in numeric:  # a rate over that share of the queries
        n = n * left["coverage"].to_numpy(float)
    names = []
    for name in [*words, *(key for key in KEYS if key in numeric)]:
        if left.duplicated(names).any() if names else len(left) > 1:
            names.append(name)
    left, right = (_by_name(frame, names) for frame in (left, right))
    differences = [f"{_told(row)} is missing" for row in left.index.difference(right.index)]
    differences += [f"{_told(row)} is not in the reference" for row in right.index.difference(left.index)]
    in_both = left.index.isin(right.index)
    shared, n = left.index[in_both], n[in_both]
    left, right = left[in_both], right.loc[shared]
    for name in left:
        if name in words:
            moved = [texts(*pair) for pair in zip(left[name], right[name])]
        else:
            kind = "mean_rank" if "mean_rank" in reference and ", " in name else name  # <lvlm>, <dataset>: ranks there
            moved, column = _moved(kind, left[name], right[name], n)
            differences += [f"{name}: {text}" for text in column]
        differences += [f"{_told(row)}, {name}: {text}" for row, told in zip(shared, moved) for text in told]
    for lower in filter(LOWER.search, right):
        upper = LOWER.sub(lambda end: "highest" if end[1] else "hi", lower)
        for row in right.index[right[lower] > right[upper]] if upper in right else ():
            differences.append(f"{_told(row)}: {lower} is above {upper}")
    return differences


def _by_name(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The frame with `names`, and the place among rows that are equal in them, as index; 0.1 + 0.2 is 0.3 there."""
    frame = frame.assign(**frame[names].round(6))
    place = frame.groupby(names, dropna=False).cumcount() if names else pd.Series(range(len(frame)), frame.index)
    return frame.set_index(pd.MultiIndex.from_frame(frame[names].assign(place=place))).drop(columns=names)


def _told(row: tuple | int) -> str:
    *names, place = row if isinstance(row, tuple) else (row,)
    return f"row {', '.join(map(str, names))}" + (f" ({place + 1})" if place or not names else "")


def _moved(name: str, reference: pd.Series, found: pd.Series, n: np.ndarray) -> tuple[list[list[str]], list[str]]:
    """For each row a list with the sentence on a number that moved by more than it may, or none; and a list with the
    sentence on a column of which most numbers moved, or none."""
    a, b = (values.to_numpy(float) for values in (reference, found))
    whole = not is_float_dtype(reference)
    most = np.maximum(np.zeros(n.shape) if whole else allowed(name, n), COUNTS.get(name, 0))
    none = np.isnan(a) & np.isnan(b)
    if ODDS.search(name):
        step = abs(_share(b) - _share(a))
        none |= (np.isnan(a) != np.isnan(b)) & ~np.isnan(b).all()  # one may be gone, not the column
    else:
        with np.errstate(invalid="ignore"):
            step = abs(b - a)
    same = (a == b) | none | (step <= most)
    told = "{:.6g}, the reference has {:.6g}: moved by {:.3g}, {:.3g} is allowed".format
    rows = [[] if fits else [told(*numbers)] for fits, *numbers in zip(same, b, a, step, most)]
    share = (step[np.isfinite(step)] > MOVED).mean() if np.isfinite(step).sum() >= FEW_ROWS else 0
    if whole or share < MOST_MOVED or np.isinf(most).all():
        return rows, []
    return rows, [f"{share:.0%} of its numbers moved by more than {MOVED}, half of them by {np.nanmedian(step):.3g}"]


def _share(odds: np.ndarray) -> np.ndarray:
    """o / (1 + o) of odds: 1 where they are infinite."""
    return np.where(np.isinf(odds), 1, odds / (1 + np.where(np.isinf(odds), 0, odds)))


def folders(reference: Path, found: Path) -> list[str]:
    """What differs between the tables (*.csv) of two folders, a sentence each, the table's name first."""
    names, others = ({path.name for path in Path(folder).glob("*.csv")} for folder in (reference, found))
    differences = [f"{name} is missing" for name in sorted(names - others)]
    differences += [f"{name} is not in the reference" for name in sorted(others - names)]
    for name in sorted(names & others):
        pair = (pd.read_csv(Path(folder) / name) for folder in (reference, found))
        differences += [f"{name}: {text}" for text in tables(*pair)]
    return differences


def summary(reference: Path, found: Path) -> tuple[str, list[str]]:
    """One sentence, and the differences of `folders`: did the run in the table folder `found` reproduce the one in
    `reference`? It says how many numbers moved by more than they may, counts the verdicts on the paper's claims that
    are others (evidence.csv), and names the largest steps of Acc@0.5 in points (main_results.csv) and of r
    (regressor.csv)."""
    other = folders(reference, found)
    parts = [
        f"differences beyond rounding: {len(other)}" if other else "every table as the reference's, up to rounding",
        _verdicts(reference, found),
        _largest(reference, found, "main_results", "acc50", ["method"], "Acc@0.5", 100, " points"),
        _largest(reference, found, "regressor", "pearson", ["split"], "r", 1, ""),
    ]
    return "; ".join(filter(None, parts)), other


def first(differences: list[str]) -> list[str]:
    """The first FIRST of some differences, and where all of them are told."""
    more = len(differences) - FIRST
    return differences[:FIRST] + [f"... and {more} more: acs compare lists all"] * (more > 0)


def _pair(reference: Path, found: Path, stem: str, value: str, names: Iterable[str]) -> pd.DataFrame | None:
    """A column of a table of both folders, as value_x and value_y, NaN where only the other has the row; None where one
    has no such table."""
    both = []
    for folder in (reference, found):
        path = Path(folder) / f"{stem}.csv"
        if not path.is_file():
            return None
        frame = pd.read_csv(path)
        keys = [name for name in (*COLUMNS, *names) if name in frame]
        both.append(frame[[*keys, value]].fillna(dict.fromkeys(keys, "")))
    return both[0].merge(both[1], how="outer", on=[name for name in both[0] if name != value and name in both[1]])


def _verdicts(reference: Path, found: Path) -> str:
    """How many verdicts are others; nothing where a run has none."""
    pair = _pair(reference, found, "evidence", "sign", ["claim"])
    if pair is None or pair.empty:
        return ""
    other = pair[pair["sign_x"] != pair["sign_y"]]
    if other.empty:
        return f"all {len(pair)} verdicts on the paper's claims the same"
    row = other.iloc[0]
    where = ", ".join(str(row[name]) for name in (*COLUMNS, "claim") if row.get(name))
    return f"{len(other)} of {len(pair)} verdicts on the paper's claims differ, the first: {where}"


def _largest(
    reference: Path, found: Path, stem: str, value: str, names: list[str], called: str, scale: float, unit: str
) -> str:
    """The largest step of a column times `scale`, and in which row it is; nothing where a run has no such table."""
    pair = _pair(reference, found, stem, value, names)
    if pair is None or pair.empty:
        return ""
    step = (pair[f"{value}_y"] - pair[f"{value}_x"]).abs()
    if not step.max() > 0:
        return f"{called} the same"
    row = pair.loc[step.idxmax()]
    where = ", ".join(str(row[name]) for name in (*COLUMNS, *names) if row.get(name))
    return f"{called} within {scale * step.max():.2g}{unit} (the largest step: {where})"
