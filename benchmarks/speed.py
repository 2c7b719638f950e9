"""Seconds of the whole run over those of the two networks alone, on the same slide, in one process.

python benchmarks/speed.py SLIDE --out /tmp/speed [--mpp 0.25]

The bare networks see the same windows and the same number of crops in the same batches, already in memory, by as many
calls at once as suit the device. The classifier also stands beside a plain loop over nuclei and a DataLoader, both in
PyTorch, as one would write them first.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import nucpipe
from classifier.network import enlarge, load_classifier
from pipeline.config import RunConfig
from pipeline.inference.engine import halo_w, read_grid_w, resize, working_px
from pipeline.inference.models import find_model, load_models
from pipeline.regions.region import cut_regions
from pipeline.regions.tissue import tissue_from
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import open_slide

PLAIN = 256
"""Nuclei for the plain ways, which are slow."""


def seconds_of(work: Callable[[Any], object], items: Sequence[Any], threads: int) -> float:
    work(items[0])  # the first call of a shape is slower
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))
    return time.perf_counter() - began


def plain_ways(crops: np.ndarray, config: RunConfig) -> None:
    """Time a loop and a DataLoader with PyTorch in float32."""
    model, _, _ = load_classifier(find_model("classifier", config.classifier))

    def classify(batch: torch.Tensor) -> torch.Tensor:
        return model(enlarge(batch.permute(0, 3, 1, 2), model.size_px))

    with torch.inference_mode():
        began = time.perf_counter()
        for crop in crops:
            classify(torch.from_numpy(crop[None]))
        loop = time.perf_counter() - began
        began = time.perf_counter()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(crops)), 64, num_workers=1)
        for (batch,) in loader:
            classify(batch)
        loaded = time.perf_counter() - began
    print(f"plain loop           {loop:8.1f} s   {len(crops) / loop:5.0f} nuclei per second")
    print(f"plain DataLoader     {loaded:8.1f} s   {len(crops) / loaded:5.0f} nuclei per second")


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--mpp", type=float)
@click.option("--segmentor", default=RunConfig.segmentor)
@click.option("--classifier", default=RunConfig.classifier)
def main(slide: Path, out: Path, mpp: float | None, **chosen: str) -> None:
    """Print a table of seconds and ratios."""
    config = RunConfig(mpp=mpp, overwrite=True, **chosen)
    (result,) = nucpipe.run(slide, out, config)
    assert result.status == "done", result.cause
    models = load_models(config.segmentor, config.classifier, config.device, config.precision)
    with open_slide(slide, mpp) as opened:
        grid = WorkingGrid.for_slide(opened.size_l0, opened.mpp)
        tissue = tissue_from("auto", opened)
        regions = cut_regions(
            grid,
            tissue,
            config.region_size,
            halo_w(models.detector, models.classifier.context),
            *read_grid_w(models.detector),
        )
        scale = working_px(models.detector)
        began = time.perf_counter()
        windows = [resize(opened.read(grid, region.read_box_w), grid.stride, scale) for region in regions]
        reading = time.perf_counter() - began
    detector = seconds_of(models.detector.predict, windows, models.detector.max_concurrency)
    side = 64 // grid.stride
    size = config.batch_size or models.classifier.batch_size
    crops = np.random.default_rng(0).integers(0, 256, (max(PLAIN, size), side, side, 3), np.uint8)
    batches = [crops[:size]] * -(-result.nuclei // size)
    classifier = seconds_of(models.classifier, batches, models.classifier.max_concurrency)
    bare = detector + classifier
    print(f"{result.nuclei} nuclei on {result.tissue_mm2:.2f} mm2 in {len(regions)} regions")
    print(f"whole run            {result.seconds:8.1f} s   {result.seconds / bare:5.2f} x the bare networks")
    print(f"bare detector        {detector:8.1f} s   {detector / result.tissue_mm2:5.2f} s per mm2")
    print(f"bare classifier      {classifier:8.1f} s   {result.nuclei / classifier:5.0f} nuclei per second")
    print(f"bare reading         {reading:8.1f} s")
    plain_ways(crops[:PLAIN], config)
    print(f"peak memory          {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.2f} GiB")


if __name__ == "__main__":
    main()
