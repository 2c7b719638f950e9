"""What only Unix, or only Linux, has is done without: nobody runs these tests on Windows or macOS yet."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nucpipe.backends import device
from nucpipe.backends.device import pick_device, pick_precision, training_precision
from nucpipe.backends.processors import available_processors, limit_heaps
from nucpipe.backends.pytorch import PyTorchBackend
from nucpipe.errors import UsageError
from pipeline.batch import lock as lock_module
from pipeline.batch.lock import DEAD_S, Lock
from tests.support.paths import ROOT
from tests.support.synthetic import draw_slide

PACKAGES = ("nucpipe", "segmentation", "classifier", "pipeline")
UNIX_MODULES = {"crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}
"""Of Python's own; Windows has none of them."""
UNIX_OF_OS = {
    *("chown", "chroot", "fchmod", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups"),
    *("getloadavg", "getpgid", "getpgrp", "getpriority", "getsid", "getuid", "killpg", "lchown", "mkfifo", "mknod"),
    *("nice", "posix_fadvise", "posix_fallocate", "pread", "pwrite", "sched_getaffinity", "sched_setaffinity"),
    *(
        "sendfile",
        "setpgid",
        "setpriority",
        "setsid",
        "setuid",
        "statvfs",
        "sync",
        "sysconf",
        "uname",
        "wait3",
        "wait4",
    ),
}
SIGNALS = {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"}


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What Windows lacks, with the lines; ``os.NAME`` beside ``hasattr(os, "NAME")`` and tried imports are careful."""
    careful = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
    }
    absence = ("ImportError", "ModuleNotFoundError")
    tried = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any(one.type and ast.unparse(one.type) in absence for one in node.handlers)
        for inner in node.body
    }
    for node in ast.walk(tree):
        if node in tried:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, one.name) for one in node.names if one.name in UNIX_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in UNIX_MODULES:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            lacking = {"os": UNIX_OF_OS, "signal": SIGNALS}.get(node.value.id, set())
            if node.attr in lacking - careful:
                yield node.lineno, f"{node.value.id}.{node.attr}"


def test_nothing_that_windows_lacks_is_used_without_care() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources
        for line, name in uses(ast.parse(path.read_text("utf-8")))
    }
    assert found == set()
    careless = "import fcntl\nos.fork()\nsignal.SIGKILL\nhasattr(os, 'nice') and os.nice(1)"
    assert {name for _, name in uses(ast.parse(careless))} == {"fcntl", "os.fork", "signal.SIGKILL"}


WITHOUT = """
import builtins, json, os, pathlib, sys, types
packages, modules, names, tile, out = json.loads(sys.argv[1])
class Lacking(types.ModuleType):
    def __getattr__(self, name):
        if name in names:
            raise AttributeError(f"module 'os' has no attribute '{name}'")
        return getattr(os, name)
lacking = Lacking("os")
before = builtins.__import__
def without(name, globals=None, *rest, **more):
    if (globals or {}).get("__name__", "").partition(".")[0] in packages:  # others take what their platform has
        if name in modules:
            raise ModuleNotFoundError(name)
        if name == "os":
            return lacking
    return before(name, globals, *rest, **more)
builtins.__import__ = without
read = pathlib.Path.read_text
def no_proc(path, *rest, **more):
    if str(path).startswith(("/proc", "/sys")):
        raise FileNotFoundError(str(path))
    return read(path, *rest, **more)
pathlib.Path.read_text = no_proc
import nucpipe
(result,) = nucpipe.run(tile, out, mpp=0.25, tissue="none", precision="fp32")
assert result.status == "done", result.cause
from pipeline.cli.main import main
main(["export", str(result.folder), "--to", "csv", "--out", out + ".csv"], standalone_mode=False)
import pipeline.web.viewer.app, pipeline.web.server, pipeline.batch.dry_run, pipeline.export.registry
print(json.dumps(result.nuclei))
"""


@pytest.mark.slow
def test_run_and_export_without_what_only_unix_has(tmp_path: Path) -> None:
    tile = draw_slide(220, 200).save(tmp_path / "tile.png")
    lacking = [PACKAGES, sorted(UNIX_MODULES), sorted(UNIX_OF_OS), str(tile), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(lacking)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    nuclei = json.loads(done.stdout.splitlines()[-1])
    assert nuclei > 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == nuclei + 1
    assert not list(tmp_path.rglob("*.lock"))


def test_processors_without_an_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_processors({}, tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_processors({}, tmp_path) == 1


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_heaps_are_left_alone_elsewhere(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("no C library is asked"))
    limit_heaps(2)


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_a_lock_where_processes_cannot_be_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    """Without /proc nobody knows whether a process lives: its lock is dead when it was not touched for long.

    On Windows ``os.kill`` with 0 would send a process Ctrl-C.
    """
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "kill", lambda pid, signal: pytest.fail("no process is touched"))
    lock_module.machine.cache_clear()
    first, second = Lock(tmp_path / "a"), Lock(tmp_path / "a")
    try:
        assert first.acquire()
        assert not second.acquire()
        holder = first.holder()
        assert holder is not None
        assert holder.is_dead() is None
        old = time.time() - DEAD_S - 5
        os.utime(tmp_path / "a" / ".run.0.lock", (old, old))
        assert second.acquire()
        second.release()
        assert not (tmp_path / "a").exists()
    finally:
        lock_module.machine.cache_clear()


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which PyTorch has MPS and no CUDA."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_apple_s_gpu_is_chosen(apple: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == pick_device("mps") == "mps"
    assert pick_device("cpu") == "cpu"
    assert (pick_precision("auto", "mps"), training_precision("auto", "mps")) == ("fp32", "fp32")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(UsageError, match="--device mps: PyTorch sees no GPU of Apple's"):
        pick_device("mps")


def test_cuda_comes_before_apple_s_gpu(apple: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == "cuda"
    assert training_precision("auto", "cuda") == "bf16"
    for capability, precision in (((7, 5), "fp16"), ((8, 0), "fp32"), ((12, 0), "fp32")):  # T4, A100, RTX 50
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, known=capability: known)
        assert pick_precision("auto", "cuda:1") == precision


def test_a_network_is_given_its_pixels_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """``meta`` needs no hardware: its tensors have a shape and no values, and there is no autocast for it."""
    seen = []

    class Look(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(pixels.device.type)
            return torch.zeros(len(pixels), 1)

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    assert PyTorchBackend(Look(), "meta", "fp32")(np.zeros((2, 4, 4, 3), np.uint8)).shape == (2, 1)
    assert seen == ["meta"]


WITHOUT_OPENVINO = """
import importlib.abc, importlib.metadata, sys

class Nowhere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "openvino":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

found = importlib.metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name == "openvino":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(cls, name)

sys.meta_path.insert(0, Nowhere())
importlib.metadata.Distribution.from_name = classmethod(from_name)
from nucpipe.__main__ import start
start()
"""


def test_a_platform_without_openvino(tmp_path: Path) -> None:
    """There is none for Apple's and other ARM processors on Linux, where PyTorch runs the networks."""
    draw_slide(300, 300).save(tmp_path / "slide.png")
    command = [sys.executable, "-c", WITHOUT_OPENVINO, "run", "slide.png", "--mpp", "0.25", "--out", "results"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nuclei on" in done.stderr + done.stdout


def test_a_processor_of_which_pytorch_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "Path", lambda name: ROOT / "no such file")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert pick_precision("auto", "cpu") == "fp32"
