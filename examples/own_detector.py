"""A detector of your own in place of HoVer-Net: a class that fills in ``segmentation.detector.Detector``.

python examples/own_detector.py SLIDE results/

This one takes what is blue and dark for nuclei. Regions, ownership, crops, the five labels, the store and the exports
stay as they are.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2hed
from skimage.filters import gaussian
from skimage.measure import label

from pipeline.config import RunConfig
from pipeline.inference.models import load_models
from pipeline.run_slide import run_slide
from pipeline.store.run_record import SilentReporter
from segmentation.detector import Detector
from segmentation.hovernet.postprocess import outline_instances
from segmentation.nuclei import Nuclei


class Haematoxylin(Detector):
    """Whatever takes up much haematoxylin."""

    input_mpp = 0.5
    align_px = 16
    context_px = 32

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return gaussian(rgb2hed(pixels)[..., 0], 1).astype(np.float32)

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        instances = label(prediction > 0.06, connectivity=1).astype(np.int32)
        return outline_instances(instances, np.clip(prediction * 8, 0, 1), mpp, min_area_px=20)


def main(slide: str, out: str) -> None:
    config = RunConfig(overwrite=True)
    models = load_models(config.segmentor, config.classifier, config.device, config.precision)
    models = dataclasses.replace(
        models,
        detector=Haematoxylin(),
        described={
            **models.described,
            "segmentor": {"name": "haematoxylin", "fingerprint": "1"},
        },
    )
    result = run_slide(Path(slide), Path(out), models, config, SilentReporter())
    print(f"{result.nuclei} nuclei in {result.folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
