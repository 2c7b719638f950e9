"""nucpipe against tiatoolbox's own engine, on one image, side by side in one process.

python benchmarks/toolbox.py IMAGE.png --mpp 0.25 --out /tmp/toolbox

Both run the published HoVer-Net (fast) with the same random weights, whose nuclear branch is set to find nothing: the
networks' work is equal, and random maps would make the post-processing unlike any real one. nucpipe's bundled model is
timed on the same image, classifier and exports included. Models are loaded beforehand.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import click
import cv2
import torch

from nucpipe.common.processors import available_processors
from nucpipe.common.toolbox import quiet, toolbox
from pipeline.config import RunConfig
from pipeline.models import load_models
from pipeline.run import Silent, run_slide
from segmentation.published import PublishedHoVerNet


def random_network() -> torch.nn.Module:
    torch.manual_seed(0)
    network = toolbox("models.architecture.hovernet").HoVerNet(num_types=6, mode="fast").eval()
    with torch.no_grad():
        last = network.decoder["np"].u0.conv
        last.weight.zero_()
        last.bias.copy_(torch.tensor([9.0, -9.0]))
    return network


def seconds_of_toolbox(network: torch.nn.Module, image: Path, out: Path) -> float:
    engine_module = toolbox("models.engine.nucleus_instance_segmentor")
    with quiet():
        engine = engine_module.NucleusInstanceSegmentor(network, batch_size=4, num_workers=0, verbose=False)
        config = toolbox("models.engine.io_config").IOSegmentorConfig(
            input_resolutions=[{"units": "baseline", "resolution": 1.0}],
            output_resolutions=[{"units": "baseline", "resolution": 1.0}] * 3,
            margin=128,
            tile_shape=[1024, 1024],
            patch_input_shape=(256, 256),
            patch_output_shape=(164, 164),
            stride_shape=(164, 164),
            save_resolution={"units": "baseline", "resolution": 1.0},
        )
        began = time.perf_counter()
        engine.run(
            [image],
            ioconfig=config,
            patch_mode=False,
            save_dir=out,
            overwrite=True,
            auto_get_mask=False,
        )
        return time.perf_counter() - began


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--mpp", type=float, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(image: Path, mpp: float, out: Path) -> None:
    """Print a table."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    height, width = cv2.imread(str(image)).shape[:2]
    mm2 = height * width * mpp * mpp / 1e6
    network = random_network()
    config = RunConfig(mpp=mpp, tissue="none", overwrite=True)
    models = load_models(config.segmentor, config.classifier, "cpu", config.precision)
    rows = [("tiatoolbox, HoVer-Net fast", seconds_of_toolbox(network, image, out / "toolbox"))]
    for word, precision in (("fp32", None), ("bf16", torch.bfloat16)):
        detector = PublishedHoVerNet(network, tuple("abcde"), "cpu", precision, available_processors())
        same = run_slide(image, out / f"same-{word}", replace(models, detector=detector), config, Silent())
        rows.append((f"nucpipe, the same in {word}", same.seconds))
    bundled = run_slide(image, out / "bundled", models, config, Silent())
    rows.append((f"nucpipe, bundled, {bundled.nuclei} nuclei", bundled.seconds))
    print(f"{width} x {height} pixels of {mpp} um, {mm2:.3f} mm2")
    for name, seconds in rows:
        print(f"{name:<36} {seconds:8.1f} s {seconds / mm2:8.1f} s/mm2   {rows[0][1] / seconds:7.1f} x tiatoolbox")


if __name__ == "__main__":
    main()
