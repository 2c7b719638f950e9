"""Seconds of the whole run over those of the two networks alone, on the same slide, in one process.

python benchmarks/speed.py SLIDE --out /tmp/speed [--mpp 0.25]

The bare networks see the same windows and the same number of crops in the same batches, already in memory.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import click
import numpy as np

import nucpipe
from classifier.model import classify
from pipeline.config import RunConfig
from pipeline.engine import resize
from pipeline.grid import WorkingGrid
from pipeline.models import load_models
from pipeline.regions import cut_regions
from pipeline.run import halo_w
from pipeline.slide import open_slide
from pipeline.tissue import tissue_from


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--mpp", type=float)
def main(slide: Path, out: Path, mpp: float | None) -> None:
    """Print a table of seconds and ratios."""
    config = RunConfig(mpp=mpp, overwrite=True)
    (result,) = nucpipe.run(slide, out, config)
    assert result.status == "done", result.cause
    models = load_models(config.segmentor, config.classifier, config.device, config.precision)
    with open_slide(slide, mpp) as opened:
        grid = WorkingGrid.for_slide(opened.size_l0, opened.mpp)
        regions = cut_regions(grid, tissue_from("auto", opened), config.region_size, halo_w(models))
        began = time.perf_counter()
        windows = [resize(opened.read(grid, region.window_w), grid.stride, 2) for region in regions]
        reading = time.perf_counter() - began
    began = time.perf_counter()
    for window in windows:
        models.detector.predict(window)
    detector = time.perf_counter() - began
    side = 64 // grid.stride
    crops = np.random.default_rng(0).integers(0, 256, (config.batch_size, side, side, 3), np.uint8)
    began = time.perf_counter()
    for _ in range(-(-result.nuclei // config.batch_size)):
        classify(models.classifier, models.outputs, crops, models.device, models.precision)
    classifier = time.perf_counter() - began
    bare = detector + classifier
    print(f"{result.nuclei} nuclei on {result.tissue_mm2:.2f} mm2 in {len(regions)} regions")
    print(f"whole run            {result.seconds:8.1f} s   {result.seconds / bare:5.2f} x the bare networks")
    print(f"bare detector        {detector:8.1f} s   {detector / result.tissue_mm2:5.2f} s per mm2")
    print(f"bare classifier      {classifier:8.1f} s   {result.nuclei / classifier:5.0f} nuclei per second")
    print(f"bare reading         {reading:8.1f} s")
    print(f"peak memory          {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.2f} GiB")


if __name__ == "__main__":
    main()
