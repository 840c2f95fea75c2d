"""What runs have left on the disk, and how it is removed by name: `data/runs/<profile>` and `reports/<profile>`.

The committed references (`reports/reference`) and benchmarks are none of it.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from acs_lib import paths
from acs_lib.runs.store import locked

KEPT = paths.reference("").name, "benchmarks"  # folders of reports/ that are no run's


@dataclass(frozen=True)
class Left:
    """What a profile's run has left: its folders, their bytes, and when one of their files was last written (seconds
    since the epoch)."""

    name: str
    folders: tuple[Path, ...]
    bytes: int
    written: float

    @property
    def line(self) -> str:
        """Name, size and age, separated by tabs."""
        days = (time.time() - self.written) / 86400
        age = f"{days:.0f} days" if days >= 2 else f"{24 * days:.0f} hours"
        return f"{self.name}\t{self.bytes / 1e6:.1f} MB\t{age}"


def left() -> list[Left]:
    """What there is, by name."""
    found: dict[str, list[Path]] = {}
    for root in (paths.RUNS, paths.REPORTS):
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if folder.is_dir() and folder.name[0] != "." and not (root == paths.REPORTS and folder.name in KEPT):
                found.setdefault(folder.name, []).append(folder)
    return [_measured(name, folders) for name, folders in sorted(found.items())]


def _measured(name: str, folders: list[Path]) -> Left:
    files = [file.lstat() for folder in folders for file in folder.rglob("*") if not file.is_dir()]
    written = max([file.st_mtime for file in files] or [folder.stat().st_mtime for folder in folders])
    return Left(name, tuple(folders), sum(file.st_size for file in files), written)


def remove(names: list[str]) -> list[Left]:
    """Remove the runs of these names, and return what they were. ValueError, before anything is removed, if one is
    unknown; UserError if another process writes to one."""
    known = {each.name: each for each in left()}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"there is no run {unknown[0]!r}; there are {', '.join(known) or 'none'}")
    for name in dict.fromkeys(names):
        for folder in known[name].folders:
            for lock in folder.rglob(".lock"):
                with locked(lock.parent):
                    pass
    for name in dict.fromkeys(names):
        for folder in known[name].folders:
            shutil.rmtree(folder)
    return [known[name] for name in dict.fromkeys(names)]
