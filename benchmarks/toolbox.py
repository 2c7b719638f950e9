"""nucpipe against tiatoolbox's own engine, on one image, side by side in one process.

python benchmarks/toolbox.py IMAGE.png --mpp 0.25 --out /tmp/toolbox [--slide SLIDE]

Both run the published HoVer-Net (fast) with the same random weights, whose nuclear branch is set to find nothing: the
networks' work is equal, and random maps would make the post-processing unlike any real one, so none is measured. Each
engine cuts the image as it does for its users: windows of 256 pixels, of which the middle 164 count; how many there
were is printed. tiatoolbox runs in float32 on PyTorch, as it does on any CPU, with its default batch of 8 and all
processors. nucpipe's bundled model is timed on the same image, classifier and exports included, and with --slide on a
slide (or a larger image of the same --mpp), where what a run costs once counts for less. Models are loaded before.
Processor seconds are of all threads; on a busy machine they say more than the clock.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from nucpipe.backends.base import Backend
from nucpipe.backends.processors import available_processors
from nucpipe.optional.tiatoolbox import import_tiatoolbox, quiet
from pipeline.config import RunConfig
from pipeline.inference.models import load_models
from pipeline.run_slide import run_slide
from pipeline.store.run_record import SilentReporter
from segmentation.detector import Detector
from segmentation.hovernet.published import PublishedHoVerNet


def random_network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = import_tiatoolbox("models.architecture.hovernet").HoVerNet(num_types=6, mode="fast").eval()
    with torch.no_grad():
        last = network.decoder["np"].u0.conv
        last.weight.zero_()
        last.bias.copy_(torch.tensor([9.0, -9.0]))
    return network


def toolbox_engine(network: torch.nn.Module, image: Path, out: Path) -> Callable[[], object]:
    """Return tiatoolbox's engine, ready to run."""
    engine_module = import_tiatoolbox("models.engine.nucleus_instance_segmentor")
    with quiet():
        engine = engine_module.NucleusInstanceSegmentor(network, batch_size=8, num_workers=0, verbose=False)
        config = import_tiatoolbox("models.engine.io_config").IOSegmentorConfig(
            input_resolutions=[{"units": "baseline", "resolution": 1.0}],
            output_resolutions=[{"units": "baseline", "resolution": 1.0}] * 3,
            margin=128,
            tile_shape=[1024, 1024],
            patch_input_shape=(256, 256),
            patch_output_shape=(164, 164),
            stride_shape=(164, 164),
            save_resolution={"units": "baseline", "resolution": 1.0},
        )

    def run() -> object:
        with quiet():
            return engine.run(
                [image], ioconfig=config, patch_mode=False, save_dir=out, overwrite=True, auto_get_mask=False
            )

    return run


class Counted:
    """A runtime that counts windows."""

    def __init__(self, runtime: Backend) -> None:
        self.runtime, self.name, self.max_concurrency, self.windows = runtime, runtime.name, runtime.max_concurrency, 0
        self.side_step_px = runtime.side_step_px

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.windows += len(pixels)
        return self.runtime(pixels)


class Table:
    """Prints a row a measurement; the first is what the others are compared with."""

    def __init__(self) -> None:
        self.first: tuple[float, float] | None = None

    def row(self, name: str, work: Callable[[], tuple[float, str]]) -> None:
        """``work`` gives square millimetres and a remark."""
        wall, processor = time.perf_counter(), time.process_time()
        mm2, remark = work()
        each = (time.perf_counter() - wall) / mm2, (time.process_time() - processor) / mm2
        self.first = self.first or each
        ratios = [first / this for first, this in zip(self.first, each, strict=True)]
        print(
            f"{name:<34} {each[0]:8.1f} s/mm2 {ratios[0]:6.1f} x   "
            f"processors {each[1]:8.1f} s/mm2 {ratios[1]:6.1f} x   {remark}",
            flush=True,
        )


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--mpp", type=float, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--slide", type=click.Path(path_type=Path), help="For the bundled model.")
def main(image: Path, mpp: float, out: Path, slide: Path | None) -> None:
    """Print a table."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    height, width = cv2.imread(str(image)).shape[:2]
    mm2 = height * width * mpp * mpp / 1e6
    network, table, windows = random_network(), Table(), 0
    config = RunConfig(mpp=mpp, tissue="none", overwrite=True)
    models = load_models(config.segmentor, config.classifier, "cpu", config.precision)
    print(f"{width} x {height} pixels of {mpp} um, {mm2:.4f} mm2; {available_processors()} processors", flush=True)

    def count(_module: object, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        nonlocal windows
        windows += len(inputs[0])

    engine = toolbox_engine(network, image, out / "toolbox")
    hook = network.register_forward_hook(count)

    def by_toolbox() -> tuple[float, str]:
        engine()
        return mm2, f"{windows} windows"

    table.row("tiatoolbox, HoVer-Net fast, fp32", by_toolbox)
    hook.remove()
    for word in ("fp32", "bf16"):
        detector = PublishedHoVerNet(network, tuple("abcde"), "cpu", word, available_processors())
        detector.runtime = counted = Counted(detector.runtime)

        def same(detector: Detector = detector, counted: Counted = counted, word: str = word) -> tuple[float, str]:
            run_slide(image, out / f"same-{word}", replace(models, detector=detector), config, SilentReporter())
            return mm2, f"{counted.windows} windows, {counted.name}"

        table.row(f"nucpipe, the same in {word}", same)

    def bundled(path: Path, config: RunConfig) -> tuple[float, str]:
        result = run_slide(path, out / f"bundled-{path.stem}", models, config, SilentReporter())
        return result.tissue_mm2, f"{result.nuclei} nuclei on {result.tissue_mm2:.2f} mm2"

    table.row("nucpipe, bundled, image", lambda: bundled(image, config))
    if slide is not None:
        table.row("nucpipe, bundled, slide", lambda: bundled(slide, replace(config, tissue="auto")))


if __name__ == "__main__":
    main()
