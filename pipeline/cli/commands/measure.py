"""``nucpipe measure``."""

from __future__ import annotations

from pathlib import Path

import click

from nucpipe.counts import counted
from nucpipe.errors import OutputError, UsageError
from pipeline.cli.options import filtered, regions_option, slide_option

RADIUS_UM = 50.0
MAX_RADIUS_UM = 1000.0


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@regions_option(": write regions.csv, what lies in each by label.")
@click.option("--neighbours", is_flag=True, help="Write neighbours.csv, what lies round each nucleus by label.")
@click.option(
    "--quality",
    "--focus",
    "quality",
    is_flag=True,
    help="Write quality.csv and quality.png, where the slide is out of focus or under pen marks; it is read for that.",
)
@click.option("--only-good", is_flag=True, help="Leave nuclei in such places out of the other tables.")
@click.option("--only-in-focus", is_flag=True, help="Leave those out of them that are out of focus.")
@slide_option
@click.option(
    "--radius",
    "radius_um",
    type=float,
    metavar="UM",
    help=f"With --neighbours: count nuclei up to that distance.  [default: {RADIUS_UM:g}]",
)
@click.option("--primary", metavar="LIBRARY", help="With --neighbours: whose labels are counted.  [default: the run's]")
@filtered()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the tables.  [default: RESULT]")
@click.option("--overwrite", is_flag=True, help="Replace tables that exist.")
def measure(
    result: Path,
    regions: Path | None,
    neighbours: bool,
    quality: bool,
    only_good: bool,
    only_in_focus: bool,
    slide: Path | None,
    radius_um: float | None,
    primary: str | None,
    min_area: float | None,
    min_detection: float | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure regions, neighbours and quality of a result.

    RESULT is a slide's folder, or its nuclei.zarr. regions.csv has a line for each region, library and label: area,
    count, density, share with its 95 % interval, mean probability, mean size and shape. neighbours.csv has a line for
    each nucleus: the distance to the nearest nucleus of each label, and how many are near. quality.csv has a line for
    each nucleus, too: how blurred the slide is there, and whether it is pen-marked.
    """
    from pipeline.export.quality import quality_of, without, write_quality
    from pipeline.export.tables.csv import write_frames
    from pipeline.export.tables.neighbours import find_neighbours, write_neighbours
    from pipeline.export.tables.region_table import region_table
    from pipeline.regions.quality import CAUSES
    from pipeline.result import open_result

    if regions is None and not neighbours and not quality:
        raise UsageError("nothing to measure: expected --regions ROI.geojson, --neighbours or --quality.")
    for option, given, other, there in (
        ("--radius", radius_um is not None, "--neighbours", neighbours),
        ("--primary", primary is not None, "--neighbours", neighbours),
        ("--only-good", only_good, "--regions or --neighbours", neighbours or regions is not None),
        ("--only-in-focus", only_in_focus, "--regions or --neighbours", neighbours or regions is not None),
    ):
        if given and not there:
            raise UsageError(f"{option} needs {other}: it changes nothing else.")
    radius_um = RADIUS_UM if radius_um is None else radius_um
    if not 0 < radius_um <= MAX_RADIUS_UM:
        raise UsageError(f"--radius {radius_um:g}: expected micrometres, above 0 to {MAX_RADIUS_UM:g}.")
    opened = open_result(result).filtered(min_area, min_detection)
    store = opened.store if regions is None else opened.store.with_regions(regions)
    folder = out or opened.folder
    files = {"regions.csv": regions is not None, "neighbours.csv": neighbours}
    files |= dict.fromkeys(("quality.csv", "quality.png"), quality)
    for name, wanted in files.items():
        if wanted and (path := folder / name).exists() and not overwrite:
            raise OutputError(f"{path}: already exists; give another --out, or --overwrite to replace it.")
    library = store.info.outputs.library(primary or opened.primary).name
    left_out = tuple(CAUSES) if only_good else ("out_of_focus",) if only_in_focus else ()
    found = quality_of(opened, slide) if quality or left_out else None
    folder.mkdir(parents=True, exist_ok=True)
    if quality and found is not None:
        counts = write_quality(store, found, folder)
        said = ", ".join(f"{counts[cause]:,} {words}" for cause, words in CAUSES.items())
        click.echo(f"of {counted(len(store), 'nucleus', 'nuclei')} {said} -> {folder / 'quality.csv'}, quality.png")
    if left_out and found is not None:
        store = without(store, found.map, left_out)
    if store.regions is not None:
        table = region_table(store, store.regions, None if found is None else found.map)
        write_frames([table], folder / "regions.csv")
        click.echo(f"{counted(len(store.regions), 'region')} -> {folder / 'regions.csv'}")
    if neighbours:
        round_each = find_neighbours(store, library, radius_um)
        write_neighbours(store, round_each, folder / "neighbours.csv")
        click.echo(f"{counted(len(store), 'nucleus', 'nuclei')} -> {folder / 'neighbours.csv'}")
