"""``nucpipe train segmentor`` and ``nucpipe train classifier``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from nucpipe.backends.device import pick_device
from nucpipe.errors import UsageError
from pipeline.cli.options import F, device_option, library_option, together


@click.group()
def train() -> None:
    """Train a model on your own or on published data."""


def train_options(steps: int, batch_size: str, learning_rate: float) -> Callable[[F], F]:
    """Return the options that both trainings share; the arguments are the defaults that their help states."""

    return together(
        click.option("--out", type=click.Path(path_type=Path), help="Model file to write (.safetensors)."),
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
            help=f"Number of batches; 0 only averages what --start-from names, and measures it.  [default: {steps}]",
        ),
        click.option("--batch-size", type=click.IntRange(min=1), help=f"Samples a batch.  [default: {batch_size}]"),
        click.option("--learning-rate", type=float, help=f"The largest learning rate.  [default: {learning_rate}]"),
        click.option("--seed", type=int, help="Seed of the random numbers.  [default: 0]"),
        click.option(
            "--device", metavar="NAME", help="Where it runs: auto, cpu, cuda, cuda:N or mps.  [default: auto]"
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16"]),
            help="Arithmetic; auto takes bfloat16 where the device is fast in it.  [default: auto]",
        ),
    )


check_option = click.option(
    "--check", is_flag=True, help="Train nothing: report what would teach and what is held out, and every problem."
)


def _chosen(options: dict[str, Any], config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the options that were given, over those of a config file, ready for a training's config.

    Raises:
        UsageError: no model file to write is named, or it has another ending.
    """
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    chosen = (config or {}) | given
    out: Path | None = chosen.get("out")
    if out is None:
        raise UsageError("--out is missing: expected the .safetensors file to write.")
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: expected the name of a .safetensors file.")
    return chosen | {"device": pick_device(chosen.get("device", "auto"))}


@train.command()
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of outlined nuclei: images/ with label images or GeoJSON in labels/ and library.toml (mpp), or a "
    "published set (CoNSeP, Kumar, PanNuke); with --start-from also of points (labels/*.csv, OCELOT, BreCaHAD); "
    "repeat it.",
)
@click.option("--licence", default="", help="Licence of the data, for the model card.  [default: of library.toml]")
@train_options(steps=4300, batch_size="16 tiles of 256 px; of an R-CNN 4 of 320 px", learning_rate=0.001)
@click.option(
    "--architecture",
    type=click.Choice(["hovernet", "maskrcnn", "fasterrcnn"]),
    help="What is trained; the latter two are torchvision's.  [default: hovernet]",
)
@click.option(
    "--encoder",
    metavar="NAME",
    help="An encoder of timm.  [default: tf_efficientnet_lite0]",
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
@check_option
def segmentor(data: tuple[Path, ...], licence: str, widths: str | None, check: bool, **options: Any) -> None:
    """Train a network that finds and outlines nuclei.

    The same command goes on after an interruption. Every image and label is read before the first step.
    """
    from pipeline.inference.models import find_model
    from segmentation.training.train import SegmentorTraining, check_training, train_segmentor

    options["start_from"] = tuple(find_model("segmentor", name, "--start-from") for name in options["start_from"])
    if widths is not None:
        options["widths"] = _numbers("--widths", widths, "128,64,48")
    config = SegmentorTraining(data=data, licence=licence, **_chosen(options))
    if check:
        sys.exit(1 if check_training(config, click.echo) else 0)
    train_segmentor(config, click.echo)


@train.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="TOML",
    help="Settings of the training, also those that are no options here; options given beside it come first. "
    "examples/training/ documents every one.",
)
@library_option(required=False)
@train_options(steps=1800, batch_size="64", learning_rate=0.001)
@click.option(
    "--start-from",
    multiple=True,
    metavar="NAME|PATH",
    help="A classifier to start from instead of ImageNet's weights, such as fast; of several their mean. The new one "
    "has the first one's architecture unless another is asked for.",
)
@click.option(
    "--distil",
    multiple=True,
    metavar="NAME|PATH",
    help="A model whose probabilities teach every library's labels of every nucleus, beside its own label; of several "
    "their mean.",
)
@click.option("--context", is_flag=True, default=None, help="Look at the tissue round each nucleus (64 um), too.")
@check_option
def classifier(data: tuple[tuple[str, Path], ...], config_file: Path | None, check: bool, **options: Any) -> None:
    """Train one classifier jointly on several libraries.

    The same command goes on after an interruption. A library of your own is a folder with images/,
    labels/<image>.csv (x,y,label) and library.toml (name, labels, mpp, licence), given as --library NAME=FOLDER. A
    folder of results teaches by its corrections (see nucpipe view): those of the library NAME, or of all libraries
    where NAME is none, such as mine=results/.
    """
    from classifier.training.config import ClassifierTraining
    from classifier.training.config_file import read_config
    from classifier.training.start import architecture_of
    from classifier.training.train import train_classifier
    from pipeline.inference.models import find_model

    chosen = _chosen({"libraries": data, **options}, read_config(config_file) if config_file else None)
    if not chosen.get("libraries"):
        raise UsageError("--library is missing: expected NAME=PATH, such as consep=data/CoNSeP, or --config.")
    chosen["libraries"] = _with_corrections(chosen["libraries"], chosen["out"])
    if chosen.get("complete") is not None:
        chosen["complete"] = find_model("classifier", str(chosen["complete"]), "--complete")
    for name, option in (("start_from", "--start-from"), ("distil", "--distil")):
        if chosen.get(name):
            chosen[name] = tuple(find_model("classifier", str(model), option) for model in chosen[name])
    if chosen.get("start_from"):
        chosen = architecture_of(chosen["start_from"][0], chosen.get("context")) | chosen
    config = ClassifierTraining(**chosen)
    if check:
        from classifier.training.dry_run import check_training

        sys.exit(1 if check_training(config, click.echo) else 0)
    train_classifier(config, click.echo)


@train.command()
@library_option()
@click.option("--model", required=True, metavar="NAME|PATH", help="The classifier, such as fast.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Model file to write (.safetensors).")
@click.option(
    "--hold-out",
    multiple=True,
    metavar="NAME",
    help="What its training held out, which is left out here, too; repeat it.",
)
@click.option("--calibrate", is_flag=True, help="Fit temperatures and measure figures on what was held out anew, too.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random numbers.")
@device_option
def projection(data: tuple[tuple[str, Path], ...], model: str, out: Path, calibrate: bool, **options: Any) -> None:
    """Give a classifier features and an out-of-distribution score.

    Runs store both. The features are the principal components, over the annotated nuclei, of what its last layer sees;
    the score tells by them how unlike the training data a nucleus is, compared with images that were held out.
    Weights, labels and, without --calibrate, temperatures and figures stay as they are; nucpipe train classifier ends
    with this step by itself.
    """
    from classifier.training.config import ClassifierTraining
    from classifier.training.train import finish_again
    from pipeline.inference.models import find_model

    config = ClassifierTraining(**_chosen({"libraries": data, "out": out, **options}))
    made = finish_again(config, find_model("classifier", model, "--model"), calibrate, click.echo)
    click.echo(f"wrote {out}: {made.in_words}")


def _with_corrections(data: Sequence[tuple[str, Path]], out: Path) -> tuple[tuple[str, Path], ...]:
    """Return the data sets of a training, with images of corrected nuclei in the place of each folder of results."""
    from pipeline.adaptation.training_data import holds_results, write_training_data

    sets: list[tuple[str, Path]] = []
    for name, folder in data:
        corrected = holds_results(folder)
        sets += write_training_data(folder, name, out.with_suffix(".corrections")) if corrected else [(name, folder)]
    return tuple(sets)


def _numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers with commas between them, such as {example}.") from None
