"""``--help`` of every command: summaries that fit, options in an order, and the defaults that hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from classifier.training.config import ClassifierTraining
from pipeline.cli.main import main
from pipeline.config import RunConfig
from segmentation.training.train import SegmentorTraining


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def command_at(path: tuple[str, ...]) -> click.Command:
    found: click.Command = main
    for name in path:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    return found


def options_of(*path: str) -> dict[str, click.Option]:
    return {one.name or "": one for one in command_at(path).params if isinstance(one, click.Option)}


@pytest.mark.parametrize("group", [(), ("train",), ("evaluate",)])
def test_no_summary_is_cut_off(group: tuple[str, ...]) -> None:
    text = CliRunner().invoke(main, [*group, "--help"], env={"COLUMNS": "80"}).stdout
    listed = text.split("Commands:\n")[1].splitlines()
    assert len(listed) == len([path for path in commands() if len(path) == len(group) + 1 and path[:-1] == group])
    for line in listed:
        assert line.endswith("."), line
        assert "..." not in line


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_option_says_what_it_does_and_what_holds_without_it(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, [*path, "--help"])
    assert done.exit_code == 0
    for option in command_at(path).params:
        if isinstance(option, click.Option) and option.name != "help":
            text = option.help or ""
            assert text, f"{option.opts} has no help"
            if option.to_info_dict()["default"] not in (None, False, "", ()) and not option.multiple:
                assert option.show_default or "[default:" in text, f"{option.opts} hides its default"


def test_options_come_in_an_order() -> None:
    kinds = [
        ["out", "mpp"],
        ["segmentor", "classifier"],
        ["primary", "decide", "threshold"],
        ["tissue"],
        ["device", "precision", "workers", "batch_size", "region_size"],
        ["cluster", "dry_run"],
    ]
    names = list(options_of("run"))
    wanted = [name for kind in kinds for name in kind]
    assert [name for name in names if name in wanted] == wanted
    assert next(iter(options_of("export"))) == "form"
    assert list(options_of("export"))[1:3] == ["out", "overwrite"]


@pytest.mark.parametrize(
    ("path", "config"),
    [
        (("run",), RunConfig),
        (("demo",), RunConfig),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_defaults_are_those_of_the_configuration(path: tuple[str, ...], config: type[Any]) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    shown = {name: option.default for name, option in options_of(*path).items() if option.show_default is True}
    shared = shown.keys() & defaults.keys() - {"device"}
    assert len(shared) >= 4
    assert {name: shown[name] for name in shared} == {name: defaults[name] for name in shared}


@pytest.mark.parametrize(("kind", "config"), [("segmentor", SegmentorTraining), ("classifier", ClassifierTraining)])
def test_help_states_the_defaults_of_a_training(kind: str, config: type[Any]) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    stated = {
        name: found[1]
        for name, option in options_of("train", kind).items()
        if name in defaults and (found := re.search(r"\[default: ([\w.]+)\]", getattr(option, "help", "") or ""))
    }
    assert {"steps", "learning_rate", "seed", "precision"} <= stated.keys()
    assert {name: stated[name] for name in stated if name not in ("batch_size", "device")} == {
        name: str(defaults[name]) for name in stated if name not in ("batch_size", "device")
    }
