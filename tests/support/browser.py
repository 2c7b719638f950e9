"""Results that are viewed: as users do it, by ``nucpipe view`` in a process of its own, or in this process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
from starlette.types import ASGIApp

from pipeline.config import RunConfig
from pipeline.run_slide import run_slide
from pipeline.store.run_record import SilentReporter
from tests.support.synthetic import MPP, Drawn, models


def run_drawn(drawn: Drawn, folder: Path) -> Path:
    """Run a drawn slide, ``folder/tile.png``; its results lie in ``folder/out/tile``."""
    slide = drawn.save(folder / "tile.png")
    done = run_slide(slide, folder / "out" / "tile", models(), RunConfig(mpp=MPP, tissue="none"), SilentReporter())
    assert done.nuclei == len(drawn.centres)
    return done.folder


class Client:
    """Asks a web application of this process."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.ask("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.ask("POST", path, **more)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **more)

        return anyio.run(answer)


@contextmanager
def viewed(result: Path, *options: str) -> Iterator[str]:
    """The address of a viewer of ``result``, which is ended as by Ctrl-C and must have had no complaint."""
    command = [sys.executable, "-m", "nucpipe", "view", str(result), "--no-browser", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(r".+: [\d,]+ (?:nuclei|slides) at (http://127\.0\.0\.1:\d+/)  \(Ctrl-C ends it\)\n", line)
        assert found, line + process.stderr.read()
        try:
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
