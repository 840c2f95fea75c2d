"""Which device and which number format are taken where, on machines that are not at hand."""

import functools
import gc

import pytest
import torch

from acs_lib import paths
from acs_lib.lvlms import devices, load
from acs_lib.lvlms.load import load_checkpoint, load_spec, lvlm_spec


@pytest.fixture
def machine(monkeypatch):
    """(has CUDA, has MPS) -> a machine that has them, as far as the choice of a device goes."""

    def has(cuda=False, mps=False, bfloat16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


@pytest.mark.parametrize(
    ("cuda", "mps", "large", "small"),
    [(True, False, "cuda", "cuda"), (False, True, "mps", "cpu"), (False, False, "cpu", "cpu")],
)
def test_devices(machine, cuda, mps, large, small):
    machine(cuda, mps)
    assert (devices.default_device(), devices.small_device()) == (large, small)


def test_number_formats(machine, monkeypatch):
    machine(cuda=True)
    assert devices.fast_dtype("cuda") == devices.fast_dtype("cuda:1") == torch.bfloat16
    machine(cuda=True, bfloat16=False)
    assert devices.fast_dtype("cuda") == devices.fast_dtype("mps") == torch.float16
    for speed, dtype in ((0.1, torch.float32), (1.4, torch.float32), (3.0, torch.bfloat16)):
        monkeypatch.setattr(devices, "_speed_up", lambda speed=speed: speed)
        assert devices.fast_dtype("cpu") == dtype


def test_this_cpu_is_measured_once():
    devices._speed_up.cache_clear()
    assert 0 < devices._speed_up() == devices._speed_up() and devices._speed_up.cache_info().misses == 1


def test_rates_are_operations_and_bytes_over_the_median_of_what_products_take(monkeypatch):
    """A clock by which a product of many rows takes 2 s and one of few rows 4 s, but for one that is disturbed."""
    spans = iter([9.0, 2, 2, 2, 4, 4, 9, 4])
    clock = (moment for span in spans for moment in (0.0, span))
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(devices, "WIDE", 6)
    monkeypatch.setattr(devices, "NARROW", 4)
    tflops, bandwidth = devices.measured_rates("cpu", torch.float32, seconds=0)
    assert tflops == pytest.approx(2 * 256 * 24 / 2 / 1e12) and bandwidth == pytest.approx(24 * 4 / 4 / 1e9)


@pytest.fixture
def half(tmp_path):
    """The embedded InternVL, stored in bfloat16 as published LVLMs are."""
    lvlm = load_checkpoint(paths.EMBEDDED / "internvl", dtype="bfloat16")
    lvlm.model.save_pretrained(tmp_path)
    lvlm.tokenizer.save_pretrained(tmp_path)
    lvlm.image_processor.save_pretrained(tmp_path)
    return tmp_path


def test_auto_is_what_is_fast_here_and_float32_stays(half, monkeypatch):
    for fast in (torch.float32, torch.float16):
        monkeypatch.setattr(load, "fast_dtype", lambda device, fast=fast: fast)
        assert load_checkpoint(half).model.dtype == fast
        assert load_checkpoint(paths.EMBEDDED / "internvl").model.dtype == torch.float32
    assert load_checkpoint(half, dtype="bfloat16").model.dtype == torch.bfloat16


def test_embedded_lvlms_are_no_matter_for_apples_gpu(machine, monkeypatch):
    machine(mps=True)
    monkeypatch.setattr(load, "_loaded", {})
    assert load_spec(lvlm_spec("internvl-embedded")).model.device.type == "cpu"


class TooLarge:
    """A model that no single GPU can hold."""

    def to(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")


@pytest.mark.parametrize("cards", [1, 2])
def test_an_lvlm_that_is_too_large_is_spread_over_the_gpus_that_are_there(cards, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(gc, "collect", lambda: None)
    place = functools.partial(load._placed, TooLarge(), "cuda", lambda **how: how)
    if cards == 1:
        with pytest.raises(RuntimeError, match="out of memory; take a smaller LVLM, or a quantised one"):
            place()
        return
    assert place() == {"device_map": "auto"}
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="to spread it over 2 GPUs the package accelerate is needed"):
        place()
