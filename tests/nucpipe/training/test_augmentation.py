"""Changes of colour and focus."""

import torch

from nucpipe.training.augmentation import jitter_focus


def test_noise_comes_to_the_share_of_images_that_is_asked_for_and_to_no_other() -> None:
    grey = torch.full((600, 3, 16, 16), 128.0)  # a blur does nothing to it
    changed = jitter_focus(grey, torch.Generator().manual_seed(0), max_sigma_px=1.0)
    deviation = (changed - grey).flatten(1).std(1)
    noisy = deviation > 1e-3
    assert 0.25 < noisy.float().mean() < 0.35
    # Its deviation is drawn from 0 to 6, in the mean 3; the middle of the grey values is not moved.
    assert 2.5 < deviation[noisy].mean() < 3.5
    assert deviation.max() < 6.6
    torch.testing.assert_close(changed[~noisy], grey[~noisy], atol=1e-3, rtol=0)
    assert abs(changed[noisy].mean() - 128) < 0.1
