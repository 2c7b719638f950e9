"""Preprocessing of images of single nuclei."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from nucpipe.errors import DataError
from nucpipe.optional.tiatoolbox import import_tiatoolbox, quiet

Pixels = npt.NDArray[np.uint8]
"""RGB (H, W, 3) uint8."""

Step = Callable[[Pixels], Pixels]

DENOISE_STRENGTH = 4.0
"""Strength of non-local means, in grey levels: about the noise of a slide scanner's JPEG."""
SHARPEN_SIGMA_PX = 1.0
SHARPEN_AMOUNT = 0.6


def denoise(image: Pixels) -> Pixels:
    """Denoise by non-local means (Buades et al. 2011), in luminance and colour."""
    strength = DENOISE_STRENGTH
    return cv2.fastNlMeansDenoisingColored(image, None, strength, strength, 5, 15).astype(np.uint8, copy=False)


def sharpen(image: Pixels) -> Pixels:
    """Return an unsharp mask: what a Gaussian takes away is added."""
    blurred = cv2.GaussianBlur(image, (0, 0), SHARPEN_SIGMA_PX)
    return cv2.addWeighted(image, 1 + SHARPEN_AMOUNT, blurred, -SHARPEN_AMOUNT, 0).astype(np.uint8, copy=False)


def stain_normaliser(target: Pixels, method: str) -> Step:
    """Return a step that gives images the stains of ``target``, by tiatoolbox.

    Args:
        target: an H&E image.
        method: ``macenko``, ``vahadane``, ``reinhard`` or ``ruifrok``.

    Raises:
        DataError: the target shows no stain. The step raises it too.
    """
    normaliser = import_tiatoolbox("tools.stainnorm").get_normalizer(method)

    def tried(work: Callable[[Pixels], Pixels | None], image: Pixels) -> Pixels | None:
        # On an image without tissue the estimates of the stains fail in many ways, or come out as NaN.
        try:
            with quiet(), np.errstate(all="raise", under="ignore"):
                return work(image)
        except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError) as error:
            raise DataError(f"no stain found in it to normalise ({error}).") from error

    def step(image: Pixels) -> Pixels:
        done = tried(normaliser.transform, image)
        assert done is not None
        return done

    tried(normaliser.fit, target)
    return step
