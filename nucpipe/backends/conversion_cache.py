"""Networks as OpenVINO takes them, kept in the user's cache: converting one takes PyTorch, and seconds.

A network is known by its model file, by the code that builds it, and by the versions of what takes part, so nothing
out of date is ever read. What cannot be read is converted anew, and where nothing can be kept, nothing is.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucpipe.backends.model_file import fingerprint
from nucpipe.cache import cache_folder
from nucpipe.optional.openvino import import_openvino

if TYPE_CHECKING:
    from torch import nn

    from nucpipe.backends.base import Input

EXAMPLE_PX = 512
"""Side of the image that a network is traced with where sides vary: larger than any margin."""

KEPT = 12
"""Networks that are kept at most; a run has two, of 4 and 14 MB."""


def network_key(path: Path, code: Sequence[Path]) -> str:
    """Return the name under which a network is kept.

    Args:
        path: its model file.
        code: the source files that make a network of it.
    """
    digest = hashlib.sha256(fingerprint(path).encode())
    for file in (*code, Path(__file__).with_name("pytorch.py")):
        digest.update(file.read_bytes())
    for package in ("openvino", "timm", "torch"):
        with contextlib.suppress(PackageNotFoundError):  # there is no OpenVINO for every platform
            digest.update(f" {package} {version(package)}".encode())
    return digest.hexdigest()[:32]


def converted_network(build: Callable[[], nn.Module], inputs: Sequence[Input], key: str | None) -> Any:
    """Return an OpenVINO model whose inputs are (N, H, W, channels) uint8.

    Args:
        build: makes the network; not called if it is kept.
        inputs: what it takes.
        key: from :func:`network_key`; None: it is not kept.

    Raises:
        ImportError: OpenVINO is not installed.
        Exception: it cannot take this network; or what ``build`` raises.
    """
    place = None
    with contextlib.suppress(RuntimeError):  # a user without a home keeps nothing
        sides = "-".join(str(view.side_px or "any") for view in inputs)
        place = None if key is None else cache_folder() / "networks" / f"{key}-{sides}"
    if place is not None and (kept := _read(place)) is not None:
        return kept
    from nucpipe.backends.pytorch import to_openvino

    model = to_openvino(build(), *(view.shape(1, EXAMPLE_PX) for view in inputs))
    # What is written and read again is not the same to the bit as what was converted, so it is read again in any case.
    with contextlib.ExitStack() as stack:
        if place is not None:
            try:
                _keep(model, place)
            except (OSError, RuntimeError):
                logging.getLogger(__name__).debug("%s cannot be written", place, exc_info=True)
                place = None
        if place is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nucpipe-"))) / "network"
            _keep(model, place)
        return _read(place) or model


def _read(place: Path) -> Any:
    """Return the model that is kept there; None if there is none, or it cannot be read, and then it is removed."""
    if not place.is_dir():
        return None
    try:
        model = import_openvino().Core().read_model(place / "network.xml")
    except Exception:  # of OpenVINO, without a base of their own
        logging.getLogger(__name__).debug("%s cannot be read", place, exc_info=True)
        shutil.rmtree(place, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(place)  # the least recently used one goes first
    return model


def _keep(model: Any, place: Path) -> None:
    """Write a model, whole or not at all; of several processes that do so at once, one succeeds."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=place.parent))
    try:
        import_openvino().save_model(model, partial / "network.xml", compress_to_fp16=False)
        with contextlib.suppress(OSError):  # it is there by now
            partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in sorted(place.parent.iterdir(), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
