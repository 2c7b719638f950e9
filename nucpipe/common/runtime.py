"""A network made ready to run: by OpenVINO on an x86 processor, by PyTorch elsewhere.

On AVX-512 cores OpenVINO runs both networks two to five times as fast as PyTorch does, in the same precision. Its
convolutions give a pixel the same bits wherever it lies and however large the image is, so that what is cut in other
ways gives the same result.
"""

from __future__ import annotations

import logging
import queue
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

CUDA_CALLS = 2
"""Calls at once on a GPU: while one computes, the other's pixels are copied."""

EXAMPLE_PX = 512
"""Side of the image that a network is traced with where sizes vary: larger than any margin."""


class Runtime(Protocol):
    """A network that takes pixels and gives numbers; may be called from several threads.

    Attributes:
        name: ``openvino`` or ``torch``.
        calls: how many calls at once use the device fully; further ones wait.
    """

    name: str
    calls: int

    def __call__(self, pixels: Pixels) -> Floats:
        """The network's output for (N, H, W, 3) uint8 RGB, N at least 1: (N, ...) float32."""


def ready(
    network: nn.Module,
    device: torch.device,
    precision: torch.dtype | None,
    threads: int,
    rows: int,
    side_px: int | None = None,
) -> Runtime:
    """The fastest way to run a network there.

    Args:
        network: from (N, 3, H, W) uint8 to one tensor, in evaluation mode. Its layers must not depend on H and W, but
            for their sizes.
        device: to run on.
        precision: type to compute in, None for float32.
        threads: processors that it may use.
        rows: images that OpenVINO computes at a time. Always so many, so that a batch's size changes no bit.
        side_px: height and width of every image; None where they vary.
    """
    if device.type == "cpu":
        try:
            return OpenVINORuntime(network, precision, threads, rows, side_px)
        except ImportError:
            pass  # there is none for this platform
        except Exception:  # OpenVINO's exceptions have no base of their own; it lacks something that this network uses
            logging.getLogger(__name__).debug("OpenVINO cannot run %s", type(network).__name__, exc_info=True)
    return TorchRuntime(network, device, precision)


class TorchRuntime:
    """A network run by PyTorch. Where the device's memory does not hold a batch, it goes on with half of it."""

    name = "torch"

    def __init__(self, network: nn.Module, device: torch.device, precision: torch.dtype | None) -> None:
        self.network = network.to(device).eval()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.precision = precision
        self.calls = CUDA_CALLS if device.type == "cuda" else 1
        self.largest: int | None = None
        self._of_thread = threading.local()

    def __call__(self, pixels: Pixels) -> Floats:
        """See :class:`Runtime`."""
        parts: list[Floats] = []
        start, step = 0, self.largest or len(pixels)
        while start < len(pixels):
            try:
                parts.append(self._run(pixels[start : start + step]))
                start += step
            except torch.OutOfMemoryError as error:
                step = min(step, len(pixels) - start) // 2
                if step == 0:
                    raise MemoryError(f"{self.device} has too little memory for one image") from error
                self.largest = step
                torch.cuda.empty_cache()
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _run(self, pixels: Pixels) -> Floats:
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        cast = torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)
        if self.device.type != "cuda":
            with torch.inference_mode(), cast:
                return self._forward(batch)
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(self._of_thread.stream), cast:
            return self._forward(batch.pin_memory().to(self.device, non_blocking=True))

    def _forward(self, batch: torch.Tensor) -> Floats:
        planes = batch.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        result: Floats = self.network(planes).float().cpu().numpy()
        return result


class OpenVINORuntime:
    """A network run by OpenVINO on the CPU, one thread a call, as many calls at once as ``threads``."""

    name = "openvino"

    def __init__(
        self,
        network: nn.Module,
        precision: torch.dtype | None,
        threads: int,
        rows: int,
        side_px: int | None = None,
    ) -> None:
        """Convert and compile, which takes about a second.

        Raises:
            ImportError: OpenVINO is not installed.
            Exception: it cannot run this network.
        """
        import openvino

        model = _converted(network, side_px or EXAMPLE_PX)
        model.reshape([rows, side_px or -1, side_px or -1, 3])
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision is torch.bfloat16 else "f32",
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            # Several processes may share the machine: each would pin its threads to the same processors.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = openvino.Core().compile_model(model, "CPU", settings)
        self.calls = threads
        self.rows = rows
        # A request holds the memory of one call under way.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            self._idle.put(self._compiled.create_infer_request())

    def __call__(self, pixels: Pixels) -> Floats:
        """See :class:`Runtime`."""
        request = self._idle.get()
        try:
            parts = [self._run(request, pixels[i : i + self.rows]) for i in range(0, len(pixels), self.rows)]
        finally:
            self._idle.put(request)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _run(self, request: Any, pixels: Pixels) -> Floats:
        missing = self.rows - len(pixels)
        full = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)]) if missing else pixels
        result: Floats = request.infer([np.ascontiguousarray(full)], share_inputs=True)[0]
        return result[: len(pixels)].copy()  # the request's own memory is used again


class _PixelsLast(nn.Module):
    """A network that takes (N, H, W, 3)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(pixels.permute(0, 3, 1, 2))
        return output


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch with one thread: on one image, waiting for each other costs its threads more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _converted(network: nn.Module, side_px: int) -> Any:
    """An OpenVINO model of a network; its input is (N, H, W, 3) uint8.

    ``openvino.convert_model`` does the same, but traces three times and reports its use over the internet.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch import ConversionExtension
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.zeros((1, side_px, side_px, 3), dtype=torch.uint8)
    # PyTorch deprecates tracing, and warns of every size that becomes a constant.
    with torch.inference_mode(), warnings.catch_warnings(), _one_thread():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_PixelsLast(network).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
    frontend = FrontEndManager().load_by_framework("pytorch")
    frontend.add_extension(ConversionExtension("aten::pixel_shuffle", _depth_to_space))
    decoder = TorchScriptPythonDecoder(traced)  # must live as long as the conversion
    return frontend.convert(frontend.load(decoder))


def _depth_to_space(node: Any) -> list[Any]:
    """A pixel shuffle as the one operation that it is; OpenVINO's own conversion turns and reorders all it moves."""
    from openvino import opset8

    factor = int(node.get_values_from_const_input(1))
    return [opset8.depth_to_space(node.get_input(0), "depth_first", factor).output(0)]
