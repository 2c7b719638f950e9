"""Compiled loops: their machine code lies in nucpipe's cache, and they work where it cannot be kept."""

from pathlib import Path

import numba
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


@pytest.mark.parametrize("chosen", ["", "chosen"])
def test_machine_code_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("NUCPIPE_CACHE", str(tmp_path))
    setting = chosen and str(tmp_path / chosen)
    monkeypatch.setattr(numba.config, "CACHE_DIR", setting)
    assert jit(square)(12) == 144
    (index,) = tmp_path.rglob("*.nbi")
    assert index.parent.parent == tmp_path / (chosen or "numba")
    assert setting == numba.config.CACHE_DIR
