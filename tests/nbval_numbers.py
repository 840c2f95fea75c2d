"""nbval compares outputs to the letter; with this plugin (`-p tests.nbval_numbers`) numbers are compared as numbers.

Words, structure and whole numbers stay as strict as they were; every other number may move as far as evaluation.compare
allows, and a failure says which one moved by how much. A table is compared as the table that it shows, not once more as
text; pictures are compared by nobody.
"""

import pandas as pd
from bs4 import BeautifulSoup
from nbformat import from_dict
from nbval.plugin import IPyNbCell

from acs_lib.evaluation import compare


class Output(str):
    """A text or HTML output that equals another if nothing moved further than it may."""

    def __eq__(self, other):
        return not differences(self, other)

    def __ne__(self, other):
        return not self == other

    __hash__ = str.__hash__


def differences(reference: str, found: str) -> list[str]:
    """What differs between two outputs, a sentence each."""
    (pages, frames), (other_pages, other_frames) = (parts(output) for output in (reference, found))
    if len(frames) != len(other_frames):
        return [f"{len(other_frames)} tables, the reference has {len(frames)}"]
    moved = [text for pair in zip(pages, other_pages) for text in compare.texts(*pair)]
    return moved + [text for pair in zip(frames, other_frames) for text in compare.tables(*pair)]


def parts(output: str) -> tuple[list[str], list[pd.DataFrame]]:
    """([the text], tables) of an output; text that is no HTML has no tables. A table's plain row numbers are left out:
    rows are known by what stands in them."""
    if not output.lstrip().startswith("<"):
        return [str(output)], []
    page = BeautifulSoup(output, "html.parser")
    frames = []
    for table in page.find_all("table"):
        head, *rows = ([cell.get_text() for cell in row.find_all(["th", "td"])] for row in table.find_all("tr"))
        rows = [row for row in rows if set(row) != {"..."}]
        frame = pd.DataFrame(rows, columns=[name or "row" for name in head]).apply(_as_numbers)
        frames.append(frame.drop(columns="row", errors="ignore"))
        table.decompose()
    for style in page.find_all("style"):
        style.decompose()
    return [page.get_text(" ")], frames


def _as_numbers(column: pd.Series) -> pd.Series:
    """Numbers where all values are some, with empty and NaN cells as none; else the words as they are."""
    try:
        return pd.to_numeric(column.replace({"": None, "NaN": None, "None": None}))
    except ValueError:
        return column


def _compare_outputs(cell, test, reference, skip_compare=None, to_the_letter=IPyNbCell.compare_outputs):
    test, reference = ([_once(output) for output in outputs] for outputs in (test, reference))
    return to_the_letter(cell, test, reference, skip_compare)


def _once(output):
    """An output without pictures, and without the plain text of what it also shows as HTML."""
    if "data" not in output:
        return output
    left_out = ("image/", "text/plain") if "text/html" in output["data"] else ("image/",)
    kept = {kind: value for kind, value in output["data"].items() if not kind.startswith(left_out)}
    return from_dict({**output, "data": kept})


IPyNbCell.compare_outputs = _compare_outputs
IPyNbCell.sanitize = lambda cell, value: Output(value) if isinstance(value, str) else value


def pytest_assertrepr_compare(op, left, right):
    """What nbval prints of two outputs that differ."""
    if isinstance(left, Output):
        return ["numbers and words that are not those of the reference:", *differences(left, right)]
