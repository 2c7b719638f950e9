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
    "--decide",
    type=click.Choice(["argmax", "best", "threshold"]),
    help="Decide on labels anew, from the stored probabilities (see run).  [default: as in the run]",
)
@click.option("--threshold", type=float, metavar="P", help="A probability, for best and threshold.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write, .geojson or .geojson.gz.  [default: beside the store]",
)
def export(
    result: Path, form: str, primary: str, decide: str | None, threshold: float | None, out: Path | None
) -> None:
    """Write a finished RESULT (a slide's folder, or its nuclei.zarr) in another form."""
    from classifier.decide import Rule
    from pipeline.export.geojson import write_geojson
    from pipeline.store import open_store

    if decide is None and threshold is not None:
        raise UsageError("--threshold needs --decide best or --decide threshold.")
    rule = None if decide is None else Rule(decide, threshold)
    path = result / "nuclei.zarr" if (result / "nuclei.zarr").exists() else result
    store = open_store(path)
    target = out or path.with_name(f"nuclei.{form}")
    if not target.name.endswith((".geojson", ".geojson.gz")):
        raise UsageError(f"--out {target}: expected a name that ends in .geojson or .geojson.gz.")
    count = write_geojson(store, target, store.info.outputs.library(primary).name, rule)
    click.echo(f"{count:,} nuclei -> {target}")
