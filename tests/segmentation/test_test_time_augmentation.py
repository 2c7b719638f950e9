"""The mean over mirror images: signs and places are right, and only maps that can be averaged are."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nucpipe.errors import UsageError
from pipeline.config import RunConfig
from pipeline.run_slide import run_slide
from pipeline.store.reader import open_store
from pipeline.store.run_record import SilentReporter
from segmentation.nuclei import NucleusFilter
from segmentation.test_time_augmentation import FlipTTA
from tests.support.synthetic import MPP, DarkSpots, draw_slide, models


class Averaged(DarkSpots):
    supports_tta = True


class Lopsided(Averaged):
    """Says the place instead of looking at the pixels."""

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        rows, columns = np.mgrid[: 2 * pixels.shape[0], : 2 * pixels.shape[1]].astype(np.float32)
        return np.stack([rows + 10 * columns, columns, rows])


def test_a_detector_that_knows_no_left_or_right_says_the_same() -> None:
    pixels = draw_slide(256, 192).image[::2, ::2]
    plain, flipped = (detector.predict(pixels) for detector in (DarkSpots(), FlipTTA(Averaged())))
    assert flipped.shape == (3, 192, 256)
    np.testing.assert_allclose(flipped, plain, atol=1e-6)


def test_the_mean_is_taken_in_place_and_with_its_sign() -> None:
    maps = FlipTTA(Lopsided()).predict(np.zeros((16, 32, 3), np.uint8))
    # Rows go from 0 to 31 and columns from 0 to 63; mirrored they average to the middle.
    np.testing.assert_allclose(maps[0], 15.5 + 10 * 31.5)
    columns, rows = np.arange(64), np.arange(32)
    np.testing.assert_allclose(maps[1], np.broadcast_to((columns - (63 - columns)) / 2, (32, 64)))
    np.testing.assert_allclose(maps[2], np.broadcast_to(((rows - (31 - rows)) / 2)[:, None], (32, 64)))


def test_not_every_detector_can() -> None:
    with pytest.raises(UsageError, match="--tta"):
        FlipTTA(DarkSpots())


def test_it_keeps_what_the_detector_keeps() -> None:
    detector = Averaged()
    detector.default_filter = NucleusFilter(4, 0.7)
    assert FlipTTA(detector).default_filter == NucleusFilter(4, 0.7)


def test_a_run_remembers_it(tmp_path: Path) -> None:
    slide = draw_slide(200, 200).save(tmp_path / "slide.png")
    chosen = dataclasses.replace(models(), detector=FlipTTA(Averaged()))
    run_slide(slide, tmp_path / "out", chosen, RunConfig(mpp=MPP, tissue="none", tta=True), SilentReporter())
    assert open_store(tmp_path / "out" / "nuclei.zarr").info.settings["tta"] is True
