"""``nucpipe classify``: labels for images of single nuclei."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nucpipe.errors import OutputError, UsageError
from nucpipe.files import written_whole
from pipeline.cli.options import classifier_option, decided, device_option, precision_option


def _point(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--at {text}: expected X,Y in pixels of the image, such as 120,85.5.") from None
    return x, y


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: the terminal]")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or JSON with every probability.",
)
@click.option(
    "--mpp",
    type=float,
    metavar="UM",
    help="Pixel size in micrometres; the middle 16 µm are looked at. Without it the whole image is taken for 16 µm.",
)
@click.option(
    "--at",
    metavar="X,Y",
    callback=_point,
    help="Crop round this point, in pixels of the image, instead of its middle (needs --mpp).",
)
@click.option(
    "--preprocess",
    multiple=True,
    type=click.Choice(["denoise", "sharpen", "normalise"]),
    help="Prepare the images first, in the order given; repeat it. normalise changes the stains to those of "
    "--stain-target.",
)
@click.option("--stain-target", type=click.Path(path_type=Path), metavar="IMAGE", help="An H&E image, for normalise.")
@click.option(
    "--stain-method",
    type=click.Choice(["macenko", "vahadane", "reinhard", "ruifrok"]),
    default="macenko",
    show_default=True,
    help="Method of tiatoolbox, for normalise.",
)
@classifier_option
@decided("argmax")
@device_option
@precision_option
def classify(
    images: tuple[Path, ...],
    mpp: float | None,
    at: tuple[float, float] | None,
    preprocess: tuple[str, ...],
    stain_target: Path | None,
    stain_method: str,
    classifier: str,
    form: str,
    out: Path | None,
    overwrite: bool,
    device: str,
    precision: str,
    decide: str | None,
    threshold: float | None,
) -> None:
    """Name single nuclei, each in the middle of an image.

    An image may have any size; each library gives its label.

    Exit status: 0 all done, 1 some image could not be read (each is named), 2 wrong usage.
    """
    from classifier.decision_rule import DecisionRule
    from classifier.single_images.classify import as_json, as_table, classify_images, preparation
    from pipeline.inference.models import find_model

    if out is not None and out.exists() and not overwrite:
        raise OutputError(f"{out}: already exists; give another --out, or --overwrite to replace it.")
    rule = DecisionRule.chosen(decide, threshold)
    prepare = preparation(preprocess, stain_target, stain_method)
    named = classify_images(images, find_model("classifier", classifier), mpp, at, prepare, device, precision)
    text = as_json(named, rule) if form == "json" else as_table(named, rule)
    if named.paths or form == "json":  # a table of no image is a heading alone
        if out is None:
            click.echo(text)
        else:
            with written_whole(out) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
    for path, cause in named.failed:
        click.echo(f"nucpipe: {path}: {cause}", err=True)
    if named.failed:
        sys.exit(1)
