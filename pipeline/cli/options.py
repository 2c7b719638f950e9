"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from nucpipe.backends.device import PRECISIONS
from nucpipe.errors import UsageError
from pipeline.config import RunConfig

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT = RunConfig()


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Return several options as one decorator; help lists them in this order."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


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


segmentor_option = click.option(
    "--segmentor",
    metavar="NAME|PATH",
    default=DEFAULT.segmentor,
    show_default=True,
    help="Model that finds the nuclei: see nucpipe models, or a file.",
)
classifier_option = click.option(
    "--classifier",
    metavar="NAME|PATH",
    default=DEFAULT.classifier,
    show_default=True,
    help="Model that labels the nuclei: see nucpipe models, or a file.",
)
device_option = click.option(
    "--device",
    metavar="NAME",
    default=DEFAULT.device,
    show_default=True,
    help="Where the networks run: auto, cpu, cuda, cuda:N or mps.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=DEFAULT.precision,
    show_default=True,
    help="Arithmetic of the networks; auto takes what is fast on the device without harm.",
)
mpp_option = click.option(
    "--mpp",
    type=float,
    metavar="UM",
    help="Pixel size of level 0 in micrometres, where the slide states none or a wrong one; a warning says where it "
    "takes another one's place.  [default: as the slide states]",
)
slide_option = click.option(
    "--slide", type=click.Path(path_type=Path), help="Where the slide lies, if it has moved since the run."
)
adapted_option = click.option(
    "--adapted",
    is_flag=True,
    help="Take the labels that nucpipe adapt wrote, without what corrections call no nucleus.",
)


def regions_option(use: str) -> Callable[[F], F]:
    """``--regions ROI.geojson``; ``use`` says what for."""
    return click.option(
        "--regions", type=click.Path(path_type=Path), metavar="ROI.geojson", help=f"Regions drawn in QuPath{use}"
    )


def decided(default: str) -> Callable[[F], F]:
    """``--decide`` and ``--threshold``; ``default`` says in brackets what holds without them."""
    return together(
        click.option(
            "--decide",
            type=click.Choice(["argmax", "best", "threshold"]),
            help="The likeliest label of each library; that label if it reaches --threshold, else none; or every label "
            f"that reaches it.  [default: {default}; best with --threshold]",
        ),
        click.option(
            "--threshold", type=float, metavar="P", help="Least probability of a label that is given, above 0 to 1."
        ),
    )


def filtered(default: str = "as in the run") -> Callable[[F], F]:
    """``--min-area`` and ``--min-detection``; ``default`` says in brackets what holds without them."""
    return together(
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
    )
