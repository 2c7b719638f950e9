"""``nucpipe train segmentor`` and ``nucpipe train classifier``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from nucpipe.errors import UsageError
from pipeline.cli.options import library_option, match_options

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def train() -> None:
    """Train a model on your own or on published data."""


def train_options(steps: int, batch_size: int | str, learning_rate: float) -> Callable[[F], F]:
    """Return the options that both trainings share, with the defaults of one of them."""

    def add(command: F) -> F:
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
                "--steps",
                type=click.IntRange(min=0),
                default=steps,
                show_default=True,
                help="Number of batches; 0 only averages what --start-from names, and measures it.",
            ),
            click.option(
                "--batch-size",
                type=int,
                default=batch_size if isinstance(batch_size, int) else None,
                show_default=batch_size if isinstance(batch_size, str) else True,
                help="Samples a batch.",
            ),
            click.option(
                "--learning-rate",
                type=float,
                default=learning_rate,
                show_default=True,
                help="The largest learning rate.",
            ),
            click.option("--seed", type=int, default=0, show_default=True, help="Of the random numbers."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
            click.option(
                "--precision",
                type=click.Choice(["auto", "fp32", "bf16"]),
                default="auto",
                show_default=True,
                help="auto takes bfloat16 where the device is fast in it.",
            ),
        ]
        for option in reversed(options):
            command = option(command)
        return command

    return add


def parsed_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, ready for a training's config."""
    from nucpipe.backends.device import pick_device

    out: Path = options["out"]
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected the name of a .safetensors file.")
    chosen = {key: value for key, value in options.items() if value is not None}
    return chosen | {"device": pick_device(options["device"])}


@train.command()
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder in CoNSeP's, Kumar's or PanNuke's layout; repeat it.",
)
@click.option("--licence", default="", help="Licence of the data, for the model card.")
@train_options(steps=4300, batch_size="16 tiles of 256 px; of an R-CNN 4 of 320 px", learning_rate=1e-3)
@click.option(
    "--architecture",
    type=click.Choice(["hovernet", "maskrcnn", "fasterrcnn"]),
    help="What is trained; the latter two are torchvision's and start from random weights.  [default: hovernet]",
)
@click.option(
    "--encoder",
    metavar="NAME",
    help="An encoder of timm for hovernet, else a ResNet of torchvision.  [default: tf_efficientnet_lite0; resnet50]",
)
@click.option(
    "--start-from",
    multiple=True,
    metavar="NAME|PATH",
    help="A segmentor to start from instead of ImageNet's weights, such as hovernet-compact; of several their mean.",
)
@click.option(
    "--widths",
    metavar="N,N,N",
    help="Channels of hovernet's decoder, coarse to fine.  [default: those of --start-from; 80,48,32]",
)
def segmentor(data: tuple[Path, ...], licence: str, widths: str | None, **options: Any) -> None:
    """Train a network that finds and outlines nuclei.

    The same command goes on after an interruption.
    """
    from pipeline.inference.models import find_model
    from segmentation.training.train import SegmentorTraining, train_segmentor

    options["start_from"] = tuple(find_model("segmentor", name) for name in options["start_from"])
    if widths is not None:
        options["widths"] = _numbers("--widths", widths, "128,64,48")
    train_segmentor(SegmentorTraining(data=data, licence=licence, **parsed_options(options)), click.echo)


@train.command()
@library_option()
@train_options(steps=1800, batch_size=64, learning_rate=1e-3)
@click.option("--backbone", metavar="NAME", help="Any classifier of timm.  [default: tf_efficientnet_lite0]")
@click.option(
    "--size",
    type=int,
    metavar="PX",
    help="Side to which the 64 px windows are enlarged; 64 takes them as they are.  "
    "[default: 224, after smaller sides earlier in the training]",
)
@click.option("--context", is_flag=True, help="Look at the tissue round each nucleus (64 um), too.")
@click.option(
    "--context-dropout", type=float, metavar="SHARE", help="Of nuclei that are shown without it.  [default: 0.2]"
)
@click.option(
    "--strides",
    metavar="N,N,...",
    help="Strides of an EfficientNet's stem and of each stage, for windows that are not enlarged.",
)
@click.option(
    "--start-from",
    multiple=True,
    metavar="NAME|PATH",
    help="A classifier to start from instead of ImageNet's weights, such as joint-lite0; of several their mean.",
)
@match_options
@click.option("--sampling", type=click.Choice(["random", "round-robin"]), help="Over libraries.  [default: random]")
@click.option(
    "--balance",
    type=click.Choice(["none", "root", "equal"]),
    help="Share of a library, of a label in it, and of a tissue, case or patient that has it: as its number of nuclei, "
    "its root, or all alike.  [default: root]",
)
@click.option(
    "--library-weight",
    "library_weights",
    multiple=True,
    metavar="NAME=FACTOR",
    help="Draw a library's nuclei so many times as often as --balance says; repeat it.",
)
@click.option("--loss", type=click.Choice(["cross-entropy", "distance"]), help="[default: cross-entropy]")
@click.option(
    "--mixup", type=float, metavar="ALPHA", help="Mix pairs of windows, by Beta(ALPHA, ALPHA); 0: none.  [default: 0.4]"
)
@click.option(
    "--stop",
    type=click.Choice(["steps", "converged"]),
    help="After --steps, or sooner, once the loss on held-out nuclei falls no more.  [default: steps]",
)
@click.option("--tolerance", type=float, help="A fall by less than this share does not count.  [default: 0.005]")
@click.option("--patience", type=int, help="Looks without a fall before it stops.  [default: 5]")
@click.option("--check-every", type=int, metavar="STEPS", help="Steps between two looks.  [default: 100]")
@click.option(
    "--keep",
    type=click.Choice(["last", "best"]),
    help="The last model, or that of the smallest held-out loss.  [default: last]",
)
@click.option(
    "--complete",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="A second round: confident predictions of this model teach the libraries that a nucleus has no label of.",
)
@click.option(
    "--distil",
    metavar="NAME|PATH",
    help="A model whose probabilities teach every library's labels of every nucleus, beside its own label.",
)
@click.option("--distil-weight", type=float, help="Of what that model teaches, beside 1 for labels.  [default: 1]")
@click.option("--distil-temperature", type=float, help="That makes probabilities softer for it.  [default: 2]")
@click.option("--check", is_flag=True, help="Train nothing: report counts per label and split, and every problem.")
@click.option("--complete-above", type=float, metavar="P", help="What counts as confident.  [default: 0.99]")
def classifier(
    data: tuple[tuple[str, Path], ...], size: int | None, strides: str | None, check: bool, **options: Any
) -> None:
    """Train one classifier jointly on several libraries.

    The same command goes on after an interruption. A library of your own is a folder with images/,
    labels/<image>.csv (x,y,label) and library.toml (name, labels, mpp, licence), given as --library NAME=FOLDER.
    """
    from classifier.training.config import ClassifierTraining
    from classifier.training.train import train_classifier
    from pipeline.inference.models import find_model

    if size is not None:
        if size < 32:
            raise UsageError(f"--size {size}: expected at least 32.")
        options["sizes"] = ((1.0, size),)
    if strides is not None:
        options["strides"] = _numbers("--strides", strides, "2,1,2,2,1,2,2,1")
    options["library_weights"] = tuple(map(_weight, options["library_weights"]))
    options["start_from"] = tuple(find_model("classifier", name) for name in options["start_from"])
    if options["distil"] is not None:
        options["distil"] = find_model("classifier", options["distil"])
    config = ClassifierTraining(libraries=data, **parsed_options(options))
    if check:
        from classifier.training.dry_run import check_training

        sys.exit(1 if check_training(config, click.echo) else 0)
    train_classifier(config, click.echo)


def _numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers with commas between them, such as {example}.") from None


def _weight(text: str) -> tuple[str, float]:
    name, _, factor = text.partition("=")
    try:
        return name, float(factor)
    except ValueError:
        raise UsageError(f"--library-weight {text}: expected NAME=FACTOR, such as ocelot=0.5.") from None
