"""A slide of known ellipses, and a detector and a classifier that need no training for it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from classifier.labels.libraries import LabelSpace, published_libraries
from classifier.network import JointClassifier, TwoViewClassifier, of_patches
from classifier.out_of_distribution import OodModel
from classifier.predictor import Predictor
from pipeline.inference.models import Models
from segmentation.detector import Detector
from segmentation.hovernet.postprocess import find_nuclei
from segmentation.nuclei import Nuclei
from segmentation.targets import hv_maps

MPP = 0.25


@dataclass(frozen=True)
class Drawn:
    """Ellipses on pink ground: the image, and each ellipse's centre and number of pixels."""

    image: np.ndarray
    centres: np.ndarray
    areas_px: np.ndarray

    def save(self, path: Path) -> Path:
        cv2.imwrite(str(path), self.image[..., ::-1])
        return path


def draw_slide(width: int, height: int, spacing: int = 44, seed: int = 0) -> Drawn:
    """Ellipses of even sides (the detector halves the pixels) on a jittered lattice, none touching another."""
    rng = np.random.default_rng(seed)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (235, 190, 215)
    centres, areas = [], []
    for y in range(spacing // 2, height - spacing // 2, spacing):
        for x in range(spacing // 2, width - spacing // 2, spacing):
            centre = np.array([x, y]) + rng.integers(-6, 7, 2)
            small = np.zeros((spacing // 2, spacing // 2), np.uint8)
            axes = (int(rng.integers(4, 7)), int(rng.integers(4, 7)))
            cv2.ellipse(small, (spacing // 4, spacing // 4), axes, float(rng.integers(0, 180)), 0, 360, 1, -1)
            mask = small.repeat(2, 0).repeat(2, 1) > 0
            corner = (centre // 2 - spacing // 4) * 2
            area = image[corner[1] : corner[1] + spacing, corner[0] : corner[0] + spacing]
            if area.shape[:2] != mask.shape or corner.min() < 0:
                continue
            area[mask] = (90, 40, 130)
            rows, columns = np.nonzero(mask)
            centres.append((corner[0] + columns.mean() + 0.5, corner[1] + rows.mean() + 0.5))
            areas.append(mask.sum())
    return Drawn(image, np.array(centres), np.array(areas))


class DarkSpots(Detector):
    """A detector for drawn slides: what is dark is nuclear, through HoVer-Net's maps and post-processing."""

    input_mpp = 0.5
    align_px = 16
    context_px = 32

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        dark = (pixels[..., 1] < 110).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        _, instances = cv2.connectedComponents(dark, connectivity=4)
        logit = np.where(dark > 0, 5, -5).astype(np.float32)
        return np.concatenate([logit[None], hv_maps(instances)])

    def nuclei(self, prediction: np.ndarray, mpp: float) -> Nuclei:
        return find_nuclei(prediction, mpp / 2, frame_scale=0.5)


def ood_of(features: int) -> OodModel:
    """One Gaussian of variance 1 round 0, and quantiles evenly up to a distance of 2."""
    return OodModel(np.zeros((1, features)), np.eye(features)[None], np.zeros(1), np.linspace(0, 2, 1000))


@functools.cache
def models(seed: int = 0, context: bool = False, features: int = 0, ood: bool = False) -> Models:
    """Dark spots, and a classifier with random weights that may look at the context; two labels are untrained.

    Kept, for converting a network takes a second; nobody may change them.
    """
    torch.manual_seed(seed)
    trained = [True] * 35
    trained[13] = trained[2] = False
    outputs = LabelSpace(published_libraries(), tuple(trained))
    network = (
        TwoViewClassifier(len(outputs), "test_efficientnet", "test_efficientnet")
        if context
        else JointClassifier(len(outputs), "test_efficientnet", 64)
    )
    if features:
        network.projection = torch.nn.Linear(network.last_layer().in_features, features)
    patches = of_patches(network, "logits and features")
    described = {"segmentor": {"name": "dark spots"}, "classifier": {"name": "random"}}
    told = ood_of(features) if ood else None
    predictor = Predictor(lambda: patches, outputs, threads=2, context=context, features=features, ood=told)
    return Models(DarkSpots(), predictor, described)
