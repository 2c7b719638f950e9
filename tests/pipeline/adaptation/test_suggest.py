"""Which nuclei are offered for a correction: spread at first, then those that the labels leave open."""

import numpy as np
import pytest

from pipeline.adaptation.suggest import CELLS, suggest

SIZE = (1000, 1000)
EVERY = np.arange(300)
LABELS = np.repeat([0, 1, 2], 100)


@pytest.fixture
def nuclei() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base and adapted probabilities, sure of three labels, and centroids; three nuclei have changed their label."""
    adapted = np.full((300, 3), 0.05, np.float32)
    adapted[EVERY, LABELS] = 0.9
    base = adapted.copy()
    base[[97, 197, 297]] = np.roll(base[[97, 197, 297]], 1, axis=1)
    return base, adapted, np.random.default_rng(0).uniform(0, 1000, (300, 2)).astype(np.float32)


def test_labels_take_turns_and_none_is_offered_twice(nuclei: tuple[np.ndarray, ...]) -> None:
    found = suggest(*nuclei, SIZE, EVERY, EVERY[:0], 30)
    assert LABELS[found].tolist() == [0, 1, 2] * 10
    assert len(set(found.tolist())) == 30
    assert not len(suggest(*nuclei, SIZE, EVERY, EVERY, 9))
    after = suggest(*nuclei, SIZE, EVERY, EVERY[:100], 4)
    assert LABELS[after].tolist() == [1, 2, 1, 2]


def test_first_ones_lie_all_over_the_slide(nuclei: tuple[np.ndarray, ...]) -> None:
    centroids = nuclei[2]
    centroids[150:] /= 20  # half of all nuclei lie in one corner
    found = suggest(*nuclei, SIZE, EVERY, EVERY[:0], 30)
    assert len({tuple(cell) for cell in (centroids[found] * CELLS // 1000).astype(int).tolist()}) >= 18


def test_disagreement_counts_the_more_the_more_is_corrected(nuclei: tuple[np.ndarray, ...]) -> None:
    def changed(corrected: np.ndarray) -> int:
        """Count, over ten draws of three, those whose label has changed."""
        offered = [suggest(*nuclei, SIZE, EVERY, corrected, 3, seed) for seed in range(10)]
        return int(np.isin(offered, [97, 197, 297]).sum())

    assert changed(EVERY[:0]) <= 3
    assert changed(np.concatenate([EVERY[:20], EVERY[100:120], EVERY[200:220]])) >= 20
