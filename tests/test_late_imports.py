"""Imports inside functions: of what is slow to import or not everywhere, never of what the module imports anyway."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("nucpipe", "segmentation", "classifier", "pipeline")
SLOW = {
    "anndata", "cv2", "distributed", "fastapi", "fsspec", "glymur", "h5py", "jinja2", "matplotlib", "numba", "numpy",
    "openslide", "openvino", "pandas", "prometheus_client", "psutil", "pyarrow", "pydantic", "rich", "safetensors",
    "scipy", "shapely", "skimage", "starlette", "tiatoolbox", "tifffile", "timm", "torch", "torchvision", "uvicorn",
    "zarr",
}  # fmt: skip
"""Libraries that cost more than some hundredths of a second, or are extras; ``nucpipe --help`` wants none of them."""

PLATFORM = {"fcntl", "msvcrt", "resource", "winreg"}
"""Modules that not every system has."""

FILES = sorted(path for top in OURS for path in (ROOT / top).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(node: ast.stmt) -> Iterator[str]:
    """The modules that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in MODULES else node.module


def for_types_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def at_top(tree: ast.Module) -> Iterator[str]:
    """What a module imports when it is imported."""
    for node in tree.body:
        if not for_types_only(node):
            for inner in ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node]:
                if isinstance(inner, ast.stmt):
                    yield from imported(inner)


def inside_functions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    yield from ((node.lineno, name) for name in imported(node))


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def needs(module: str, libraries: frozenset[str]) -> bool:
    """Whether importing a module imports one of these libraries, directly or by our own modules."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name.split(".")[0] in libraries:
            return True
        if name in MODULES and name not in seen:
            seen.add(name)
            todo += at_top(tree_of(name))
    return False


@pytest.mark.parametrize("module", MODULES)
def test_a_late_import_has_its_reason(module: str) -> None:
    top = set(at_top(tree_of(module)))
    late = list(inside_functions(tree_of(module)))
    assert not [f"line {line}: {name}" for line, name in late if name in top], "imported at the top already"
    assert not [f"line {line}: {name}" for line, name in late if not needs(name, frozenset(SLOW | PLATFORM))], (
        "quick to import: move it to the top"
    )


@pytest.mark.parametrize("module", ["pipeline.batch.run", "pipeline.batch.dask.worker"])
def test_a_run_does_not_wait_for_the_libraries_of_tables(module: str) -> None:
    """Together they take a second and a half, and most runs write no such table."""
    assert not needs(module, frozenset({"anndata", "matplotlib", "pandas", "pyarrow"}))
