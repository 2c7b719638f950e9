"""Numbers of things in messages."""

from __future__ import annotations

import pytest

from nucpipe.counts import counted


@pytest.mark.parametrize(
    ("number", "nuclei", "slides"),
    [(0, "0 nuclei", "0 slides"), (1, "1 nucleus", "1 slide"), (1234, "1,234 nuclei", "1,234 slides")],
)
def test_one_is_no_plural(number: int, nuclei: str, slides: str) -> None:
    assert (counted(number, "nucleus", "nuclei"), counted(number, "slide")) == (nuclei, slides)
