"""Locks: at most one process works on a slide's folder, whether the others run on this machine or share its disk.

Not the package filelock, whose ``flock`` some network file systems lack or keep to one host (Lustre's
``localflock``), so that two hosts would both hold it; a file that only one can create is exclusive on all of them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from nucpipe.errors import OutputError
from nucpipe.files import cannot_write

BEAT_S = 15.0
DEAD_S = 120.0
"""A lock of another machine that was not touched for so long is a dead one. A network disk may show a file's time late,
by a minute with NFS's defaults, hence several beats."""
RETRY_S = 0.05


class LostLock(OutputError):
    """Another process took a lock over because its holder was not heard of."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        token: unique to this taking of the lock.
        machine: of this boot and, in containers, of this name space of processes; "" where that is not known.
        host: for people.
        pid: process number.
        started: of the process, in the kernel's own count; "" where that is not known.
    """

    token: str
    machine: str
    host: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> Holder:
        """Return the holder that this process is."""
        return cls(uuid.uuid4().hex, machine(), socket.gethostname(), os.getpid(), started(os.getpid()))

    @classmethod
    def parse(cls, content: bytes) -> Holder | None:
        """Read a lock's content; None where that is not yet, or not wholly, written, or is not a lock's."""
        try:
            holder = cls(**json.loads(content))
        except (ValueError, TypeError):
            return None
        texts = (holder.token, holder.machine, holder.host, holder.started)
        return holder if type(holder.pid) is int and holder.pid > 0 and all(type(t) is str for t in texts) else None

    def is_dead(self) -> bool | None:
        """Tell whether the process has ended; None where that cannot be known from here."""
        if not self.machine or self.machine != machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return None if self.pid != os.getpid() else False
        # A process that its parent has not reaped does no more work; a number may belong to another process by now.
        return _status(self.pid)[:1] in (["Z"], ["X"]) or started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lock:
    """A lock on a folder, kept in files ``.<name>.<generation>.lock`` in it.

    A process takes the lock by creating the file of generation 0, which succeeds for one only. Where the holder is
    dead, it is taken over by creating the next generation's file, which again succeeds for one only; nothing is ever
    renamed or replaced. The highest generation is the holder's. A holder on this machine is dead when its process has
    ended; one elsewhere when the file was not touched for ``DEAD_S``, by the file system's own clock (the time of a
    file created just now), so that the machines' clocks need not agree.
    """

    def __init__(self, folder: Path, name: str = "run") -> None:
        self.folder, self.name = folder, name
        self._path: Path | None = None  # of the file that is ours
        self._generation = 0

    def acquire(self) -> bool:
        """Take the lock if it is free or its holder is dead; False where another process works.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        try:
            return self._acquire()
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _acquire(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if os.path.lexists(self.folder) and not self.folder.is_dir():
                raise
            return False  # who had the lock has just removed the folder
        latest = self._latest()
        before = b"" if latest is None else self._content(latest)
        if latest is not None and not self._is_dead(latest):
            return False
        generation = 0 if latest is None else latest + 1
        path = self._file(generation)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except (FileExistsError, FileNotFoundError):  # another was faster, or has removed the empty folder
            return False
        try:
            os.write(descriptor, json.dumps(asdict(Holder.me())).encode())
        except OSError:  # a full disk: an empty file would be somebody's lock until it is old
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        # What was seen may have been given back, and taken anew, in between.
        if self._latest() != generation or (latest is not None and self._content(latest) != before):
            path.unlink(missing_ok=True)
            return False
        self._path, self._generation = path, generation
        return True

    def release(self) -> None:
        """Give the lock back, if it is held. The folder goes too where nothing else is in it."""
        if self._path is None:
            return
        self._path = None
        for generation in range(self._generation + 1):
            with suppress(OSError):
                self._file(generation).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def beat(self) -> None:
        """Tell the other machines that the holder lives."""
        if self._path is not None:
            with suppress(OSError):  # a disk that is away for a while
                os.utime(self._path)

    def check(self) -> None:
        """See that the lock is still this process's.

        Raises:
            LostLock: it is another's, which must not be disturbed.
        """
        for _ in range(3):  # a process that withdraws at once may be in sight for a moment
            if self._path is not None and self._path.exists() and not self._file(self._generation + 1).exists():
                return
            time.sleep(RETRY_S)
        raise LostLock(
            f"{self.folder}: {self.holder() or 'another process'} took this slide over, because this process was not "
            f"heard of for {DEAD_S:.0f} s; it goes on there."
        )

    def holder(self) -> Holder | None:
        """Return who holds the lock; None where nobody does or it cannot be read."""
        latest = self._latest()
        return None if latest is None else Holder.parse(self._content(latest))

    def is_free(self) -> bool:
        """Tell whether nobody has the lock, nor died with it."""
        return self._latest() is None

    def seems_held(self) -> bool:
        """Tell whether somebody has the lock, without listing the folder, in which thousands of others may lie.

        Not for those who want the lock: it is free a moment before the last file is gone, and after a kill in that
        moment the first file is missing.
        """
        return self._file(0).exists()

    def _file(self, generation: int) -> Path:
        return self.folder / f".{self.name}.{generation}.lock"

    def _latest(self) -> int | None:
        """Return the highest generation that is there."""
        begin, end = f".{self.name}.", ".lock"
        try:
            names = [path.name for path in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):  # who gives a lock back removes the folder if it is empty
            return None
        locks = [name for name in names if name.startswith(begin) and name.endswith(end)]
        generations = [name.removeprefix(begin).removesuffix(end) for name in locks]
        return max((int(text) for text in generations if text.isdecimal()), default=None)

    def _content(self, generation: int) -> bytes:
        try:
            return self._file(generation).read_bytes()
        except FileNotFoundError:
            return b""

    def _is_dead(self, generation: int) -> bool:
        try:
            # Opened, not only looked at: a network disk then tells the file's present time.
            with self._file(generation).open("rb") as file:
                touched = os.fstat(file.fileno()).st_mtime
                holder = Holder.parse(file.read())
            if holder is not None and (dead := holder.is_dead()) is not None:
                return dead
            return file_system_now(self.folder) - touched > DEAD_S
        except FileNotFoundError:  # just given back, maybe with its folder; the next try finds it free
            return False


@contextmanager
def held(lock: Lock) -> Iterator[Lock]:
    """Keep a lock that was acquired alive while the block runs, and give it back."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            lock.beat()

    thread = threading.Thread(target=beat, name="nucpipe-lock", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        done.set()
        thread.join()
        lock.release()


@contextmanager
def waiting_for(lock: Lock) -> Iterator[Lock]:
    """Hold a lock for a moment, however long it takes to get it.

    Raises:
        OutputError: the folder cannot be written.
    """
    while not lock.acquire():
        time.sleep(RETRY_S)
    try:
        yield lock
    finally:
        lock.release()


def file_system_now(folder: Path) -> float:
    """Return the time by the clock of the file system that ``folder`` lies on, seconds; comparable with its files'
    times.
    """
    probe = folder / f".{uuid.uuid4().hex}.now"
    try:
        with probe.open("wb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        probe.unlink(missing_ok=True)


@cache
def machine() -> str:
    """Return what two processes must share for the number of one to mean anything to the other; "" where it is not
    known.
    """
    if sys.platform != "linux":
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def started(pid: int) -> str:
    """Return when a process was started, in the kernel's count; "" where it is not known."""
    return next(iter(_status(pid)[19:]), "")


def _status(pid: int) -> list[str]:
    """Return a process' fields of ``/proc``, from its state on; none where they cannot be read."""
    try:
        # The field before, the program's name, may hold blanks and brackets.
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []
