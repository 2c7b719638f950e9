"""Outlines for images of which points are known: there a nucleus lies, and a trained network says where it ends.

A point is worth more than the network's own nuclei: it parts what the network takes for one, and where no point lies
there is no nucleus. What neither says is unknown, and teaches nothing.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.datasets import AnnotatedImage
from segmentation.dataset import MAP_MPP, UNKNOWN, Outlined, read_labelled
from segmentation.detector import Detector, predict_image
from segmentation.hovernet.detector import load_hovernet
from segmentation.hovernet.postprocess import areas_by_number, falls
from segmentation.hovernet.watershed import flood
from segmentation.test_time_augmentation import FlipTTA

# All at 0.25 um.
MARKER_PX = 4
"""Radius of the disc from which a nucleus grows, 1 um."""
MISSED_PX = 16
"""Radius of what is unknown round a point where the network sees no nucleus, 4 um."""
SEEN_SHARE = 0.4
"""It sees one where so much of the square round the point, twice the marker wide, is nuclear."""
SURE_P = 0.8
"""A component without a point of at least this mean probability is unknown, not background."""
TRUSTED_PX = (48, 4000)
"""Smallest and largest nucleus that is believed: 3 and 250 um2."""
RIM_PX = 2
"""What is unknown reaches so far beyond itself."""
FLATNESS = 0.05
"""Weight of the improbability of a pixel beside the maps' fall: where they do not fall, nuclei meet at the palest."""


class PointOutliner:
    """Reads the images of a training; of those with points only the outlines are made.

    Args:
        path: a model file with a compact HoVer-Net, whose maps (the mean over mirror images) outline.
        device: on which it runs.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path, self.device = path, device

    @cached_property
    def detector(self) -> Detector:
        """The network, which is loaded for the first image with points.

        Raises:
            ModelError: there is no such model.
        """
        return FlipTTA(load_hovernet(self.path, self.device))

    def __call__(self, image: AnnotatedImage) -> Outlined:
        """Return pixels, instances and pixel size of an image, its own, or made here at 0.25 um.

        Raises:
            DataError: a file cannot be read, or the outlines are of another size than the image.
            ModelError: there is no such model.
        """
        if image.outlined:
            return read_labelled(image)
        scale = image.mpp / MAP_MPP
        pixels = image.pixels()
        if scale != 1:
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            pixels = np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=how), np.uint8)
        return Outlined(pixels, outline_points(self.maps(pixels), image.annotation().centroids * scale), MAP_MPP)

    def maps(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the maps (3, H, W) float32 of an image (H, W, 3) uint8 RGB, both at 0.25 um."""
        height, width = pixels.shape[:2]
        halved = cv2.resize(pixels, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
        maps = predict_image(self.detector, np.asarray(halved, np.uint8))
        return np.ascontiguousarray(maps[:, :height, :width])


def outline_points(maps: npt.NDArray[np.float32], points: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """Return an instance for each point at which the maps show a nucleus.

    Nuclei grow from the points over the nuclear pixels, along whose fall they meet (a watershed, as in
    ``segmentation.hovernet.postprocess``, with the points as markers).

    Args:
        maps: (3, H, W) float32 at 0.25 um: nuclear logit, horizontal and vertical map.
        points: (N, 2) x and y in pixels; pixel i covers [i, i+1). N at most 65,534.

    Returns:
        (H, W) uint16: 0 = background, k + 1 = the nucleus of point k, ``UNKNOWN`` = what is not known.
    """
    p = 1 / (1 + np.exp(-maps[0].clip(-30, 30)))
    nuclear = (p >= 0.5).astype(np.uint8)
    components = np.asarray(cv2.connectedComponents(nuclear, connectivity=4)[1], np.int32)
    markers, missed = np.zeros(p.shape, np.int32), np.zeros(p.shape, np.uint8)
    near = cv2.blur(nuclear.astype(np.float32), (2 * MARKER_PX + 1,) * 2, borderType=cv2.BORDER_REPLICATE)
    limits = np.array(p.shape[::-1]) - 1
    for number, (x, y) in enumerate(np.floor(points).astype(int).clip(0, limits), 1):
        if near[y, x] < SEEN_SHARE:
            cv2.circle(missed, (int(x), int(y)), MISSED_PX, 1, -1)
        cv2.circle(markers, (int(x), int(y)), MARKER_PX, number, -1)
    markers[nuclear == 0] = 0
    with_point = np.zeros(int(components.max(initial=0)) + 1, np.bool_)
    with_point[np.unique(components[markers > 0])] = True
    landscape = cv2.GaussianBlur(np.maximum(*falls(np.ascontiguousarray(maps[1:]))), (5, 5), 0) + FLATNESS * (1 - p)
    flood(np.asarray(landscape, np.float32), components, with_point, markers)

    area = areas_by_number(components, len(with_point))
    mean_p = np.bincount(components.ravel(), p.ravel(), len(with_point)) / np.maximum(area, 1)
    sure = ~with_point & (mean_p >= SURE_P) & (area >= TRUSTED_PX[0])
    sure[0] = False
    grown = areas_by_number(markers, len(points) + 1)
    odd = (grown > 0) & ((grown < TRUSTED_PX[0]) | (grown > TRUSTED_PX[1]))
    odd[0] = False
    unknown = ((missed > 0) | sure[components] | odd[markers]).astype(np.uint8)
    markers[odd[markers]] = 0
    unknown = np.asarray(cv2.dilate(unknown, np.ones((2 * RIM_PX + 1,) * 2, np.uint8)), np.uint8)
    return np.where(markers > 0, markers, np.where(unknown > 0, UNKNOWN, 0)).astype(np.uint16)
