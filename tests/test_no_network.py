"""Nothing is sent, and nothing is written where it does not belong: the real commands, watched.

They run in processes whose home is new and empty, and which ``support/watch`` watches, together with all that they
start: what turns to another machine is refused and written down, what makes a file outside the results, the cache and
the temporary folder is written down. What C libraries send past Python, strace sees where it may be used.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
import scipy.io

from nucpipe.cache import cache_folder
from tests.support.slides import tissue_texture, write_image, write_tiled_tiff
from tests.support.synthetic import draw_slide

pytestmark = pytest.mark.slow

WATCH = Path(__file__).parent / "support" / "watch"
MAY_WRITE = ("out", "cache", "tmp")
UNSET = ("CI", "TF_BUILD", "JENKINS_URL", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME")
"""What makes libraries behave better here than on a user's machine."""
COMMANDS = """
import json, sys
from pipeline.cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments, prog_name="nucpipe")
    except SystemExit as end:
        if end.code:
            sys.exit(f"nucpipe {' '.join(arguments)}: exit status {end.code}")
"""
SENT = re.compile(r'sin6?_port=htons\((?P<port>\d+)\).*?(?:inet_addr\(|AF_INET6, )"(?P<host>[\d.a-f:]+)"')
"""The address in a line of strace."""


@functools.cache
def strace() -> tuple[str, ...]:
    """The command that tells of connections and datagrams of all processes; nothing where it cannot be used."""
    command = ("strace", "-f", "-A", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o")
    try:
        works = subprocess.run([*command, os.devnull, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        works = False
    return command if works else ()


@dataclass(frozen=True)
class Machine:
    """As a user's: a folder with a home, some data, and what may be written to."""

    root: Path

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def environment(self) -> dict[str, str]:
        # Compiling takes half a minute: what was compiled before is used.
        compiled = os.environ.get("NUMBA_CACHE_DIR") or str(cache_folder() / "numba")
        return {name: value for name, value in os.environ.items() if name not in UNSET} | {
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "NUCPIPE_CACHE": str(self.root / "cache"),
            "NUMBA_CACHE_DIR": compiled,
            "PYTHONPATH": str(WATCH),
            "PYTHONDONTWRITEBYTECODE": "1",
            "WATCH_REPORT": str(self.root / "tmp" / "watched"),
            "WATCH_MAY_WRITE": os.pathsep.join([*(str(self.root / name) for name in MAY_WRITE), compiled]),
        }

    @contextmanager
    def python(self, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """A watched process, which must end well."""
        command = [*strace(), str(self.root / "tmp" / "strace")] if strace() else []
        command += [sys.executable, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            command, env=self.environment(), cwd=self.root / "home", text=True, start_new_session=True, **pipes
        )
        try:
            yield process
            said, complaints = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        assert process.returncode == 0, said + complaints

    def attempts(self) -> list[str]:
        """What was sent or written and should not be."""
        watched, trace = self.root / "tmp" / "watched", self.root / "tmp" / "strace"
        found = watched.read_text().splitlines() if watched.is_file() else []
        for line in trace.read_text().splitlines() if trace.is_file() else []:
            sent = SENT.search(line)
            # A server on this machine may look names up elsewhere.
            if sent and (sent["port"] == "53" or not sent["host"].startswith(("127.", "::1"))):
                found.append(line)
        return found

    def files(self) -> dict[Path, tuple[int, int]]:
        """Size and time of change of whatever lies outside the folders that may be written to."""
        paths = [path for path in self.root.rglob("*") if path.relative_to(self.root).parts[0] not in MAY_WRITE]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def new_machine(root: Path) -> Machine:
    for name in ("home", "data", *MAY_WRITE):
        (root / name).mkdir()
    return Machine(root)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """With a slide, an image of one nucleus, and three annotated images in CoNSeP's layout."""
    machine = new_machine(tmp_path_factory.mktemp("machine"))
    write_tiled_tiff(machine.data / "slide.tif", tissue_texture(600, 500), 0.25)
    write_image(machine.data / "nucleus.png", tissue_texture(64, 64))
    for folder in ("Images", "Labels"):
        (machine.data / "consep" / folder).mkdir(parents=True)
    for seed in range(3):
        drawn = draw_slide(280, 264, seed=seed)
        drawn.save(machine.data / "consep" / "Images" / f"image_{seed}.png")
        count, instances = cv2.connectedComponents((drawn.image[..., 1] < 110).astype(np.uint8), connectivity=4)
        labels = {"inst_map": instances, "inst_type": np.random.default_rng(seed).integers(2, 5, (count - 1, 1))}
        scipy.io.savemat(machine.data / "consep" / "Labels" / f"image_{seed}.mat", labels)
    return machine


def commands(data: Path, out: Path) -> list[list[str]]:
    """Every command that ends by itself, but for demo, which fetches its slide."""
    slide, nucleus, consep, result = data / "slide.tif", data / "nucleus.png", data / "consep", out / "slide"
    training = "--hold-out image_2 --steps 1 --batch-size 2"
    lines = [
        f"doctor --out {out}",
        "models",
        f"info {slide}",
        f"run {slide} --out {out}",
        *(f"export {result} --to {form}" for form in ("qupath", "csv", "anndata", "annotationstore", "labels")),
        f"report {result}",
        f"classify {nucleus} --preprocess normalise --stain-target {nucleus}",
        f"train segmentor --data {consep} --out {out}/segmentor.safetensors {training}",
        f"train classifier --library consep={consep} --start-from fast --out {out}/classifier.safetensors {training}",
        f"evaluate segmentor {out}/segmentor.safetensors --data {consep} --out {out}/segmentor",
    ]
    if importlib.util.find_spec("pyarrow"):
        lines += [f"export {result} --to parquet", f"export {result} --to spatialdata"]
    if importlib.util.find_spec("distributed"):
        lines.append(f"run {slide} --out {out}/cluster --cluster local:1")
    return [line.split(" ") for line in lines]


@pytest.fixture(scope="module")
def result(machine: Machine) -> Path:
    """The slide's result, after all commands that end by themselves."""
    before = machine.files()
    with machine.python("-c", COMMANDS, json.dumps(commands(machine.data, machine.out))):
        pass
    assert machine.attempts() == []
    assert machine.files() == before
    return machine.out / "slide"


def test_commands_send_nothing_and_write_where_they_may(machine: Machine, result: Path) -> None:
    for name in ("slide/report.html", "slide/qupath", "segmentor.safetensors", "classifier.safetensors"):
        assert (machine.out / name).exists(), name
    assert (machine.root / "cache" / "networks").is_dir()  # OpenVINO and PyTorch were at work


@pytest.mark.parametrize("command", ["view", "serve"])
def test_servers_send_nothing_and_answer_this_machine_alone(machine: Machine, result: Path, command: str) -> None:
    if command == "serve":
        pytest.importorskip("fastapi", reason="FastAPI is not installed (pip install '.[serve]')")
    before = machine.files()
    arguments = (result, "--no-browser") if command == "view" else ()
    with machine.python("-m", "nucpipe", command, *arguments, "--port", 0) as process:
        assert process.stdout is not None
        url = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert url is not None
        page = httpx.get(url[0], timeout=60, trust_env=False)
        assert page.headers["content-type"].startswith("text/html")
        assert not re.findall(r"https?://(?!127\.0\.0\.1)", page.text)
        os.killpg(process.pid, signal.SIGINT)
    assert machine.attempts() == []
    assert machine.files() == before


NOSY = """
import multiprocessing, pathlib, socket, sys, urllib.request

def refused(action):
    try:
        action()
    except OSError as error:
        assert "refused: " in str(error), error
    else:
        sys.exit("not refused")

def all_of_it():
    refused(lambda: urllib.request.urlopen("http://example.org/"))
    refused(lambda: socket.socket().connect_ex(("192.0.2.1", 80)))
    refused(lambda: socket.create_connection(("192.0.2.1", 80)))
    refused(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"hello", ("192.0.2.1", 80)))
    (pathlib.Path.home() / "file").write_text("hello")
    (pathlib.Path.home() / "folder").mkdir(exist_ok=True)

if __name__ == "__main__":
    all_of_it()
    child = multiprocessing.get_context("spawn").Process(target=all_of_it)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""

PAST_PYTHON = """
import ctypes, socket, struct
address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 80, socket.inet_aton("192.0.2.1"))
open_socket = socket.socket(type=socket.SOCK_DGRAM)  # of which connecting sends nothing
ctypes.CDLL(None).connect(open_socket.fileno(), address, len(address))
"""


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    machine = new_machine(tmp_path)
    script = machine.data / "nosy.py"
    script.write_text(NOSY)
    with machine.python(script):
        pass
    seen = [line.split(" (")[0] for line in machine.attempts()]
    events = ["socket.getaddrinfo example.org", "socket.connect 192.0.2.1", "socket.getaddrinfo 192.0.2.1"]
    events += ["socket.sendto 192.0.2.1", f"open {tmp_path}/home/file", f"os.mkdir {tmp_path}/home/folder"]
    assert seen == events + events[:-1]  # the second time the folder is there


def test_the_watch_sees_what_goes_past_python(tmp_path: Path) -> None:
    if not strace():
        pytest.skip("strace is not installed, or may not be used here")
    machine = new_machine(tmp_path)
    with machine.python("-c", PAST_PYTHON):
        pass
    (line,) = machine.attempts()
    assert "192.0.2.1" in line
