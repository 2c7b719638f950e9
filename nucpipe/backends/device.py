"""Choice of device and precision. PyTorch takes seconds to import, and is needed only where there may be a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nucpipe.errors import UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

TF32_SINCE = (8, 0)
"""Compute capability of the first GPUs with TF32."""

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvgpu", "/dev/nvhost-gpu")
"""One of these is there on Linux if PyTorch can see a GPU: NVIDIA's, WSL's, AMD's, Jetson's two."""


def pick_device(name: str) -> str:
    """Return the device that ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` names, as PyTorch calls it.

    ``auto`` takes CUDA, else MPS (Apple's GPUs), else the processor.

    Raises:
        UsageError: the name is no device, or that device is not there.
    """
    if name == "cpu" or (name == "auto" and not _gpu_possible()):
        return "cpu"
    if name not in ("auto", "cuda", "mps") and not (name.startswith("cuda:") and name[5:].isdecimal()):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps.")
    import torch

    if name == "auto" and torch.cuda.is_available():
        return "cuda"
    if name in ("auto", "mps"):
        if torch.backends.mps.is_available():
            return "mps"
        if name == "auto":
            return "cpu"
        raise UsageError("--device mps: PyTorch sees no GPU of Apple's here; use auto or cpu.")
    if int(name[5:] or 0) >= (found := torch.cuda.device_count()):
        raise UsageError(f"--device {name}: PyTorch sees {found} CUDA device(s) here; use cpu or another number.")
    return name


def _gpu_possible() -> bool:
    return sys.platform != "linux" or any(Path(driver).exists() for driver in DRIVERS)


def pick_precision(name: str, device: str) -> str:
    """Return the precision that networks compute in on ``device``: ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` takes what is fast without harm. On CUDA that is fp32 where convolutions compute in TF32, on an H100
    several times as fast as fp16 for the classifier (docs/speed.md), and fp16 on older GPUs; on a CPU bf16 if it has
    instructions for it; else fp32, also on MPS, where no lower precision has been compared with it yet.

    Raises:
        UsageError: an unknown name, or fp16 on a CPU.
    """
    if name not in PRECISIONS:
        raise UsageError(f"--precision {name}: expected one of {', '.join(PRECISIONS)}.")
    if name == "auto":
        if device.startswith("cuda"):
            import torch

            return "fp32" if torch.cuda.get_device_capability(device) >= TF32_SINCE else "fp16"
        return "bf16" if device == "cpu" and _fast_in_bfloat16() else "fp32"
    if name == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a CUDA device; on a CPU use auto, bf16 or fp32.")
    return name


def _fast_in_bfloat16() -> bool:
    """Tell whether the processor has AVX-512's instructions for it."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        return "avx512_bf16" in listed.read_text(errors="replace")
    import torch

    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # of no public name, and not on every platform
    return asked is not None and bool(asked())


def autocast_type(precision: str) -> torch.dtype | None:
    """Return the type that PyTorch's autocast shall use; None for ``fp32``."""
    import torch

    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def training_precision(name: str, device: str) -> str:
    """Return the precision that autocast shall use in training: ``bf16`` or ``fp32``.

    ``auto`` takes bfloat16 on CUDA and on a CPU with instructions for it; on other CPUs it is many times slower.

    Raises:
        UsageError: neither ``auto``, ``fp32`` nor ``bf16``.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {name}: training knows auto, fp32 and bf16.")
    if name == "auto":
        return "bf16" if device.startswith("cuda") else pick_precision("auto", device)
    return name
