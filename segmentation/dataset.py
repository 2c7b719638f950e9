"""Training tiles for the detector: random places of annotated images, turned and scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from skimage.measure import label as connected_components

from nucpipe.datasets import AnnotatedImage
from nucpipe.errors import DataError
from segmentation.targets import hv_maps

MAP_MPP = 0.25


@dataclass(frozen=True)
class TileBatch:
    """Tiles of one size.

    Attributes:
        pixels: (N, S/2, S/2, 3) uint8 RGB at 0.5 um.
        nuclear: (N, S, S) uint8 at 0.25 um, 1 inside a nucleus.
        hv: (N, 2, S, S) float16 at 0.25 um.
    """

    pixels: npt.NDArray[np.uint8]
    nuclear: npt.NDArray[np.uint8]
    hv: npt.NDArray[np.float16]


class TileDataset:
    """All annotated images, in memory, and the tiles cut from them.

    A batch depends on (seed, step) alone, so a resumed training sees what an uninterrupted one would have seen.
    """

    def __init__(self, images: Sequence[AnnotatedImage], seed: int, tiles_of_512: int) -> None:
        self.seed = seed
        self.tiles_of_512 = tiles_of_512
        self.pixels: list[npt.NDArray[np.uint8]] = []
        self.instances: list[npt.NDArray[np.uint16]] = []
        self.scales: list[float] = []
        for image in images:
            instances = image.annotation().instances
            if instances is None:
                raise DataError(f"{image.name}: has no outlines; a segmentor learns from outlined nuclei.")
            # 16 bits are enough for one image and are what cv2.warpAffine takes.
            self.instances.append(np.unique(instances, return_inverse=True)[1].reshape(instances.shape).astype("u2"))
            self.pixels.append(image.pixels())
            self.scales.append(MAP_MPP / image.mpp)
        sides = np.array([min(p.shape[:2]) / s for p, s in zip(self.pixels, self.scales, strict=True)])
        areas = np.array([p.shape[0] * p.shape[1] / s**2 for p, s in zip(self.pixels, self.scales, strict=True)])
        # Every square micrometre is as likely as any other; a batch has tiles of one size.
        self.classes = [
            (size, members, areas[members] / areas[members].sum(), float(areas[members].sum()))
            for size, members in ((512, np.flatnonzero(sides >= 512)), (256, np.flatnonzero(sides < 512)))
            if len(members)
        ]

    def batch(self, step: int) -> TileBatch:
        """Return the batch of that step: ``tiles_of_512`` tiles of 512 px, or four times as many of 256 px."""
        rng = np.random.default_rng((self.seed, step))
        weights = np.array([weight for *_, weight in self.classes])
        size, members, p, _ = self.classes[rng.choice(len(self.classes), p=weights / weights.sum())]
        n = self.tiles_of_512 * (512 // size) ** 2
        tiles = [self._tile(int(k), size, rng) for k in rng.choice(members, n, p=p)]
        return TileBatch(*(np.stack(parts) for parts in zip(*tiles, strict=True)))

    def _tile(
        self, index: int, size: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
        warped, mapped = self.warped(index, size, rng)
        small = cv2.resize(warped, (size // 2, size // 2), interpolation=cv2.INTER_AREA)
        return small.astype(np.uint8), (mapped > 0).astype(np.uint8), hv_maps(mapped).astype(np.float16)

    def warped(
        self, index: int, size: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Cut a random place of an image, turned and scaled: (size, size, 3) at 0.25 um, and its instances."""
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
        mapped = connected_components(mapped, connectivity=1)  # type: ignore[no-untyped-call]
        return np.asarray(warped, np.uint8), np.asarray(mapped, np.int32)
