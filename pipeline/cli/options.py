"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from nucpipe.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def _pairs(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    pairs = []
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise UsageError(f"--library {text}: expected NAME=PATH, such as consep=data/CoNSeP.")
        pairs.append((name, Path(path)))
    return tuple(pairs)


def library_option(required: bool = True) -> Callable[[F], F]:
    """``--library NAME=PATH``, any number of times, as ``data``."""
    return click.option(
        "--library",
        "data",
        multiple=True,
        required=required,
        metavar="NAME=PATH",
        callback=_pairs,
        help="A library and the folder of its data in the owner's layout; repeat it.",
    )


def decide_options() -> list[Callable[[Any], Any]]:
    """Return ``--decide`` and ``--threshold``."""
    return [
        click.option(
            "--decide",
            type=click.Choice(["argmax", "best", "threshold"]),
            help="The likeliest label of each library; that label if it reaches --threshold, else none; or every label "
            "that reaches it.  [default: argmax; best with --threshold]",
        ),
        click.option("--threshold", type=float, metavar="P", help="Least probability of a label, above 0 to 1."),
    ]


def filter_options(default: str) -> list[Callable[[Any], Any]]:
    """``--min-area`` and ``--min-detection``; ``default`` says in brackets what holds without them."""
    return [
        click.option(
            "--min-area",
            type=float,
            metavar="UM2",
            help=f"Leave out nuclei of a smaller area in square micrometres.  [default: {default}]",
        ),
        click.option(
            "--min-detection",
            type=float,
            metavar="P",
            help=f"Leave out nuclei of a lower detection probability, 0 to 1.  [default: {default}]",
        ),
    ]


def filtered(command: F) -> F:
    """As a decorator, the options of :func:`filter_options` for a finished result."""
    for option in reversed(filter_options("as in the run")):
        command = option(command)
    return command


adapted_option = click.option(
    "--adapted", is_flag=True, help="With the labels that nucpipe adapt wrote, without what is no nucleus."
)


def decided(command: F) -> F:
    """As a decorator, the options of :func:`decide_options`."""
    for option in reversed(decide_options()):
        command = option(command)
    return command


def match_options(command: F) -> F:
    """Return which label teaches another library's."""
    options = [
        click.option(
            "--match",
            type=click.Choice(["own", "exact", "similar", "table"]),
            default="table",
            show_default=True,
            help="Which label teaches other libraries: none, one of equal text, of similar text, by the label table.",
        ),
        click.option(
            "--similarity", type=float, default=0.8, show_default=True, help="Ratio above which texts are similar."
        ),
        click.option(
            "--match-table", type=click.Path(path_type=Path), metavar="TOML", help="Another label table than nucpipe's."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
