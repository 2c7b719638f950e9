"""OpenVINO is imported at one place, where it is kept from telling of it."""

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

ONLY = ROOT / "nucpipe" / "optional" / "openvino.py"
IMPORT = re.compile(
    r"^\s*(import|from) openvino\b|(import_module|importorskip|__import__)\(f?.openvino\b", re.MULTILINE
)
FOLDERS = ("nucpipe", "pipeline", "segmentation", "classifier", "tests", "examples", "benchmarks", "docs")


def test_one_place_imports_it() -> None:
    found = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if IMPORT.search(path.read_text())}
    assert found == {ONLY}


def test_its_telemetry_is_not_imported() -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is for x86 processors")
    code = """
import sys
from nucpipe.optional.openvino import import_openvino
used = import_openvino("tools.ovc.telemetry_utils").tm
print(used.__name__, [name for name in sys.modules if name.startswith("openvino_telemetry.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub []\n"
