"""How far something long is: a bar at a terminal, lines in a pipe or a log file.

Where standard error is no terminal, every 30 seconds a line says how many are done and when it should end. `acs run`
names the notebook for these lines in the environment (ACS_PROGRESS); at a terminal it wants no bars of what works in
notebooks (TQDM_DISABLE).
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO, TypeVar

from tqdm import tqdm

NOTEBOOK = "ACS_PROGRESS"  # variable of the environment: the notebook that is run without a terminal
EVERY = 30  # seconds
_alone = ContextVar("alone", default=False)
Item = TypeVar("Item")


@contextmanager
def telling() -> Iterator[None]:
    """Within it a process that works beside others tells of itself in a run's lines: for work whose parts are so long
    that who gives them out has nothing to tell."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


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


def progress(what: str, total: int, done: int = 0, unit: str = "queries", printed: bool = False) -> Lines | tqdm:
    """A context whose `update(count)` says how far it is: a bar at a terminal, else `Lines`. There is no bar for one
    thing alone, none in a terminal that what is done is `printed` on, and nothing of a process that works beside
    others, but within `telling`: who gives out the work tells of it."""
    notebook, beside = os.environ.get(NOTEBOOK), multiprocessing.parent_process() is not None
    piped = not (beside or sys.stderr.isatty() or "TQDM_DISABLE" in os.environ)
    if piped or (notebook and (_alone.get() or not beside)):
        return Lines(f"{notebook}: {what}" if notebook else what, total, done, unit)
    hidden = beside or "TQDM_DISABLE" in os.environ or total < 2 or (printed and sys.stdout.isatty())
    return tqdm(total=total, initial=done, desc=what, unit=f" {unit}", mininterval=2, disable=hidden)


def tracked(
    items: Collection[Item], what: str, done: int = 0, unit: str = "queries", printed: bool = False
) -> Iterator[Item]:
    """The items, one after the other, with `progress`; `done` others were done before."""
    with progress(what, done + len(items), done, unit, printed) as told:
        for item in items:
            yield item
            told.update()
