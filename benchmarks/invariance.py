"""How far the answer depends on how the work was cut: the same slide by several region sizes, batches and workers.

python benchmarks/invariance.py SLIDE --out /tmp/invariance [--tissue ROI.geojson] [--precision fp32]

The first line of the table is the reference (regions of 2048, batches of 64, 2 workers). A nucleus is the same if its
outline overlaps the reference's with IoU > 0.9; its labels are the same if all five are.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import shapely
from scipy.spatial import cKDTree

import nucpipe
from pipeline.store.reader import Store, open_store

WAYS = ((2048, 64, 2), (512, 64, 2), (1280, 64, 2), (2048, 1, 2), (2048, 64, 1))


def polygons(store: Store) -> np.ndarray:
    offsets, points = store.contours()
    rings = shapely.linearrings(points.astype(float), indices=np.repeat(np.arange(len(store)), np.diff(offsets)))
    return shapely.make_valid(shapely.polygons(rings))


def matches(a: Store, b: Store) -> tuple[np.ndarray, np.ndarray]:
    """Return indices into ``a`` and ``b`` of nuclei with IoU > 0.9."""
    if not (len(a) and len(b)):
        return np.zeros((2, 0), int)
    distance, near = cKDTree(b.centroids_l0).query(a.centroids_l0)
    pa, pb = polygons(a), polygons(b)[near]
    iou = shapely.area(shapely.intersection(pa, pb)) / shapely.area(shapely.union(pa, pb))
    same = np.flatnonzero((iou > 0.9) & np.isfinite(distance))
    return same, near[same]


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--tissue", default="auto")
@click.option("--precision", default="auto")
@click.option("--mpp", type=float)
@click.option("--segmentor", default="hovernet-compact")
@click.option("--classifier", default="joint-context")
def main(slide: Path, out: Path, **options: object) -> None:
    """Compare runs of one slide that were cut in different ways."""
    stores = []
    print("region batch workers |  nuclei  same as ref.  ref. found   labels same   seconds")
    for region_size, batch_size, workers in WAYS:
        (result,) = nucpipe.run(
            slide,
            out / f"{region_size}-{batch_size}-{workers}",
            region_size=region_size,
            batch_size=batch_size,
            workers=workers,
            overwrite=True,
            geojson=False,
            **options,
        )
        assert result.status == "done", result.cause
        store = open_store(result.folder / "nuclei.zarr")
        stores.append(store)
        mine, reference = matches(store, stores[0])
        libraries = [library.name for library in store.info.outputs.libraries]
        labels = [store.label_numbers(k)[mine] == stores[0].label_numbers(k)[reference] for k in libraries]
        same, found = len(mine) / max(1, len(store)), len(mine) / max(1, len(stores[0]))
        print(
            f"{region_size:>6} {batch_size:>5} {workers:>7} | {len(store):>7} {same:>13.4%} {found:>11.4%} "
            f"{np.all(labels, axis=0).mean():>13.4%} {result.seconds:>9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
