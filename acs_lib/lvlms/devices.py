"""Where LVLMs and regressors compute, and in which number format."""

import functools
import statistics
import time

import torch

CLEARLY = 1.5  # times as fast as float32: from then on half precision is taken on a CPU
WIDE, NARROW, MATRICES = 6144, 2048, 4  # of the products that are timed: too many numbers for a CPU's cache


def default_device() -> str:
    """Where LVLMs compute: on a GPU if there is one, NVIDIA's or AMD's before Apple's."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def small_device() -> str:
    """Where small models compute, regressors and the embedded LVLMs: on an NVIDIA or AMD GPU if there is one. On
    Apple's they would wait for it longer than they compute."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(device: str) -> torch.dtype:
    """The number format in which an LVLM is fast on a device: bfloat16, or float16 on GPUs that have no bfloat16; on a
    CPU float32, unless it multiplies bfloat16 faster (a few have units for it; on most it takes many times as long)."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device == "mps":
        return torch.float16
    return torch.bfloat16 if _speed_up() >= CLEARLY else torch.float32


@functools.cache
def _speed_up(side: int = 512, times: int = 5) -> float:
    """How many times as fast this CPU multiplies matrices in bfloat16 as in float32: of the fastest of some tries."""
    taken = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix, found = torch.ones(side, side, dtype=dtype), []
        for _ in range(times):
            begun = time.perf_counter()
            matrix @ matrix
            found.append(time.perf_counter() - begun)
        taken.append(min(found))
    return taken[0] / taken[1]


def measured_rates(device: str, dtype: torch.dtype, seconds: float = 0.5) -> tuple[float, float]:
    """What a device reaches in products of matrices, measured for `seconds` each: TFLOPS where 256 rows meet the
    weights, as in a prefill, and GB/s of weights where 11 rows do, as when 11 answers are decoded."""
    weights = [torch.ones(NARROW, WIDE, dtype=dtype, device=device) for _ in range(MATRICES)]
    wait = torch.accelerator.synchronize if device != "cpu" else lambda: None

    def taken(rows: int) -> float:
        values = torch.ones(rows, NARROW, dtype=dtype, device=device)
        found: list[float] = []
        while len(found) < MATRICES or sum(found) < seconds:
            begun = time.perf_counter()
            values @ weights[len(found) % MATRICES]
            wait()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)

    numbers = WIDE * NARROW
    return 2 * 256 * numbers / taken(256) / 1e12, numbers * dtype.itemsize / taken(11) / 1e9
