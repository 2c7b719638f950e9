"""The benchmark of the GPU's way, on the processor: what it computes is what the networks compute."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu.py"


def test_the_table_has_a_line_for_every_way(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    out = tmp_path / "gpu.md"
    arguments = ["--device", "cpu", "--precision", "fp32", "--way", "eager", "--way", "graph", "--batch", "8"]
    done = CliRunner().invoke(module.main, [*arguments, "--side", "448", "--seconds", "0", "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.read_text().splitlines() if "|" in line]
    lines = {(row[0].split()[0], row[2]): row for row in rows[2:]}
    assert set(lines) == {(kind, way) for kind in ("classifier", "segmentor") for way in ("eager", "graph")}
    assert lines["classifier", "eager"][4].endswith("nuclei/s")
    assert lines["segmentor", "eager"][4].endswith("mm²/s")
    for kind in ("classifier", "segmentor"):
        assert float(lines[kind, "eager"][6]) < 1e-3
        assert lines[kind, "graph"][4] == "needs a GPU"
