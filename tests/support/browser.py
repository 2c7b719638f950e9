"""A result that is viewed as users do it: ``nucpipe view`` in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def viewed(result: Path) -> Iterator[str]:
    """The address of a viewer of ``result``, which is ended as by Ctrl-C and must have had no complaint."""
    command = [sys.executable, "-m", "nucpipe", "view", str(result), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.fullmatch(r".+: [\d,]+ nuclei at (http://127\.0\.0\.1:\d+/)  \(Ctrl-C ends it\)\n", line)
        assert found, line + process.stderr.read()
        try:
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
