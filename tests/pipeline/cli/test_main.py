"""What ends a command: one line and an exit status, whatever went wrong."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli.main import OneLineErrors


@pytest.fixture
def group(tmp_path: Path) -> click.Group:
    group = OneLineErrors("nucpipe")

    @group.command()
    def export() -> None:
        (tmp_path / "no" / "such" / "file").write_text("")

    for name in ("run", "view"):

        @group.command(name)
        def interrupted() -> None:
            raise KeyboardInterrupt

    return group


def test_a_place_that_cannot_be_written_is_one_line(group: click.Group, tmp_path: Path) -> None:
    done = CliRunner().invoke(group, ["export"])
    assert done.exit_code == 1
    place = tmp_path / "no" / "such" / "file"
    assert (
        done.stderr == f"nucpipe: {place}: cannot be read or written (No such file or directory); give another place.\n"
    )


@pytest.mark.parametrize(("name", "then"), [("run", "goes on where it stopped"), ("view", "starts again")])
def test_ctrl_c_says_what_the_same_command_does(group: click.Group, name: str, then: str) -> None:
    done = CliRunner().invoke(group, [name])
    assert done.exit_code == 130
    assert done.stderr == f"nucpipe: stopped; the same command {then}.\n"
