"""How far something long is: a bar at a terminal, lines in a log file.

`acs run` without a terminal names the notebook in the environment (ACS_PROGRESS); then what works in it says every 30
seconds how many are done and when it should end. Anywhere else there is a bar, and none in pipes.
"""

import os
import sys
import time
from typing import TextIO

from tqdm import tqdm

NOTEBOOK = "ACS_PROGRESS"  # variable of the environment: the notebook that is run without a terminal
EVERY = 30  # seconds


class Lines:
    """What is used of a bar, as lines of a log: at most one every EVERY seconds, none where that is not reached.

    what: is being done; done: so many of `total` were there before; unit: of what, in the plural
    """

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "queries", file: TextIO | None = None):
        self.what, self.total, self.before, self.done, self.unit = what, total, done, done, unit
        self.file = file or sys.stderr
        self.began = self.told = time.time()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        now = time.time()
        if now - self.told >= EVERY and self.done > self.before:
            self.told = now
            ends = now + (now - self.began) * (self.total - self.done) / (self.done - self.before)
            clock = time.strftime("%H:%M" if ends - now < 12 * 3600 else "%d %b %H:%M", time.localtime(ends))
            self.file.write(f"{self.what}: {self.done} of {self.total} {self.unit}, ends about {clock}\n")
            self.file.flush()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        return None


def progress(what: str, total: int, done: int = 0, unit: str = "queries") -> Lines | tqdm:
    """A context whose `update(count)` says how far it is: `Lines` in a run without a terminal, a bar otherwise, which
    is not shown where standard error is no terminal."""
    if notebook := os.environ.get(NOTEBOOK):
        return Lines(f"{notebook}: {what}", total, done, unit)
    return tqdm(total=total, initial=done, desc=what, unit=f" {unit}", mininterval=2, disable=None)
