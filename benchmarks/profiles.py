"""How much faster a profile runs than at an earlier commit: two checkouts, one after the other.

    python -m benchmarks.profiles BEFORE AFTER --profile smoke --busy --times 2

BEFORE and AFTER are checkouts; this environment's Python runs both, in turn, from nothing: what a run left in
`data` and `reports` of a checkout is deleted first. With --busy a process that only computes runs
beside. Writes the mean of all runs so far to reports/benchmarks/profiles.csv, and every run's seconds to the terminal.
Nothing else should run on the machine. Ctrl-C ends it; what was measured is kept.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from acs_lib import paths
from acs_lib.core.files import write_text

TABLE = paths.ROOT / "reports" / "benchmarks" / "profiles.csv"
LEFT_BY_RUNS = "data/runs", "data/scenes", "data/scenes-shift"


def seconds(checkout: Path, profile: str, busy: bool) -> float:
    """Wall time of a run of a profile from nothing; RuntimeError if it failed."""
    for left in (*LEFT_BY_RUNS, f"reports/{profile}"):
        shutil.rmtree(checkout / left, ignore_errors=True)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    begun = time.monotonic()
    try:
        command = [sys.executable, "-m", "acs_lib.cli", "run", "--profile", profile]
        environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}  # its own package, in the kernels too
        code = subprocess.run(command, cwd=checkout, env=environment, stdin=subprocess.DEVNULL).returncode
    finally:
        if other is not None:
            other.kill()
    if code:
        raise RuntimeError(f"{checkout}: the run ended with {code}")
    return time.monotonic() - begun


def record(table: Path, profile: str, load: str, before: float, after: float) -> None:
    """Write a line of the table, in place of the one for the same profile and load."""
    line = pd.DataFrame([(profile, load, round(before, 1), round(after, 1), round(after / before, 3))])
    line.columns = ["profile", "load", "before_s", "after_s", "ratio"]
    if table.exists():
        known = pd.read_csv(table)
        line = pd.concat([known[(known["profile"] != profile) | (known["load"] != load)], line])
    write_text(table, line.sort_values(["profile", "load"], ascending=[True, False]).to_csv(index=False))


def main(
    before: Path,
    after: Path,
    profile: Annotated[str, typer.Option(help="what to run")] = "smoke",
    busy: Annotated[bool, typer.Option("--busy", help="beside a process that only computes")] = False,
    times: Annotated[int, typer.Option(help="runs of either checkout")] = 2,
) -> None:
    """Time a profile in two checkouts, in turn."""
    load, taken = "busy" if busy else "idle", {before: [], after: []}
    for _ in range(times):
        for checkout, found in taken.items():
            found.append(seconds(checkout, profile, busy))
            print(f"{profile}, {load}, {checkout}: {found[-1]:.1f} s", flush=True)
        record(TABLE, profile, load, *(sum(found) / len(found) for found in taken.values()))


if __name__ == "__main__":
    typer.run(main)
