"""Processors: what was allotted counts, not what the machine has."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nucpipe.backends.processors import available_processors, cgroup_quota


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_the_least_of_affinity_slurm_and_the_control_group(tmp_path: Path) -> None:
    assert available_processors({}, tmp_path) == 8
    assert available_processors({"SLURM_CPUS_PER_TASK": "3"}, tmp_path) == 3
    assert available_processors({"SLURM_CPUS_PER_TASK": "64"}, tmp_path) == 8
    assert available_processors({"SLURM_CPUS_PER_TASK": "odd"}, tmp_path) == 8
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert available_processors({}, tmp_path) == 2
    assert available_processors({"SLURM_CPUS_PER_TASK": "1"}, tmp_path) == 1
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_processors({}, tmp_path) == 1


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path) == float("inf")
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(tmp_path) == 4
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_quota(tmp_path) == float("inf")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps a heap for each thread")
@pytest.mark.parametrize(("chosen", "fewer"), [(None, True), ("64", False)])
def test_threads_share_heaps_unless_the_user_says_otherwise(chosen: str | None, fewer: bool) -> None:
    program = """
import re, threading
from nucpipe.backends.processors import limit_heaps
limit_heaps(2)
kept, go = [], threading.Barrier(12)
def take():
    go.wait()
    kept.append([bytes(900) for _ in range(2000)])
    go.wait()
threads = [threading.Thread(target=take) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import ctypes, tempfile
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, ctypes.c_void_p(stream))
    libc.fclose(ctypes.c_void_p(stream))
    print(file.read().count(b"<heap nr="))
"""
    environment = {**os.environ, "PYTHONMALLOC": "malloc"}
    environment.pop("MALLOC_ARENA_MAX", None)
    if chosen is not None:
        environment["MALLOC_ARENA_MAX"] = chosen
    heaps = int(subprocess.check_output([sys.executable, "-c", program], env=environment, text=True))
    assert (heaps <= 2) == fewer
