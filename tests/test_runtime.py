"""Networks ready to run: OpenVINO says what PyTorch says, and neither batches nor threads change it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from classifier.model import load_classifier, probabilities
from classifier.predictor import ROWS, Predictor
from nucpipe.common.padding import fix_padding
from nucpipe.common.runtime import TorchRuntime, ready
from pipeline.models import find_model
from synthetic import draw_slide

CPU = torch.device("cpu")
openvino = pytest.importorskip("openvino", reason="OpenVINO is for x86 processors")


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    image = draw_slide(700, 500).image.astype(int)
    noise = np.random.default_rng(0).normal(0, 12, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return np.stack([image[y : y + 64, x : x + 64] for y in range(0, 400, 97) for x in range(0, 600, 97)])


def predictor(precision: torch.dtype | None, threads: int = 2) -> Predictor:
    model, _, outputs = load_classifier(find_model("classifier", "joint-lite0"))
    return Predictor(model, outputs, CPU, precision, threads)


@pytest.fixture(scope="module", params=[(None, 1e-4), (torch.bfloat16, 0.1)], ids=["fp32", "bf16"])
def both(request: pytest.FixtureRequest) -> tuple[Predictor, torch.dtype | None, float]:
    return predictor(request.param[0]), *request.param


def test_openvino_says_what_pytorch_says(both: tuple[Predictor, torch.dtype | None, float], crops: np.ndarray) -> None:
    fast, precision, tolerance = both
    assert fast.runtime(64).name == "openvino"
    model, _, outputs = load_classifier(find_model("classifier", "joint-lite0"))
    plain = TorchRuntime(fast_network(model), CPU, None)
    expected = probabilities(torch.from_numpy(plain(crops)), outputs).numpy()
    found = fast(crops).probabilities
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert abs(found - expected).mean() < tolerance / 10
    agree = [(outputs.best(found)[name] == numbers).mean() for name, numbers in outputs.best(expected).items()]
    assert np.mean(agree) > (0.999 if precision is None else 0.97)


def fast_network(model: torch.nn.Module) -> torch.nn.Module:
    from classifier.predictor import Enlarged

    return Enlarged(model).eval()  # type: ignore[arg-type]


def test_batches_and_threads_change_no_bit(
    both: tuple[Predictor, torch.dtype | None, float], crops: np.ndarray
) -> None:
    fast = both[0]
    assert fast.calls == 2
    whole = fast(crops).probabilities
    for size in (1, ROWS - 1, ROWS, ROWS + 5):
        parts = [crops[i : i + size] for i in range(0, len(crops), size)]
        with ThreadPoolExecutor(4) as pool:  # more callers than threads: some wait
            rows = np.concatenate([labels.probabilities for labels in pool.map(fast, parts)])
        np.testing.assert_array_equal(rows, whole)


def test_windows_at_half_the_resolution_are_enlarged(crops: np.ndarray) -> None:
    model, _, outputs = load_classifier(find_model("classifier", "fast"))
    small = np.ascontiguousarray(crops[:, ::2, ::2])
    expected = probabilities(torch.from_numpy(TorchRuntime(fast_network(model), CPU, None)(small)), outputs).numpy()
    fast = Predictor(model, outputs, CPU, None, 1)
    np.testing.assert_allclose(fast(small).probabilities, expected, atol=1e-4)
    assert abs(fast(crops).probabilities - expected).max() > 0.01  # one predictor takes both sizes


def test_fixed_padding_is_the_padding_of_even_sides() -> None:
    from timm.layers.conv2d_same import Conv2dSame

    pixels = torch.randn(2, 4, 48, 32, generator=torch.Generator().manual_seed(0))
    for size, stride in ((3, 1), (3, 2), (5, 2), (1, 2)):
        conv = Conv2dSame(4, 4, size, stride, groups=2)
        fixed = torch.nn.Sequential(conv)
        fix_padding(fixed)
        assert not isinstance(fixed[0], Conv2dSame)
        assert torch.equal(fixed(pixels), conv(pixels))


class Shuffled(torch.nn.Module):
    """Channels that become pixels."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(torch.cat([pixels.float()] * 6, dim=1) * 2, 3)


def test_a_pixel_shuffle_is_the_same_in_openvino() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    runtime = ready(Shuffled().eval(), CPU, None, threads=1, rows=2)
    assert runtime.name == "openvino"
    np.testing.assert_array_equal(runtime(pixels), TorchRuntime(Shuffled(), CPU, None)(pixels))


def test_no_crops_no_labels() -> None:
    assert predictor(None)(np.zeros((0, 64, 64, 3), np.uint8)).probabilities.shape == (0, 35)


class Means(torch.nn.Module):
    """Mean colours; a batch of more than three does not fit."""

    def __init__(self, most: int = 3) -> None:
        super().__init__()
        self.most = most
        self.sizes: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(pixels))
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("too many")
        return pixels.float().mean((2, 3))


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), np.uint8)
    network = Means()
    runtime = TorchRuntime(network, CPU, None)
    for _ in range(2):
        np.testing.assert_allclose(runtime(pixels), pixels.mean((1, 2)), rtol=1e-5)
    # 21, 10, 5 do not fit; 2 does, then and from the start of the next batch on.
    assert network.sizes == [21, 10, 5, *[2] * 10, 1, *[2] * 10, 1]
    with pytest.raises(MemoryError, match="too little memory for one image"):
        TorchRuntime(Means(0), CPU, None)(pixels)


class Odd(torch.nn.Module):
    """What OpenVINO has no rule for."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(pixels.float(), torch.ones(2, pixels.shape[-1]), dims=([3], [1]))


def test_what_openvino_cannot_run_pytorch_does() -> None:
    runtime = ready(Odd().eval(), CPU, None, threads=2, rows=1, side_px=16)
    assert runtime.name == "torch"
    assert runtime(np.ones((1, 16, 16, 3), np.uint8)).shape == (1, 3, 16, 2)
