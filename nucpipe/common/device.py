"""Where networks run and in which precision."""

from __future__ import annotations

import torch

from nucpipe.common.errors import UsageError

TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *TYPES)


def pick_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises:
        UsageError: the name is no device, or that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N.")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UsageError(f"--device {name}: PyTorch sees {found} CUDA device(s) here; use cpu or another number.")
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The type that autocast shall use on ``device``; None for full precision.

    ``auto`` takes what is fast without harm: fp16 on CUDA, bf16 on a CPU with instructions for it, else fp32.

    Raises:
        UsageError: an unknown name, or fp16 on a CPU.
    """
    if name not in PRECISIONS:
        raise UsageError(f"--precision {name}: expected one of {', '.join(PRECISIONS)}.")
    if name == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a CUDA device; on a CPU use auto, bf16 or fp32.")
    return TYPES[name]


def precision_word(precision: torch.dtype | None) -> str:
    """``fp32``, ``bf16`` or ``fp16``."""
    return next(name for name, dtype in TYPES.items() if dtype is precision)


def training_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The type that autocast shall use in training: bfloat16, or None for full precision.

    ``auto`` takes bfloat16 on CUDA and on a CPU with instructions for it; elsewhere it is many times slower.

    Raises:
        UsageError: neither ``auto``, ``fp32`` nor ``bf16``.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision {name}: training knows auto, fp32 and bf16.")
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" or pick_precision("auto", device) is not None else None
    return {"fp32": None, "bf16": torch.bfloat16}[name]
