"""The scale bar's length and text."""

from __future__ import annotations

import pytest

from pipeline.export.figures.scale_bar import LENGTHS_UM, length_text, scale_bar


@pytest.mark.parametrize(
    ("width_um", "length_um", "text"),
    [
        (1107.8, 200, "200 µm"),
        (3.9, 0.5, "0.5 µm"),
        (4, 1, "1 µm"),
        (20_000, 5000, "5 mm"),
        (3999, 500, "500 µm"),
        (4000, 1000, "1 mm"),
        (0.01, 0.01, "0.01 µm"),
    ],
)
def test_the_longest_round_length_within_a_quarter(width_um: float, length_um: float, text: str) -> None:
    assert scale_bar(width_um) == (pytest.approx(length_um), text)


def test_every_length_has_a_short_text() -> None:
    texts = [length_text(length) for length in LENGTHS_UM]
    assert len(set(texts)) == len(texts)
    assert all(len(text) <= 7 for text in texts)
