"""OpenVINO without its telemetry: whatever is used of it is imported here."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def import_openvino(module: str = "") -> ModuleType:
    """Return a module of OpenVINO, such as ``frontend``, or "" for itself.

    Importing it sends an event to an analytics server, with a number that it keeps in the user's home, through the
    package ``openvino_telemetry``. OpenVINO does without that where it cannot be imported, so it cannot be, from here
    on in this process; unless OpenVINO was imported before, by a program that uses nucpipe.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to say: there is none
    return importlib.import_module(f"openvino.{module}".rstrip("."))
