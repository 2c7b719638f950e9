"""Networks ready to run: OpenVINO says what PyTorch says, and neither batches nor threads change it."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from classifier.network import TwoViewClassifier, load_classifier, of_patches
from classifier.predictions import probabilities
from classifier.predictor import ROWS, Predictor, load_predictor
from classifier.spec import CONTEXT_PX
from nucpipe.backends.base import Backend, Input
from nucpipe.backends.conversion_cache import network_key
from nucpipe.backends.device import _gpu_possible
from nucpipe.backends.model_file import load_model, save_model
from nucpipe.backends.pytorch import CUDA_SIDE_STEP_PX, PyTorchBackend
from nucpipe.backends.select import select_backend
from nucpipe.errors import ModelError
from pipeline.inference.models import find_model
from segmentation.hovernet.detector import HoVerNetDetector
from segmentation.hovernet.network import WithoutMargin, read_hovernet
from segmentation.hovernet.padding import fix_padding
from segmentation.hovernet.spec import MARGIN_PX
from tests.support.synthetic import draw_slide

if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO is for x86 processors", allow_module_level=True)


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    image = draw_slide(700, 500).image.astype(int)
    noise = np.random.default_rng(0).normal(0, 12, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return np.stack([image[y : y + 64, x : x + 64] for y in range(0, 400, 97) for x in range(0, 600, 97)])


@pytest.fixture(scope="module", params=[("fp32", 1e-4), ("bf16", 0.1)], ids=["fp32", "bf16"])
def both(request: pytest.FixtureRequest) -> tuple[Predictor, str, float]:
    precision, tolerance = request.param
    path = find_model("classifier", "joint-context")
    return load_predictor(path, precision=precision, threads=2), precision, tolerance


def test_openvino_says_what_pytorch_says(both: tuple[Predictor, str, float], crops: np.ndarray) -> None:
    fast, precision, tolerance = both
    assert fast.runtime(64).name == "openvino"
    outputs, expected = fast.outputs, by_pytorch("joint-context", crops)
    found = fast(crops).probabilities
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert abs(found - expected).mean() < tolerance / 10
    agree = [(outputs.best(found)[name] == numbers).mean() for name, numbers in outputs.best(expected).items()]
    assert np.mean(agree) > (0.999 if precision == "fp32" else 0.97)


def by_pytorch(name: str, crops: np.ndarray) -> np.ndarray:
    model, _, outputs = load_classifier(find_model("classifier", name))
    two_views = isinstance(model, TwoViewClassifier)
    contexts = [np.zeros((len(crops), CONTEXT_PX, CONTEXT_PX, 4), np.uint8)] if two_views else []
    return probabilities(PyTorchBackend(of_patches(model), "cpu", "fp32")(crops, *contexts), outputs)


def test_batches_and_threads_change_no_bit(both: tuple[Predictor, str, float], crops: np.ndarray) -> None:
    fast = both[0]
    assert fast.max_concurrency == 2
    whole = fast(crops).probabilities
    for size in (1, ROWS - 1, ROWS, ROWS + 5):
        parts = [crops[i : i + size] for i in range(0, len(crops), size)]
        with ThreadPoolExecutor(4) as pool:  # more callers than threads: some wait
            batch_rows = np.concatenate([labels.probabilities for labels in pool.map(fast, parts)])
        np.testing.assert_array_equal(batch_rows, whole)


def test_windows_at_half_the_resolution_are_enlarged(crops: np.ndarray) -> None:
    small = np.ascontiguousarray(crops[:, ::2, ::2])
    expected = by_pytorch("fast", small)
    fast = load_predictor(find_model("classifier", "fast"))
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
    runtime = select_backend(Shuffled, "cpu", "fp32", threads=1, batch_rows=2)
    assert runtime.name == "openvino"
    np.testing.assert_array_equal(runtime(pixels), PyTorchBackend(Shuffled(), "cpu", "fp32")(pixels))


def test_weights_in_half_precision_give_what_autocast_gives_and_the_network_keeps_its_own(crops: np.ndarray) -> None:
    network = of_patches(load_classifier(find_model("classifier", "fast"))[0])
    pixels = torch.from_numpy(crops[:4]).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = network(pixels).float().numpy()
    np.testing.assert_array_equal(PyTorchBackend(network, "cpu", "bf16")(crops[:4]), expected)
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


def test_no_crops_no_labels() -> None:
    assert load_predictor(find_model("classifier", "fast"))(np.zeros((0, 64, 64, 3), np.uint8)).probabilities.shape == (
        0,
        35,
    )


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
    runtime = PyTorchBackend(network, "cpu", "fp32")
    for _ in range(2):
        np.testing.assert_allclose(runtime(pixels), pixels.mean((1, 2)), rtol=1e-5)
    # 21, 10, 5 do not fit; 2 does, then and from the start of the next batch on.
    assert network.sizes == [21, 10, 5, *[2] * 10, 1, *[2] * 10, 1]
    with pytest.raises(MemoryError, match="too little memory for one image"):
        PyTorchBackend(Means(0), "cpu", "fp32")(pixels)


def test_few_shapes_reach_a_gpu() -> None:
    """Each new one costs it seconds; on a processor as much is computed as is asked for."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8)
    network = Means(most=128)
    backend = PyTorchBackend(network, "cpu", "fp32", batch_rows=8, inputs=[Input(8)])
    backend.side_step_px = CUDA_SIDE_STEP_PX
    for count in (20, 64, 5, 70, 64):
        np.testing.assert_allclose(backend(pixels[:count]), pixels[:count].mean((1, 2)), rtol=1e-5)
    assert network.sizes == [32, 64, 64, 128, 128]


def test_read_boxes_of_few_sizes_reach_a_gpu() -> None:
    shapes = []

    class Recorded(PyTorchBackend):
        def __call__(self, *pixels: np.ndarray) -> np.ndarray:
            shapes.append(pixels[0].shape[1:3])
            return super().__call__(*pixels)

    network = WithoutMargin(read_hovernet(find_model("segmentor", "hovernet-compact"))[0]).eval()
    backend = Recorded(network, "cpu", "fp32")
    detector = HoVerNetDetector(backend)
    rng = np.random.default_rng(1)
    for height, width in ((592, 656), (592, 640)):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        backend.side_step_px = 1
        expected = detector.predict(pixels)
        backend.side_step_px = CUDA_SIDE_STEP_PX
        maps = detector.predict(pixels)
        assert maps.shape == expected.shape == (3, 2 * (height - 2 * MARGIN_PX), 2 * (width - 2 * MARGIN_PX))
        np.testing.assert_allclose(maps, expected, atol=2e-3)
    assert shapes == [(592, 656), (1280, 1280), (592, 640), (640, 640)]


class Odd(torch.nn.Module):
    """What OpenVINO has no rule for."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.tensordot(pixels.float(), torch.ones(2, pixels.shape[-1]), dims=([3], [1]))


class Allocated(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()  # noqa: SIM905
    )


def test_memory_does_not_grow_with_the_number_of_sizes() -> None:
    """Read boxes reach as far as the tissue in them: hundreds of sizes on a large slide."""
    try:
        allocated = ctypes.CDLL(None).mallinfo2
    except (AttributeError, TypeError):
        pytest.skip("no glibc that says what is allocated")
    allocated.restype = Allocated

    def build() -> torch.nn.Module:
        layers = [[torch.nn.Conv2d(8 + k if k else 3, 9 + k, 3, padding=1), torch.nn.ReLU()] for k in range(8)]
        return torch.nn.Sequential(Floats(), *(module for pair in layers for module in pair))

    class Floats(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.float()

    runtime = select_backend(build, "cpu", "fp32", 1, 1)
    assert runtime.name == "openvino"

    def used(sides: range) -> float:
        for height in sides:
            for width in sides:
                runtime(np.zeros((1, height, width, 3), np.uint8))
        now = allocated()
        return float(now.uordblks + now.hblkhd) / 1e6

    before = used(range(60, 72))  # the library below keeps its 1024 latest pieces, eight of a size
    assert used(range(72, 82)) - before < 2


def test_what_openvino_cannot_run_pytorch_does() -> None:
    runtime = select_backend(Odd, "cpu", "fp32", threads=torch.get_num_threads(), batch_rows=1, inputs=[Input(16)])
    assert runtime.name == "torch"
    assert runtime(np.ones((1, 16, 16, 3), np.uint8)).shape == (1, 3, 16, 2)


LOADS = """
import sys, numpy as np
from pipeline.inference.models import load_models
models = load_models("hovernet-compact", "fast", "auto", "auto", workers=1)
pixels = np.random.default_rng(0).integers(0, 256, (432, 432, 3), np.uint8)
crops = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
kept_torch = "torch" in sys.modules
np.savez(sys.argv[1], maps=models.detector.predict(pixels), p=models.classifier(crops).probabilities,
         small=models.classifier(crops[:, ::2, ::2].copy()).probabilities, torch=kept_torch)
"""


def loaded(out: Path, cache: Path) -> dict[str, np.ndarray]:
    """What the bundled models say in a process of its own, and whether PyTorch was imported."""
    environment = {**os.environ, "NUCPIPE_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", LOADS, str(out)], check=True, env=environment)
    with np.load(out) as said:
        return dict(said)


@pytest.mark.skipif(_gpu_possible(), reason="whether there is a GPU only PyTorch can tell")
def test_what_openvino_was_given_once_is_kept_and_pytorch_not_needed_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, second = (loaded(tmp_path / f"{k}.npz", cache) for k in range(2))
    assert (bool(first["torch"]), bool(second["torch"])) == (True, False)
    for name in ("maps", "p", "small"):
        np.testing.assert_array_equal(first[name], second[name])
    kept = sorted((cache / "networks").iterdir())
    assert len(kept) == 3  # the segmentor, the classifier for windows of 64 pixels and for those of 32
    # One is damaged, of another a file is gone: they are made anew.
    (kept[0] / "network.xml").write_text("<net")
    for place in kept[1:]:
        (place / "network.bin").unlink()
    third = loaded(tmp_path / "3.npz", cache)
    assert bool(third["torch"])
    np.testing.assert_array_equal(third["maps"], first["maps"])
    # Where nothing can be kept, the models run all the same.
    (tmp_path / "file").touch()
    np.testing.assert_array_equal(loaded(tmp_path / "4.npz", tmp_path / "file")["p"], first["p"])


def test_another_model_file_is_another_network(tmp_path: Path) -> None:
    fast, slow = (find_model("classifier", name) for name in ("fast", "joint-context"))
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(fast.read_bytes())
    code = [Path(__file__)]
    assert network_key(copy, code) == network_key(fast, code)
    assert len({network_key(fast, code), network_key(slow, code), network_key(fast, [])}) == 3


AT_ONCE = """
import os, sys, threading
import numpy as np
from classifier.predictor import load_predictor
from pipeline.inference.models import find_model
predictor = load_predictor(find_model("classifier", "fast"), threads=8)
go, crops = threading.Barrier(8), np.zeros((1, 64, 64, 3), np.uint8)
sys.setswitchinterval(1e-6)
def look():
    go.wait()
    predictor(crops)
threads = [threading.Thread(target=look, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(30)
os._exit(any(thread.is_alive() for thread in threads))
"""


@pytest.mark.parametrize("attempt", range(3))
def test_threads_that_all_begin_at_once_do_not_wait_for_each_other(attempt: int) -> None:
    """Where OpenVINO's first arrays are made by several threads, it hangs in three of four runs."""
    assert subprocess.run([sys.executable, "-c", AT_ONCE], check=False).returncode == 0


class Overflowing(torch.nn.Module):
    """Gives infinity for bright pixels."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.exp(pixels.float()).mean((2, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: select_backend(Overflowing, "cpu", "fp32", 1, 1, [Input(8)]),
        lambda: PyTorchBackend(Overflowing(), "cpu", "fp32"),
    ],
)
def test_what_is_not_finite_stops(make: Callable[[], Backend]) -> None:
    backend = make()
    assert np.isfinite(backend(np.full((1, 8, 8, 3), 3, np.uint8))).all()
    with pytest.raises(ModelError, match="NaN or infinite"):
        backend(np.full((1, 8, 8, 3), 255, np.uint8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    header, tensors = load_model(find_model("classifier", "fast"))
    name = next(key for key, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].flatten()[0] = value
    save_model(tmp_path / "bad.safetensors", header, tensors)
    with pytest.raises(ModelError, match=f"{name}.* NaN or infinite"):
        load_model(tmp_path / "bad.safetensors")
