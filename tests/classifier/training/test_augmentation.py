"""What a training shows its network, and what its teachers."""

import torch

from classifier.training.augmentation import augment, augment_views, exchange_sharpness
from nucpipe.training.augmentation import optical_density


def texture(n: int, side: int, seed: int) -> torch.Tensor:
    """Return N images of smooth blobs with fine grain: (N, 3, S, S), 0-255."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, side // 8, side // 8, generator=rng)
    blobs = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return (60 + 120 * blobs + 25 * torch.randn(n, 3, side, side, generator=rng)).clamp(1, 254)


def fineness(image: torch.Tensor) -> float:
    """Return how strong an image's fine frequencies are beside its coarse ones."""
    side = image.shape[-1]
    waves = torch.fft.rfft2(optical_density(image)).abs().mean(0)
    radius = (torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.rfftfreq(side) ** 2).sqrt()
    return float(waves[(radius > 0.2) & (radius < 0.45)].mean() / waves[(radius > 0.04) & (radius < 0.09)].mean())


def test_a_patch_gets_the_sharpness_of_another_and_keeps_its_structure() -> None:
    sharp = texture(1, 64, 0)
    blurred = torch.nn.functional.avg_pool2d(texture(1, 64, 1), 3, 1, 1, count_include_pad=False)
    both = torch.cat([sharp, blurred])
    seed = next(s for s in range(20) if torch.randperm(2, generator=torch.Generator().manual_seed(s))[0] == 1)
    changed = exchange_sharpness(both, torch.ones(2), torch.Generator().manual_seed(seed))
    before, after = [fineness(one) for one in both], [fineness(one) for one in changed]
    assert before[0] > 2.5 * before[1]
    assert after[0] < 0.6 * before[0]
    assert after[1] > 1.6 * before[1]
    smooth = [torch.nn.functional.avg_pool2d(images, 8) for images in (both, changed)]
    torch.testing.assert_close(*smooth, atol=12, rtol=0)  # the blobs are where they were
    assert torch.equal(exchange_sharpness(both, torch.zeros(2), torch.Generator().manual_seed(seed)), both)


def test_teachers_see_what_the_pupil_sees_in_its_own_colours() -> None:
    n, middle = 8, slice(24, 40)
    patches = texture(n, 96, 2).byte()
    contexts = torch.cat([texture(n, 96, 3), torch.full((n, 1, 96, 96), 255.0)], 1).byte()
    plain = {}
    for share in (0.0, 1.0):
        chances = torch.full((n,), share)
        shown, plain[share] = augment_views(patches, contexts, 0.5, chances, chances, torch.Generator().manual_seed(5))
        assert shown.contexts is not None
        assert plain[share].contexts is not None
        assert torch.equal(shown.contexts[:, 3], plain[share].contexts[:, 3])  # both lack the same contexts
        assert not torch.allclose(shown.patches, plain[share].patches, atol=5)
    assert torch.equal(plain[0.0].patches, plain[1.0].patches)
    assert torch.equal(plain[0.0].contexts, plain[1.0].contexts)
    # Its grey levels are those of the stored patch, which turning and scaling do not change much.
    near, stored = plain[0.0].patches[..., middle, middle], patches[..., 40:56, 40:56].float()
    torch.testing.assert_close(near.mean((1, 2, 3)), stored.mean((1, 2, 3)), atol=15, rtol=0)
    alone, unchanged = augment(patches, 64, 32, torch.Generator().manual_seed(5))
    assert alone.patches.shape == unchanged.patches.shape == (n, 3, 32, 32)
    assert alone.contexts is None
    assert not torch.equal(alone.patches, unchanged.patches)
