"""``nucpipe evaluate``: how good a model is on annotated data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nucpipe.errors import UsageError
from pipeline.cli.options import F, device_option, library_option, precision_option, together


def _folder(_: click.Context, __: click.Parameter, out: Path | None) -> Path | None:
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder; it is a file.")
    return out


def _check_choice(hold_out: tuple[str, ...], everything: bool) -> None:
    """See that only one of two options says what is measured.

    Raises:
        UsageError: both do.
    """
    if hold_out and everything:
        raise UsageError("--hold-out and --all contradict each other: expected one of them.")


def measure_options(table: str) -> Callable[[F], F]:
    """Return the options that both measurements share; ``table`` is the CSV file that they write beside the figures."""
    return together(
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            callback=_folder,
            help=f"Folder for figures.json, {table} and pictures.",
        ),
        click.option(
            "--hold-out",
            multiple=True,
            metavar="NAME",
            help="Images or groups to measure on; wildcards allowed.  [default: what the model's training held out]",
        ),
        click.option("--all", "everything", is_flag=True, help="Measure on everything, also on what taught the model."),
        device_option,
        precision_option,
    )


@click.group()
def evaluate() -> None:
    """Measure a model on annotated data."""


@evaluate.command()
@click.argument("model", metavar="NAME|PATH")
@library_option()
@measure_options("predictions.csv")
@click.option(
    "--context/--no-context",
    default=True,
    show_default=True,
    help="Show the network the tissue round each nucleus, if it looks.",
)
def classifier(model: str, data: tuple[tuple[str, Path], ...], out: Path | None, **options: Any) -> None:
    """Measure a classifier: accuracy, F1, calibration.

    Accuracy, F1, AUROC and calibration for each library, with bootstrap intervals.
    """
    _check_choice(options["hold_out"], options["everything"])
    from classifier.evaluation.report import evaluate_classifier
    from pipeline.inference.models import find_model

    evaluate_classifier(find_model("classifier", model, "model"), data, out, click.echo, **options)


@evaluate.command()
@click.argument("model", metavar="NAME|PATH")
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of outlined nuclei: images/ with label images or GeoJSON in labels/ and library.toml (mpp), or a "
    "published set (CoNSeP, Kumar, PanNuke, MoNuSAC); repeat it.",
)
@measure_options("images.csv")
def segmentor(model: str, data: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Measure a segmentor: Dice, AJI, PQ, detection.

    Dice, AJI, DQ, SQ, PQ, detection, F_c of the segmentor's own types, and a picture of the worst cases.
    """
    _check_choice(options["hold_out"], options["everything"])
    from pipeline.inference.models import find_model
    from segmentation.evaluation.report import evaluate_segmentor

    evaluate_segmentor(find_model("segmentor", model, "model"), data, out, click.echo, **options)
