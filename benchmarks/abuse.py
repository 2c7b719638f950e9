"""A service under slow, broken and many clients: the others are answered all the same, in bounded time and memory.

    python benchmarks/abuse.py [--minutes 60] [--good 3] [--bad 300] [--seed 0]

`nucpipe serve` runs in a process of its own. Good clients send images and compare each answer with the first one to the
same image; where they are told that it is too much now (503, 504) they come again. Bad ones connect and send nothing,
half a request, one byte at a time, garbage, broken and far too large images, or never read what they asked for. Once a
second /health is asked. Prints what became of them; the exit status is 1 where an answer was lost or wrong, the service
wrote a traceback, anything took more than 60 s, or it held more than 3 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.serve import memory_mib
from tests.support.slides import tissue_texture

SECONDS, MIB = 60.0, 3 * 1000**3 / 2**20
MPP = 0.25
HEAD = "POST /v1/{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
FORM = '--b\r\nContent-Disposition: form-data; name="mpp"\r\n\r\n0.25\r\n'
FILE = '--b\r\nContent-Disposition: form-data; name="{}"; filename="a.png"\r\n\r\n'


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def request(address: str, name: str, files: list[bytes]) -> bytes:
    """Return a whole request that sends files."""
    body = FORM.encode() + b"".join(FILE.format(name).encode() + file + b"\r\n" for file in files) + b"--b--\r\n"
    return f"{HEAD.format(address)}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Abuse:
    """Ways to misuse a service, each on a connection of its own.

    Args:
        port: of the service.
        good: a file that it takes.
        ended: set when everybody shall go home.
    """

    def __init__(self, port: int, good: bytes, ended: threading.Event) -> None:
        self.port, self.good, self.ended = port, good, ended
        self.white = png(np.full((5000, 5000, 3), 255, np.uint8))
        self.ways: dict[str, Callable[[socket.socket, random.Random], None]] = {
            "says nothing": lambda line, chance: self.hold(line, chance),
            "half a head": self.half_head,
            "a byte at a time": self.trickle,
            "half a body": self.half_body,
            "garbage": self.garbage,
            "a broken image": self.broken,
            "too many pixels": self.too_many,
            "never reads": self.never_reads,
            "goes away": self.goes_away,
        }

    def hold(self, line: socket.socket, chance: random.Random) -> None:
        """Wait until the other side closes, or half a minute."""
        end = time.monotonic() + chance.uniform(1, 30)
        line.settimeout(0.5)
        while time.monotonic() < end and not self.ended.is_set():
            with contextlib.suppress(TimeoutError):
                if not line.recv(2**16):
                    return

    def half_head(self, line: socket.socket, chance: random.Random) -> None:
        whole = request("nuclei", "image", [self.good]).partition(b"\r\n\r\n")[0]
        line.sendall(whole[: chance.randrange(1, len(whole))])
        self.hold(line, chance)

    def trickle(self, line: socket.socket, chance: random.Random) -> None:
        for byte in request("nuclei", "image", [self.good])[:400]:
            if self.ended.wait(chance.uniform(0, 0.2)):
                return
            line.sendall(bytes([byte]))

    def half_body(self, line: socket.socket, chance: random.Random) -> None:
        whole = request("nuclei", "image", [self.good])
        line.sendall(whole[: len(whole) - chance.randrange(1, len(self.good))])
        self.hold(line, chance)

    def garbage(self, line: socket.socket, chance: random.Random) -> None:
        line.sendall(chance.randbytes(chance.randrange(1, 5000)))
        self.hold(line, chance)

    def broken(self, line: socket.socket, chance: random.Random) -> None:
        content = bytearray(self.good)
        for _ in range(chance.randint(1, 20)):
            content[chance.randrange(8, len(content))] = chance.randrange(256)
        line.sendall(request("nuclei", "image", [bytes(content)]))
        self.hold(line, chance)

    def too_many(self, line: socket.socket, chance: random.Random) -> None:
        line.sendall(request("labels", "images", [self.white] * chance.randint(1, 40)))
        self.hold(line, chance)

    def never_reads(self, line: socket.socket, chance: random.Random) -> None:
        line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        self.ended.wait(chance.uniform(1, 30))

    def goes_away(self, line: socket.socket, chance: random.Random) -> None:
        line.sendall(request("nuclei", "image", [self.good]))
        time.sleep(chance.uniform(0, 0.5))

    def client(self, seed: str, done: Counter[str]) -> None:
        """Misuse the service in one way after another."""
        chance = random.Random(seed)
        while not self.ended.wait(chance.uniform(0, 1)):
            way = chance.choice(sorted(self.ways))
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS) as line,
            ):
                self.ways[way](line, chance)
            done[way] += 1


class Record:
    """What good clients were given, by all threads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.worst = 0.0
        self.bad: list[str] = []
        self._lock = threading.Lock()

    def note(self, what: str, seconds: float, complaint: str = "") -> None:
        with self._lock:
            self.counts[what] += 1
            self.worst = max(self.worst, seconds)
            if seconds > SECONDS:
                self.counts["over 60 s"] += 1
            if complaint:
                self.counts["lost"] += 1
                self.bad.append(complaint)


def good_client(url: str, images: list[bytes], seed: str, ended: threading.Event, record: Record) -> None:
    """Send images, and compare the answers with the first ones."""
    chance, first = random.Random(seed), dict[int, bytes]()
    while not ended.is_set():
        k, began = chance.randrange(len(images)), time.monotonic()
        try:
            answer = httpx.post(f"{url}v1/nuclei", files={"image": images[k]}, data={"mpp": MPP}, timeout=2 * SECONDS)
        except httpx.HTTPError as error:
            record.note("lost its connection", time.monotonic() - began, repr(error))
            continue
        seconds = time.monotonic() - began
        if answer.status_code in (503, 504):
            record.note("turned away", seconds)
            ended.wait(2)
        elif answer.status_code != 200:
            record.note("refused", seconds, answer.text[:200])
        elif first.setdefault(k, answer.content) != answer.content:
            record.note("another answer", seconds, "an answer is not the first one to the same image")
        else:
            record.note("answered", seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--good", type=int, default=3)
    parser.add_argument("--bad", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = [png(tissue_texture(200 + 20 * k, 200, seed=k)) for k in range(5)]
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "nucpipe", "serve", "--port", "0", "--timeout", "25"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].split()[0]
            try:
                record, health, misused, most = run(url, images, server.pid, options)
            finally:
                server.terminate()
        log.seek(0)
        text = log.read()
    # The last line of each traceback says what it was.
    for line, count in Counter(re.findall(r"Traceback \(most recent call last\):\n(?:\s.*\n)*(.*)", text)).most_common(
        9
    ):
        print(f"{count} times in the log: {line}")
    tracebacks, log_kib = text.count("Traceback (most recent call last)"), len(text) / 1024
    print(f"bad clients: {', '.join(f'{n} {way}' for way, n in sorted(misused.items()))}")
    print(f"good clients: {', '.join(f'{n} {what}' for what, n in sorted(record.counts.items()))}")
    print(f"/health: {', '.join(f'{n} {what}' for what, n in sorted(health.counts.items()))}")
    print("\n".join((record.bad + health.bad)[:10]))
    lost = record.counts["lost"] + health.counts["lost"]
    late = record.counts["over 60 s"] + health.counts["over 60 s"]
    print(
        f"{lost} lost, {tracebacks} tracebacks, {late} over 60 s, {int(most > MIB)} over 3 GB; slowest answer "
        f"{record.worst:.1f} s, slowest /health {health.worst:.1f} s, most memory {most:.0f} MiB, log {log_kib:.0f} KiB"
    )
    sys.exit(bool(lost or tracebacks or late or most > MIB))


def run(
    url: str, images: list[bytes], pid: int, options: argparse.Namespace
) -> tuple[Record, Record, Counter[str], float]:
    """Let all clients loose on a service; returns what became of the good ones, of /health, and its most memory."""
    ended, record, health, misused = threading.Event(), Record(), Record(), Counter[str]()
    abuse = Abuse(int(url.rstrip("/").rpartition(":")[2]), images[0], ended)
    threads = [
        *(
            threading.Thread(target=good_client, args=(url, images, f"{options.seed} good {k}", ended, record))
            for k in range(options.good)
        ),
        *(threading.Thread(target=abuse.client, args=(f"{options.seed} bad {k}", misused)) for k in range(options.bad)),
    ]
    for thread in threads:
        thread.start()
    end, most = time.monotonic() + 60 * options.minutes, 0.0
    while (began := time.monotonic()) < end:
        try:
            answer = httpx.get(f"{url}health", timeout=2 * SECONDS)
            complaint = "" if answer.status_code == 200 else f"/health: {answer.status_code}"
        except httpx.HTTPError as error:
            complaint = f"/health: {error!r}"
        health.note("asked", time.monotonic() - began, complaint)
        most = max(most, memory_mib(pid))
        time.sleep(1)
    ended.set()
    for thread in threads:
        thread.join()
    return record, health, misused, most


if __name__ == "__main__":
    main()
