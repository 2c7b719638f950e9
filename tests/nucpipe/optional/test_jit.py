"""Compiled loops work where machine code cannot be kept."""

import pytest
from numba.core import caching

from nucpipe.optional.jit import jit


def square(x: int) -> int:
    return x * x


def test_without_a_place_for_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    with pytest.raises(RuntimeError, match="no locator"):
        caching.FunctionCache(square)
    assert jit(square)(12) == 144
