"""Large results: how long the store takes to write, open and look into, and the GeoJSON to write; and their memory.

python benchmarks/exports.py RESULT --out /tmp/exports [--nuclei 5000000]

RESULT is the folder of a finished slide. Its nuclei are laid side by side until there are as many as wanted.
"""

from __future__ import annotations

import itertools
import math
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from classifier.predictions import Predictions
from pipeline.config import RunConfig
from pipeline.export.geojson.write import write_geojson
from pipeline.store.journal import Journal
from pipeline.store.reader import Store, open_store
from pipeline.store.writer import finish
from segmentation.nuclei import MEASURES, Nuclei


@contextmanager
def timed(what: str, nuclei: int) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:<34} {seconds:9.3f} s {nuclei / seconds:12,.0f} nuclei/s   peak memory {peak:5.2f} GiB", flush=True)


def lay(store: Store, wanted: int, out: Path) -> Path:
    """Return a store of ``wanted`` nuclei or a few more, copies of those of ``store`` side by side, in regions of a
    run.
    """
    side = math.ceil(math.sqrt(wanted / len(store)))
    width, height = store.info.size_l0
    offsets, points = store.contours()
    nuclei = Nuclei(
        store.centroids_l0,
        offsets,
        points.astype(float),
        store.detection_p,
        store.area_um2,
        measures=np.stack([store.measure(name) for name in MEASURES], 1),
    )
    probabilities = store.probabilities
    squares, of = np.unique(nuclei.centroids // RunConfig.region_size, axis=0, return_inverse=True)
    of = of.reshape(-1)  # numpy 2.0 gives a column
    regions = [(nuclei.select(of == k), Predictions(probabilities[of == k])) for k in range(len(squares))]
    places = [(x * width, y * height) for y in range(side) for x in range(side)]
    journal = Journal.open(out / "journal", {})
    with timed(f"journal of {len(places) * len(regions):,} regions", len(places) * len(nuclei)):
        for k, (place, (found, labels)) in enumerate(itertools.product(places, regions)):
            journal.write(k, found.transformed(1.0, place), labels)
    info = replace(store.info, size_l0=(side * width, side * height))
    with timed("store from the journal", len(places) * len(nuclei)):
        finish(journal, range(len(places) * len(regions)), out / "nuclei.zarr", info)
    journal.remove()
    return out / "nuclei.zarr"


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--nuclei", default=5_000_000, show_default=True)
@click.option("--keep", is_flag=True, help="Use the store that an earlier call left in --out.")
def main(result: Path, out: Path, nuclei: int, keep: bool) -> None:
    """Print a table."""
    if not keep:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    path = out / "nuclei.zarr" if keep else lay(open_store(result / "nuclei.zarr"), nuclei, out)
    with timed("open", 0):
        store = open_store(path)
    print(f"{len(store):,} nuclei on {store.info.size_l0[0]:,} x {store.info.size_l0[1]:,} pixels")
    rng = np.random.default_rng(0)
    for side in (1000, 4000):
        width, height = store.info.size_l0
        places = rng.uniform(0, (width - side, height - side), (10, 2))
        windows = [store.in_bbox(x, y, x + side, y + side) for x, y in places]
        began = time.perf_counter()
        for x, y in places:
            store.in_bbox(x, y, x + side, y + side).contours()
        seconds = (time.perf_counter() - began) / len(places)
        mean = np.mean([len(window) for window in windows])
        print(f"outlines of {side} x {side} pixels        {seconds:9.3f} s {mean:12,.0f} nuclei")
    for name in ("nuclei.geojson", "nuclei.geojson.gz"):
        with timed(name, len(store)):
            write_geojson(store, out / name, "PanNuke")
        print(f"{'':<34} {(out / name).stat().st_size / 2**20:9.0f} MiB")


if __name__ == "__main__":
    main()
