"""Which nuclei a filter keeps."""

import numpy as np
import pytest

from nucpipe.errors import UsageError
from segmentation.nuclei import KEEP_ALL, Nuclei, NucleusFilter


def nuclei(areas: list[float], probabilities: list[float]) -> Nuclei:
    """Triangles; only their numbers matter."""
    n = len(areas)
    points = np.arange(6.0 * n).reshape(-1, 2)
    centroids = points.reshape(n, 3, 2).mean(1)
    return Nuclei(centroids, np.arange(n + 1) * 3, points, np.float32(probabilities), np.float32(areas))


def test_the_least_ones_are_kept_and_what_is_below_is_not() -> None:
    found = nuclei([3.9, 4.1, 4.1, 50], [0.9, 0.7, 0.699, 0.7])
    kept = NucleusFilter(4.1, 0.7).apply(found)  # 4.1 and 0.7 are other numbers in single precision
    np.testing.assert_array_equal(kept.area_um2, np.float32([4.1, 50]))
    np.testing.assert_array_equal(kept.contour(1), found.contour(3))
    assert len(NucleusFilter(min_area_um2=4).apply(found)) == 3
    assert len(NucleusFilter(min_detection_p=0.8).apply(found)) == 1
    assert len(KEEP_ALL.apply(nuclei([0, 1], [0, 1]))) == 2
    assert len(NucleusFilter(5, 0.9).apply(Nuclei.empty())) == 0


def test_it_is_written_and_read_and_said() -> None:
    for kept in (KEEP_ALL, NucleusFilter(4), NucleusFilter(0, 0.75), NucleusFilter(4.5, 0.75)):
        assert NucleusFilter.from_dict({"precision": "fp32", **kept.to_dict()}) == kept
    assert KEEP_ALL.to_dict() == {}
    assert NucleusFilter(4.5).to_dict() == {"min_area_um2": 4.5}
    assert str(NucleusFilter(4.5, 0.75)) == "at least 4.5 µm², detection at least 0.75"
    assert str(KEEP_ALL) == "all"


@pytest.mark.parametrize("area", [-1, float("nan"), float("inf")])
def test_an_impossible_area_is_refused(area: float) -> None:
    with pytest.raises(UsageError, match=r"--min-area .*: expected square micrometres, 0 or more"):
        NucleusFilter(area)


@pytest.mark.parametrize("p", [-0.1, 1.01, 75, float("nan")])
def test_an_impossible_probability_is_refused(p: float) -> None:
    with pytest.raises(UsageError, match=r"--min-detection .*: expected a probability, 0 to 1"):
        NucleusFilter(0, p)
