"""Locks: one holder, however many ask; dead holders are known, here and on other machines."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nucpipe.errors import OutputError
from pipeline.batch.lock import DEAD_S, Holder, Lock, LostLock, file_system_now, held, machine, waiting_for
from tests.support.paths import ROOT

ELSEWHERE = Holder("token", "another boot of another machine", "elsewhere", 1, "1")


def lock_of(folder: Path, holder: Holder, age_s: float, generation: int = 0) -> Path:
    """A lock that somebody else took, last touched ``age_s`` ago by the file system's clock."""
    folder.mkdir(exist_ok=True)
    path = folder / f".run.{generation}.lock"
    path.write_text(json.dumps(asdict(holder)))
    touched = file_system_now(folder) - age_s
    os.utime(path, (touched, touched))
    return path


def test_one_holder_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    first, second = Lock(folder), Lock(folder)
    assert first.acquire()
    assert not second.acquire()
    holder = second.holder()
    assert holder is not None
    assert (holder.pid, holder.machine) == (os.getpid(), machine())
    first.check()
    first.release()
    assert not folder.exists()
    assert second.holder() is None
    assert second.acquire()
    (folder / "result").write_text("")
    second.release()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    for _ in range(20):
        locks = [Lock(tmp_path / "slide") for _ in range(16)]
        with ThreadPoolExecutor(16) as pool:
            won = [lock for lock, got in zip(locks, pool.map(Lock.acquire, locks), strict=True) if got]
        assert len(won) == 1
        won[0].release()


def test_of_many_at_once_one_takes_a_dead_one_over(tmp_path: Path) -> None:
    for _ in range(20):
        lock_of(tmp_path / "slide", ELSEWHERE, 2 * DEAD_S)
        locks = [Lock(tmp_path / "slide") for _ in range(16)]
        with ThreadPoolExecutor(16) as pool:
            won = [lock for lock, got in zip(locks, pool.map(Lock.acquire, locks), strict=True) if got]
        assert len(won) == 1
        won[0].check()
        won[0].release()
        assert not (tmp_path / "slide").exists()


def test_a_killed_process_s_lock_is_taken_over_at_once(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from pipeline.batch.lock import Lock
        assert Lock(Path(sys.argv[1])).acquire()
        print("held", flush=True)
        time.sleep(60)
    """)
    command = [sys.executable, "-c", program, str(tmp_path / "slide")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        lock = Lock(tmp_path / "slide")
        assert not lock.acquire()
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped: a zombie
        assert lock.acquire()
    lock.release()


@pytest.mark.parametrize("fields", [{"pid": "12"}, {"pid": None}, {"pid": -1}, {"pid": True}, {"machine": 3}])
def test_an_odd_lock_is_judged_by_its_age(tmp_path: Path, fields: dict[str, object]) -> None:
    path = lock_of(tmp_path, ELSEWHERE, 0)
    path.write_text(json.dumps({**asdict(Holder.me()), **fields}))
    assert not Lock(tmp_path).acquire()
    touched = file_system_now(tmp_path) - 2 * DEAD_S
    os.utime(path, (touched, touched))
    assert Lock(tmp_path).acquire()


def test_a_full_disk_leaves_no_lock_behind(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            Lock(tmp_path).acquire()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert Lock(tmp_path).acquire()


def test_another_machine_s_lock_lives_while_it_is_touched(tmp_path: Path) -> None:
    lock_of(tmp_path, ELSEWHERE, DEAD_S - 20)
    assert not Lock(tmp_path).acquire()
    lock_of(tmp_path, ELSEWHERE, DEAD_S + 20)
    assert Lock(tmp_path).acquire()


def test_a_number_that_another_process_was_given_since_is_dead(tmp_path: Path) -> None:
    lock_of(tmp_path, replace(Holder.me(), started="12345"), 0)
    assert Lock(tmp_path).acquire()


def test_half_a_lock_is_judged_by_its_age(tmp_path: Path) -> None:
    path = lock_of(tmp_path, ELSEWHERE, 0)
    path.write_bytes(path.read_bytes()[:20])
    assert not Lock(tmp_path).acquire()
    touched = file_system_now(tmp_path) - 2 * DEAD_S
    os.utime(path, (touched, touched))
    assert Lock(tmp_path).acquire()


def test_who_was_thought_dead_stops_writing(tmp_path: Path) -> None:
    mine = Lock(tmp_path)
    assert mine.acquire()
    lock_of(tmp_path, ELSEWHERE, 0, generation=1)  # another machine took it over
    with pytest.raises(LostLock, match="process 1 on elsewhere took this slide over"):
        mine.check()
    mine.release()
    assert not Lock(tmp_path).acquire()


def test_a_held_lock_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.batch.lock.BEAT_S", 0.02)
    lock = Lock(tmp_path)
    assert lock.acquire()
    path = tmp_path / ".run.0.lock"
    os.utime(path, (0, 0))
    with held(lock):
        until = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert abs(path.stat().st_mtime - file_system_now(tmp_path)) < 30
    assert not path.exists()


def test_waiting_gets_it_when_it_is_given_back(tmp_path: Path) -> None:
    order = []

    def work(number: int) -> None:
        with waiting_for(Lock(tmp_path, "summary")):
            order.append(number)
            time.sleep(0.01)
            order.append(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert order[::2] == order[1::2]
    assert sorted(order[::2]) == list(range(8))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Lock(tmp_path / "file" / "slide").acquire()
