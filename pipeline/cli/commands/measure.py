"""``nucpipe measure``."""

from __future__ import annotations

from pathlib import Path

import click

from nucpipe.errors import OutputError, UsageError
from pipeline.cli.options import filtered, regions_option, slide_option

RADIUS_UM = 50.0
MAX_RADIUS_UM = 1000.0


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@regions_option(": write regions.csv, what lies in each by label.")
@click.option("--neighbours", is_flag=True, help="Write neighbours.csv, what lies round each nucleus by label.")
@click.option(
    "--focus", is_flag=True, help="Write focus.csv and focus.png, where the slide is out of focus; it is read for that."
)
@click.option(
    "--only-in-focus", is_flag=True, help="Leave nuclei out of the other tables that lie where it is out of focus."
)
@slide_option
@click.option(
    "--radius",
    "radius_um",
    type=float,
    default=RADIUS_UM,
    show_default=True,
    metavar="UM",
    help="With --neighbours: count nuclei up to that distance.",
)
@click.option("--primary", metavar="LIBRARY", help="With --neighbours: whose labels are counted.  [default: the run's]")
@filtered()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the tables.  [default: RESULT]")
@click.option("--overwrite", is_flag=True, help="Replace tables that exist.")
def measure(
    result: Path,
    regions: Path | None,
    neighbours: bool,
    focus: bool,
    only_in_focus: bool,
    slide: Path | None,
    radius_um: float,
    primary: str | None,
    min_area: float | None,
    min_detection: float | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure regions, neighbours and focus of a result.

    RESULT is a slide's folder, or its nuclei.zarr. regions.csv has a line for each region, library and label: area,
    count, density, share with its 95 % interval, mean probability, mean size and shape. neighbours.csv has a line for
    each nucleus: the distance to the nearest nucleus of each label, and how many are near. focus.csv has a line for
    each nucleus, too: how blurred the slide is there.
    """
    from pipeline.export.focus import focus_of, nuclei_in_focus, write_focus
    from pipeline.export.tables.neighbours import find_neighbours, write_neighbours
    from pipeline.export.tables.region_table import region_table, write_region_table
    from pipeline.result import open_result

    if regions is None and not neighbours and not focus:
        raise UsageError("nothing to measure: expected --regions ROI.geojson, --neighbours or --focus.")
    if not 0 < radius_um <= MAX_RADIUS_UM:
        raise UsageError(f"--radius {radius_um:g}: expected micrometres, above 0 to {MAX_RADIUS_UM:g}.")
    opened = open_result(result).filtered(min_area, min_detection)
    folder = out or opened.folder
    files = {"regions.csv": regions is not None, "neighbours.csv": neighbours, "focus.csv": focus, "focus.png": focus}
    for name, wanted in files.items():
        if wanted and (path := folder / name).exists() and not overwrite:
            raise OutputError(f"{path}: already exists; give another --out, or --overwrite to replace it.")
    store = opened.store if regions is None else opened.store.with_regions(regions)
    library = store.info.outputs.library(primary or opened.primary).name
    sharpness = focus_of(opened, slide) if focus or only_in_focus else None
    folder.mkdir(parents=True, exist_ok=True)
    if focus and sharpness is not None:
        blurred = write_focus(store, sharpness, folder)
        click.echo(f"{blurred:,} of {len(store):,} nuclei out of focus -> {folder / 'focus.csv'}, focus.png")
    if only_in_focus and sharpness is not None:
        store = nuclei_in_focus(store, sharpness)
    if store.regions is not None:
        write_region_table(
            region_table(store, store.regions, sharpness.map if sharpness else None), folder / "regions.csv"
        )
        click.echo(f"{len(store.regions)} regions -> {folder / 'regions.csv'}")
    if neighbours:
        found = find_neighbours(store, library, radius_um)
        count = write_neighbours(store, found, folder / "neighbours.csv")
        click.echo(f"{count:,} nuclei -> {folder / 'neighbours.csv'}")
