"""Is a run the same as a reference, up to the rounding of another processor? Every number within a stated tolerance.

Processors add up floats in different orders, so the same code ends in other last digits, and once in many thousand
times in another token or another choice. So words and whole numbers are compared to the letter, and every other number
within what one changed answer does to it:

    rates, means, correlations   0.005 + 1.5 / n, n: of how many queries, pairs or answers it is the mean
    ends of intervals            twice that
    p-values, shares of draws    0.35: where few queries decide, one of them moves a probability that far
    odds ratios o                0.35 of o / (1 + o), since o is infinite where nothing was lost
    ranks of methods             3 places
    counts of answers or pairs   2
    seconds and memory           not at all: they are a machine's own

Other weights, a swapped column or a missing row move more than that (tests/test_compare.py).
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_numeric_dtype

FEWEST = 48  # queries, where a table does not say of how many a number is the mean: those of the smoke profile
SIZES = ("n_queries", "pairs", "n")  # the columns that say it
COUNTS = ("n", "answers", "pairs", "queries", "gained", "lost")
KEYS = ("layer", "head", "seed", "epoch", "candidate")  # whole numbers that name a row, as words do
MACHINES_OWN = re.compile("seconds|^peak_mb")
PROBABILITY = re.compile("^p_|^share_of_draws$")
ODDS = re.compile("^odds_ratio")
RANK = re.compile("^mean_rank|^.+, .+$")  # ranks.csv has a column '<lvlm>, <dataset>' each
END = re.compile("(^|_)(lo|hi)$")
NUMBER = re.compile(r"(?<![\w.])([-+]?\d+(?:\.\d+)?%?)(?!\w)")


def allowed(column: str, n: np.ndarray | float) -> np.ndarray:
    """How far a number of a column may move, of the shape of n: of how many queries or answers it is the mean."""
    n = np.asarray(n, float)
    if MACHINES_OWN.search(column):
        return np.full(n.shape, np.inf)
    if PROBABILITY.search(column) or ODDS.search(column):
        return np.full(n.shape, 0.35)
    if RANK.search(column):
        return np.full(n.shape, 3.0)
    return (0.005 + 1.5 / np.maximum(n, 1)) * (2 if END.search(column) else 1)


def texts(reference: str, found: str) -> list[str]:
    """What differs, a sentence each: the words must be equal, and so must whole numbers; a number with one decimal or a
    percent sign (percentage points, ranks) may move by 5, one with more decimals (rates, nats) by 0.05."""
    parts, others = NUMBER.split(reference), NUMBER.split(found)
    if parts[::2] != others[::2]:
        return [f"{found!r}, the reference says {reference!r}"]
    differences = []
    for number, other in zip(parts[1::2], others[1::2]):
        decimals = len(number.rstrip("%").partition(".")[2])
        most = 0.05 if decimals > 1 else 5 if decimals or number.endswith("%") else 0
        step = abs(float(other.rstrip("%")) - float(number.rstrip("%")))
        if step > most:
            differences.append(f"{other}, the reference says {number}: moved by {step:.3g}, {most:g} is allowed")
    return differences


def tables(reference: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """What differs, a sentence each: other columns, missing or further rows, words, and numbers that moved by more
    than `allowed`, and by how much. Rows are known by their words and KEYS, and by their order where these are equal.
    """
    if list(reference) != list(found):
        return [f"columns are {list(found)}, the reference has {list(reference)}"]
    numeric = [name for name in reference if all(is_numeric_dtype(frame[name]) for frame in (reference, found))]
    words = [name for name in reference if name not in numeric]
    left, right = (frame.assign(**{name: frame[name].fillna("").astype(str) for name in words})
                   for frame in (reference, found))  # fmt: skip
    named = [name for name in words if set(left[name]) <= set(right[name]) or set(left[name]) >= set(right[name])]
    left, right = (_by_name(frame, [*named, *(name for name in KEYS if name in numeric)]) for frame in (left, right))
    differences = [f"{_told(row)} is missing" for row in left.index.difference(right.index)]
    differences += [f"{_told(row)} is not in the reference" for row in right.index.difference(left.index)]
    shared = left.index[left.index.isin(right.index)]
    left, right = left.loc[shared], right.loc[shared]
    size = next((name for name in SIZES if name in numeric), None)
    n = np.full(len(shared), FEWEST) if size is None else left[size].fillna(FEWEST).to_numpy(float)
    for name in left:
        if name in words:
            moved = [texts(*pair) for pair in zip(left[name], right[name])]
        else:
            moved = _moved(name, left[name], right[name], n)
        differences += [f"{_told(row)}, {name}: {text}" for row, told in zip(shared, moved) for text in told]
    return differences


def _by_name(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The frame with `names`, and the place among rows that are equal in them, as index."""
    place = frame.groupby(names, dropna=False).cumcount() if names else pd.Series(range(len(frame)), frame.index)
    return frame.set_index(pd.MultiIndex.from_frame(frame[names].assign(place=place))).drop(columns=names)


def _told(row: tuple | int) -> str:
    *names, place = row if isinstance(row, tuple) else (row,)
    return f"row {', '.join(map(str, names))}" + (f" ({place + 1})" if place or not names else "")


def _moved(name: str, reference: pd.Series, found: pd.Series, n: np.ndarray) -> list[list[str]]:
    """For each row a list with the sentence on a number of column `name` that moved by more than it may, or none."""
    whole = not (is_float_dtype(reference) or is_float_dtype(found))
    a, b = (values.to_numpy(float) for values in (reference, found))
    most = np.full(n.shape, 2.0 * (name in COUNTS)) if whole else allowed(name, n)
    shares = [np.where(np.isinf(o), 1, o / (1 + np.where(np.isinf(o), 0, o))) for o in (a, b)]
    with np.errstate(invalid="ignore"):
        step = abs(shares[1] - shares[0]) if ODDS.search(name) else abs(b - a)
    same = (a == b) | (np.isnan(a) & np.isnan(b)) | (step <= most)
    told = "{:.6g}, the reference has {:.6g}: moved by {:.3g}, {:.3g} is allowed".format
    return [[] if fits else [told(*numbers)] for fits, *numbers in zip(same, b, a, step, most)]


def folders(reference: Path, found: Path) -> list[str]:
    """What differs between the tables (*.csv) of two folders, a sentence each, the table's name first."""
    names, others = ({path.name for path in Path(folder).glob("*.csv")} for folder in (reference, found))
    differences = [f"{name} is missing" for name in sorted(names - others)]
    differences += [f"{name} is not in the reference" for name in sorted(others - names)]
    for name in sorted(names & others):
        pair = (pd.read_csv(Path(folder) / name) for folder in (reference, found))
        differences += [f"{name}: {text}" for text in tables(*pair)]
    return differences
