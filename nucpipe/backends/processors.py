"""Number of processors allotted to this process, which may be fewer than the machine has."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")

M_ARENA_MAX = -8
"""Parameter of glibc's mallopt."""


def available_processors(environment: Mapping[str, str] = os.environ, cgroups: Path = CGROUPS) -> int:
    """Return the least of the affinity, the control group's quota and SLURM's allotment; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = environment.get("SLURM_CPUS_PER_TASK", "")
    allotted = int(slurm) if slurm.isdigit() else affinity
    return max(1, math.floor(min(affinity, allotted, cgroup_quota(cgroups))))


def cgroup_quota(folder: Path) -> float:
    """Return how many processors' time the control group (version 2, else 1) may use; infinite without a limit."""
    numbers = _numbers(folder / "cpu.max") or (
        *_numbers(folder / "cpu" / "cpu.cfs_quota_us"),
        *_numbers(folder / "cpu" / "cpu.cfs_period_us"),
    )
    match numbers:
        case (quota, period) if quota > 0 and period > 0:
            return quota / period
    return math.inf


def _numbers(path: Path) -> tuple[int, ...]:
    """Return the numbers in a file; none where it is missing or says ``max``."""
    try:
        return tuple(int(word) for word in path.read_text("ascii").split())
    except (OSError, ValueError):
        return ()


def limit_heaps(threads: int) -> None:
    """Let the C library keep as many heaps as there are threads that compute, and no more.

    glibc gives nearly every thread a heap of its own, and what one thread frees another cannot use: with a dozen
    threads for two processors that is a fifth more memory. Elsewhere, and where the user has set
    ``MALLOC_ARENA_MAX``, nothing happens.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, max(2, threads))
