"""``nucpipe train segmentor`` and ``nucpipe train classifier``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from nucpipe.common.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def train() -> None:
    """Train a model on your own or on published data."""


def train_options(command: F) -> F:
    """The options that both trainings share."""
    options = [
        click.option(
            "--out", type=click.Path(path_type=Path), required=True, help="Model file to write (.safetensors)."
        ),
        click.option(
            "--hold-out",
            multiple=True,
            metavar="NAME",
            help="Image or group (patient, case, tissue) kept for validation; repeat it, wildcards allowed. "
            "Of a set where none is found, about 15 % is held out.",
        ),
        click.option(
            "--steps", type=int, help="Number of batches.  [default: 4300 for a segmentor, 1800 for a classifier]"
        ),
        click.option("--batch-size", type=int, help="Samples a batch."),
        click.option("--learning-rate", type=float, help="The largest learning rate."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the random numbers."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, ready for a training's config."""
    from nucpipe.common.device import pick_device

    out: Path = options["out"]
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected the name of a .safetensors file.")
    chosen = {key: value for key, value in options.items() if value is not None}
    return chosen | {"device": str(pick_device(options["device"]))}


@train.command()
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder in CoNSeP's, Kumar's or PanNuke's layout; repeat it.",
)
@click.option("--licence", default="", help="Licence of the data, for the model card.")
@train_options
def segmentor(data: tuple[Path, ...], licence: str, **options: Any) -> None:
    """Train a HoVer-Net that finds and outlines nuclei. The same command goes on after an interruption."""
    from segmentation.train import SegmentorTraining, train_segmentor

    train_segmentor(SegmentorTraining(data=data, licence=licence, **given(options)), click.echo)


@train.command()
@click.option(
    "--library",
    "libraries",
    multiple=True,
    required=True,
    metavar="NAME=PATH",
    help="A library and the folder of its data in the owner's layout; repeat it.",
)
@train_options
def classifier(libraries: tuple[str, ...], **options: Any) -> None:
    """Train one classifier jointly on several libraries. The same command goes on after an interruption."""
    from classifier.train import ClassifierTraining, train_classifier

    pairs = []
    for text in libraries:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise UsageError(f"--library {text}: expected NAME=PATH, such as consep=data/CoNSeP.")
        pairs.append((name, Path(path)))
    train_classifier(ClassifierTraining(libraries=tuple(pairs), **given(options)), click.echo)
