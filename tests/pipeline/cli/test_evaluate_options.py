"""What evaluate refuses before it reads anything, and the names of models that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main

COMMANDS = (
    ["evaluate", "segmentor", "hovernet-compact", "--data", "x"],
    ["evaluate", "classifier", "fast", "--library", "a=x"],
)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_is_refused_before_anything_is_measured(command: list[str], tmp_path: Path) -> None:
    said = CliRunner().invoke(main, [*command, "--hold-out", "a", "--all"])
    assert said.exit_code == 2
    assert said.output == "nucpipe: --hold-out and --all contradict each other: expected one of them.\n"
    (tmp_path / "figures").touch()
    said = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "figures")])
    assert said.exit_code == 2
    assert said.output == f"nucpipe: --out {tmp_path / 'figures'}: expected a folder; it is a file.\n"


def test_a_name_that_is_no_models_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "slide.svs", "--out", "out", "--segmentor"]
    (tmp_path / "slide.svs").touch()
    said = CliRunner().invoke(main, [*words, "mine"])
    assert said.exit_code == 2
    assert "--segmentor mine: no such model. Expected hovernet-compact or " in said.output
    assert said.output.endswith(
        "no file mine.safetensors in this place, give the path where the training wrote it (--out).\n"
    )
    (tmp_path / "mine.safetensors").touch()
    assert (
        CliRunner().invoke(main, [*words, "mine"]).output.endswith("there is mine.safetensors, give its whole name.\n")
    )
