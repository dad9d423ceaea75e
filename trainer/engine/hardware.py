"""The device and how torch is set up on it. Called by `__main__` and `tune`; knows no model."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import deterministic as filling

from trainer.engine.recipe import Environment


def device_of(wanted: str) -> torch.device:
    """ "auto", "cpu" or "cuda".

    Raises:
        ValueError: it is none of them, or not here.
    """
    if wanted not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {wanted!r}; auto, cpu or cuda was wanted")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and torch finds no CUDA device here")
    return torch.device("cuda", 0) if wanted != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def prepare(threads: int) -> None:
    """Once a process, before anything is computed."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_flush_denormal(True)  # denormal numbers are a hundred times slower, and nothing here means them
    whole_floats()


def whole_floats() -> None:
    """fp32 means fp32: on a GPU, convolutions would round to TF32's 10 bits from the start, the VAE's too, whose errors
    would be trained on.
    """
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # made at run time


def describe(device: torch.device) -> tuple[str, int]:
    """Its name and its memory in bytes."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, properties.total_memory
    return "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_taken(device: torch.device) -> tuple[int, int]:
    """Bytes that this process takes, now and at most so far: on a GPU what torch has reserved of it, else what is
    resident. Waits for no device.
    """
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device), torch.cuda.max_memory_reserved(device)
    # Not getrusage: its peak counts what the process was before it became this program, the supervisor's memory.
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now = lines["VmRSS"]
    peak = lines.get("VmHWM", now)  # not every kernel tells it: gVisor's does not
    return int(now.split()[0]) * 1024, int(peak.split()[0]) * 1024


def environment(device: torch.device, threads: int) -> Environment:
    """What the promise of same bytes is bound to, here and now."""
    return Environment(
        device=describe(device)[0],
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        threads=threads,
        attention="sdpa",
        compiled=False,
        torch=torch.__version__,
        diffusers=version("diffusers"),
        peft=version("peft"),
    )


def set_deterministic(wanted: bool) -> None:
    """Same recipe, same bytes; on a GPU at the price of some speed."""
    # Scratch memory that is about to be overwritten need not be filled: that would cost, and change no result.
    filling.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module, made at run time
    torch.use_deterministic_algorithms(wanted)
    # Not even where it may: with cuDNN's search a new size of pictures or batch took 7.6 s to its first step and 0.8 s
    # when it came up again (H100, Stable Diffusion 1.5), and it wins less than the 14 % that determinism costs in all.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = wanted


def attention(deterministic: bool, device: torch.device) -> AbstractContextManager[None]:
    """Leaves out the attention kernel whose backward pass adds up in any order, where that matters."""
    if deterministic and device.type == "cuda":
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
    return nullcontext()
