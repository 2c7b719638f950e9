"""``nucpipe doctor``: it finds what is broken, says so in a line, and its exit status can be relied on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from nucpipe.optional.extras import install_command
from pipeline.cli import doctor_checks
from pipeline.cli.doctor_checks import Finding, examine
from pipeline.cli.main import main


def call(out: Path) -> tuple[int, list[str]]:
    done = CliRunner().invoke(main, ["doctor", "--out", str(out)])
    assert "Traceback" not in done.output
    return done.exit_code, done.output.splitlines()


def test_a_sound_installation_passes(tmp_path: Path) -> None:
    status, lines = call(tmp_path / "not" / "yet" / "there")
    assert status == 0
    assert lines[-1].startswith("nucpipe can work here.")
    subjects = {line.split()[1] for line in lines[:-1]}
    assert {"nucpipe", "torch", "precision", "processors", "OpenSlide", "models", "results", "[serve]"} <= subjects
    assert not any(line.startswith("FAILED") for line in lines)
    (openvino,) = (line for line in lines if line.split()[1] == "OpenVINO")
    if importlib.util.find_spec("openvino") is None:
        assert "not installed; PyTorch runs the networks" in openvino
    else:
        assert re.search(rf" {re.escape(importlib.metadata.version('openvino'))} on the CPU \(\w.*\)$", openvino)
    assert [line for line in lines if "reader" in line and "read back as written" in line]
    assert not (tmp_path / "not").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "PACKAGES", {"no-such-package": "nothing", "click": "no_such_module"})
    failed = [finding for finding in examine(tmp_path) if finding.verdict == "FAILED"]
    assert [finding.subject for finding in failed] == ["no-such-package", "click"]
    assert "not installed" in failed[0].says
    assert "cannot be imported (No module named 'no_such_module')" in failed[1].says
    status, lines = call(tmp_path)
    assert status == 1
    assert lines[-1].startswith("2 failed")


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.write_text("")
    findings = {finding.subject: finding for finding in examine(file)}
    assert findings["results"].verdict == "FAILED"
    assert str(file) in findings["results"].says


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "MIN_DISK", 1e18)
    findings = list(doctor_checks._disk(tmp_path))
    assert [finding.verdict for finding in findings] == ["warning", "warning"]


def test_a_check_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(doctor_checks, "_models", breaks)
    assert Finding("FAILED", "models", "RuntimeError: out of order") in list(examine(tmp_path))


def test_a_part_that_is_not_installed_is_only_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "EXTRAS", {"serve": "no_such_module"})
    note = list(doctor_checks._extras())
    assert note == [Finding("note", "[serve]", f"not installed; to add it: {install_command('serve')}")]
