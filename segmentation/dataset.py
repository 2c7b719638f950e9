"""Training tiles for the detector: random places of annotated images, turned and scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from skimage.measure import label as connected_components

from nucpipe.datasets import AnnotatedImage
from nucpipe.datasets.base import read_outlined
from segmentation.targets import between_nuclei, hv_maps

MAP_MPP = 0.25
TILE_PX = 256
"""Side of a tile at 0.25 um: the images of PanNuke, and, scaled by a quarter, nearly those of NuInsSeg."""

UNKNOWN = 65535
"""In an instance map, pixels of which nobody knows whether they are nuclear; they teach nothing."""


class Outlined(NamedTuple):
    """An image with its nuclei.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        instances: (H, W) uint16, 0 = background, then one number a nucleus; ``UNKNOWN``.
        mpp: pixel size in micrometres.
    """

    pixels: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.uint16]
    mpp: float


def read_labelled(image: AnnotatedImage) -> Outlined:
    """Return an annotated image as it is.

    Raises:
        DataError: it has no outlines, or cannot be read.
    """
    pixels, _, instances = read_outlined(image)
    # 16 bits are enough for one image and are what cv2.warpAffine takes.
    numbers = np.unique(instances, return_inverse=True)[1].reshape(instances.shape).astype(np.uint16)
    return Outlined(pixels, numbers, image.mpp)


@dataclass(frozen=True)
class TileBatch:
    """Tiles with what the network shall say of them.

    Attributes:
        pixels: (N, S/2, S/2, 3) uint8 RGB at 0.5 um.
        nuclear: (N, S, S) uint8 at 0.25 um, 1 inside a nucleus.
        hv: (N, 2, S, S) float16 at 0.25 um.
        between: (N, S, S) uint8 at 0.25 um, 1 where two nuclei are near.
        known: (N, S, S) uint8 at 0.25 um, 0 where nobody knows whether there is a nucleus.
    """

    pixels: npt.NDArray[np.uint8]
    nuclear: npt.NDArray[np.uint8]
    hv: npt.NDArray[np.float16]
    between: npt.NDArray[np.uint8]
    known: npt.NDArray[np.uint8]


def balanced_shares(
    sets: Sequence[int], groups: Sequence[str], areas: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return how often each image is drawn.

    Sets, and within a set its groups (organ, tissue, patient), are drawn by the square root of their area, and within a
    group every square micrometre is as likely as any other. By area alone the largest set and its largest organs would
    be most of what is seen; drawn equally often, a set of six small images would be seen until it is known by heart.

    Args:
        sets: number of each image's set.
        groups: each image's group.
        areas: of the images, in any unit.

    Returns:
        (N,), sum 1.
    """
    of_set = np.unique(sets, return_inverse=True)[1]
    of_group = np.unique([f"{s} {g}" for s, g in zip(sets, groups, strict=True)], return_inverse=True)[1]
    group_area = np.bincount(of_group, areas)
    shares = areas / np.sqrt(group_area)[of_group]
    shares *= (np.sqrt(np.bincount(of_set, areas)) / np.bincount(of_set, shares))[of_set]
    return np.asarray(shares / shares.sum())


class TileDataset:
    """All annotated images, in memory, and the tiles cut from them.

    A batch depends on (seed, step) alone, so a resumed training sees what an uninterrupted one would have seen.

    Args:
        sets: the images of each data set.
        seed: of the random numbers.
        tiles: how many a batch has.
        read: gives an image and its nuclei.

    Raises:
        DataError: an image has no outlines, or cannot be read.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[AnnotatedImage]],
        seed: int,
        tiles: int,
        read: Callable[[AnnotatedImage], Outlined] = read_labelled,
    ) -> None:
        self.seed = seed
        self.tiles = tiles
        self.pixels: list[npt.NDArray[np.uint8]] = []
        self.instances: list[npt.NDArray[np.uint16]] = []
        self.scales: list[float] = []
        images = [image for one in sets for image in one]
        for image in images:
            outlined = read(image)
            self.instances.append(outlined.instances)
            self.pixels.append(outlined.pixels)
            self.scales.append(MAP_MPP / outlined.mpp)
        areas = np.array([p.shape[0] * p.shape[1] / s**2 for p, s in zip(self.pixels, self.scales, strict=True)])
        of_set = [number for number, one in enumerate(sets) for _ in one]
        self._shares = balanced_shares(of_set, [image.group for image in images], areas)

    def batch(self, step: int) -> TileBatch:
        """Return the batch of that step."""
        tiles = [self._tile(*drawn) for drawn in self.draw(step, TILE_PX)]
        return TileBatch(*(np.stack(parts) for parts in zip(*tiles, strict=True)))

    def draw(self, step: int, size: int) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]]:
        """Yield the tiles of that step: pixels (size, size, 3) at 0.25 um, and their instances, -1 where unknown."""
        rng = np.random.default_rng((self.seed, step))
        for index in rng.choice(len(self._shares), self.tiles, p=self._shares):
            yield self._warped(int(index), size, rng)

    @staticmethod
    def _tile(
        warped: npt.NDArray[np.uint8], mapped: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.uint8 | np.float16], ...]:
        size = len(warped)
        known = (mapped >= 0).astype(np.uint8)
        mapped = np.maximum(mapped, 0)
        small = cv2.resize(warped, (size // 2, size // 2), interpolation=cv2.INTER_AREA).astype(np.uint8)
        hv = hv_maps(mapped).astype(np.float16)
        return small, (mapped > 0).astype(np.uint8), hv, between_nuclei(mapped).astype(np.uint8), known

    def _warped(
        self, index: int, size: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Cut a random place of an image, turned and scaled: (size, size, 3) at 0.25 um, and its instances,
        -1 where unknown.
        """
        pixels, instances = self.pixels[index], self.instances[index]
        scale = self.scales[index] * float(np.exp(rng.uniform(-0.22, 0.22)))
        angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.integers(4) * np.pi / 2
        flip = -1.0 if rng.random() < 0.5 else 1.0
        c, s = np.cos(angle) * scale, np.sin(angle) * scale
        turn = np.array([[c * flip, -s], [s * flip, c]])
        reach = np.minimum(size * scale, np.array(pixels.shape[1::-1])) / 2
        centre = rng.uniform(reach, np.array(pixels.shape[1::-1]) - reach)
        # Source position of tile pixel (u, v), both measured from pixel centres.
        shift = centre - turn @ np.full(2, size / 2)
        matrix = np.hstack([turn, (shift + turn @ np.full(2, 0.5) - 0.5)[:, None]])
        flags, border = cv2.WARP_INVERSE_MAP, cv2.BORDER_REFLECT_101
        warped = cv2.warpAffine(pixels, matrix, (size, size), flags=flags | cv2.INTER_LINEAR, borderMode=border)
        mapped = cv2.warpAffine(instances, matrix, (size, size), flags=flags | cv2.INTER_NEAREST, borderMode=border)
        # A nucleus and its mirror image beyond the border bear one id; apart they are two.
        unknown = mapped == UNKNOWN
        apart = connected_components(np.where(unknown, 0, mapped), connectivity=1)  # type: ignore[no-untyped-call]
        return np.asarray(warped, np.uint8), np.where(unknown, -1, apart).astype(np.int32)
