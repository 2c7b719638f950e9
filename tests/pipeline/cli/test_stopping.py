"""Ctrl-C and SIGTERM, once and twice, wherever they come: one line, the exit status of the signal, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli.stopping import AT_ONCE
from tests.support.paths import ROOT
from tests.support.synthetic import MPP, draw_slide

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

COMMAND = """
import os, signal, sys, threading, time
import click
from pipeline.cli.main import OneLineErrors
from pipeline.cli.stopping import stop_on_signals

class Noisy:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def wait():
    print("ready", flush=True)
    time.sleep(60)

group = OneLineErrors("nucpipe")

@group.command()
def run():
    wait()

@group.command()
def slow():
    try:
        wait()
    finally:
        print("ending", flush=True)
        time.sleep(60)

@group.command()
def removed():
    Noisy()
    threading.Event().wait()

@group.command()
def thread():
    def work():
        while True:
            time.sleep(0.01)
            if stopped:
                raise RuntimeError("what is gone")
    stopped = []
    worker = threading.Thread(target=work)
    worker.start()
    try:
        wait()
    finally:
        stopped.append(1)
        worker.join()

@group.command()
def last():
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("ready", flush=True)

stop_on_signals()
group()
"""
STOPPED = "nucpipe: stopped; the same command {}.\n"
ON, AGAIN = "goes on where it stopped", "starts again"


def started(command: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    if command != "removed":
        assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("command", "number", "status", "said"),
    [
        ("run", signal.SIGINT, 130, STOPPED.format(ON)),
        ("run", signal.SIGTERM, 143, STOPPED.format(ON).replace("stopped", "stopped by SIGTERM", 1)),
        ("thread", signal.SIGINT, 130, STOPPED.format(AGAIN)),
        ("removed", None, 130, STOPPED.format(AGAIN)),
    ],
)
def test_a_signal_is_one_line(command: str, number: int | None, status: int, said: str) -> None:
    with started(command) as process:
        if number is not None:
            process.send_signal(number)
        try:
            assert process.communicate(timeout=50)[1] == said
        finally:
            process.kill()
    assert process.returncode == status


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_at_once(numbers: tuple[int, int]) -> None:
    with started("slow") as process:
        process.send_signal(numbers[0])
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        process.send_signal(numbers[1])
        assert process.stderr is not None
        assert process.stderr.read().encode() == AT_ONCE
    assert process.returncode == 130


def test_a_signal_while_python_ends(tmp_path: Path) -> None:
    """Its threads are waited for; there the first one ends it, too."""
    with started("last") as process:
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert process.returncode in (0, 130)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT)])
def test_a_run_that_is_stopped_keeps_what_is_done(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    path = draw_slide(1500, 1200).save(tmp_path / "s.png")
    command = [sys.executable, "-m", "nucpipe", "run", str(path), "--out", str(tmp_path / "out"), "--mpp", str(MPP)]
    command += ["--tissue", "none", "--region-size", "256"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (kept := list((tmp_path / "out" / "s" / "journal").glob("*.region"))):
            assert process.poll() is None
            time.sleep(0.01)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.1)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 128 + numbers[0]
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("nucpipe: stopped")
    assert all(path.is_file() for path in kept)
    if len(numbers) == 1:
        assert not list(tmp_path.rglob("*.lock"))
        assert not list(tmp_path.rglob("*.partial"))
