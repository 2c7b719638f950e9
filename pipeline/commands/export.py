"""``nucpipe export``."""

from __future__ import annotations

from pathlib import Path

import click

from nucpipe.common.errors import UsageError
from pipeline.config import RunConfig

DEFAULT = RunConfig()


@click.command()
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
