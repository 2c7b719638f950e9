"""``nucpipe export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nucpipe.counts import counted
from pipeline.cli.options import adapted_option, decided, filtered, regions_option, slide_option
from pipeline.export.registry import FORMATS, IMAGE_MPP, ExportOptions, export_for_qupath, export_result


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--to", "form", type=click.Choice(list(FORMATS)), required=True, help="What to write.")
@click.option("--out", type=click.Path(path_type=Path), help="File or folder to write.  [default: beside nuclei.zarr]")
@click.option("--overwrite", is_flag=True, help="Replace an export that exists.")
@click.option(
    "--primary", metavar="LIBRARY", help="Whose labels are the classes, and are meant by --label.  [default: the run's]"
)
@click.option(
    "--all-libraries", is_flag=True, help="A file for each library's classes (labels: all libraries in one folder)."
)
@decided("as in the run")
@click.option(
    "--label", "labels", multiple=True, metavar="LABEL", help="Only nuclei with this label; repeat it for several."
)
@click.option(
    "--bbox",
    "bbox_l0",
    type=float,
    nargs=4,
    metavar="X0 Y0 X1 Y1",
    help="Only nuclei whose centroid lies in this box of level-0 pixels.",
)
@regions_option(": tell in which one each nucleus lies (geojson, qupath, csv, parquet, annotationstore).")
@click.option(
    "--region",
    "region_names",
    multiple=True,
    metavar="NAME",
    help="Only nuclei in this one of --regions; repeat it for several.",
)
@adapted_option
@filtered()
@click.option("--centroids", is_flag=True, help="Points instead of outlines.")
@click.option(
    "--exact-outlines",
    is_flag=True,
    help="Outlines along the edges of pixels, as they are stored, instead of smooth ones.",
)
@click.option("--gz", is_flag=True, help="Compressed (geojson, csv).")
@click.option(
    "--image-mpp",
    type=float,
    metavar="UM",
    help="Pixel size of the slide's pixels in spatialdata and labels; 0 leaves them out.  "
    f"[default: {IMAGE_MPP:g}, if the slide is found]",
)
@slide_option
def export(
    result: Path,
    form: str,
    out: Path | None,
    overwrite: bool,
    decide: str | None,
    threshold: float | None,
    min_area: float | None,
    min_detection: float | None,
    adapted: bool,
    **options: Any,
) -> None:
    """Write a finished result in another format.

    RESULT is a slide's folder, or its nuclei.zarr; for qupath also a folder of many slides' results.

    \b
    geojson          QuPath and others; the labels of --primary are the classes, all others metadata
    qupath           a folder for QuPath: nuclei, colours, scripts that import and recolour
    csv, parquet     a line a nucleus; parquet (GeoParquet) with its outline
    anndata          .h5ad for scanpy and squidpy
    spatialdata      outlines, table and image for spatialdata.read_zarr
    annotationstore  tiatoolbox's SQLite file, for its viewer and its queries
    labels           OME-Zarr label images: nuclei, and classes
    """
    from classifier.decision_rule import DecisionRule
    from pipeline.result import Result, is_result, open_result, open_results

    def kept(one: Result) -> Result:
        return (one.adapted() if adapted else one).filtered(min_area, min_detection)

    rule = None if decide is None and threshold is None else DecisionRule.chosen(decide, threshold)
    wanted = ExportOptions(rule=rule, **options)
    if form == "qupath" and result.is_dir() and not is_result(result):
        target = out or result / "qupath"
        results = [kept(one) for one in open_results(result)]
        written = [(target, export_for_qupath(results, wanted, target, overwrite))]
    else:
        written = export_result(kept(open_result(result)), form, wanted, out, overwrite)
    for path, count in written:
        click.echo(f"{counted(count, 'nucleus', 'nuclei')} -> {path}")
