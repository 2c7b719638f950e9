"""A network run by PyTorch, and its conversion for OpenVINO."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from nucpipe.backends.base import Floats, Input, Pixels, assert_finite, filled_up
from nucpipe.backends.device import autocast_type
from nucpipe.optional.openvino import import_openvino

CUDA_CALLS = 2
"""Calls at once on a GPU: while one computes, the other's pixels are copied."""

CUDA_SIDE_STEP_PX = 640
"""On a GPU varying sides are multiples of this: a read box of the default region size has two of them."""


class PyTorchBackend:
    """A network run by PyTorch. Where the device's memory does not hold a batch, it goes on with half of it.

    On a GPU cuDNN chooses its kernels anew for each shape of a batch, which took three to seven seconds on an H100
    (docs/speed.md). So few shapes come to it: varying sides are multiples of a large step, and batches of images of
    one size are filled up to the largest so far.

    Args:
        network: to run.
        device, precision: where and how.
        threads: that PyTorch takes on a processor, from now on and for all; None: as it is.
        batch_rows: images of one size that a batch has at least on a GPU.
        inputs: what the network takes.
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        device: str,
        precision: str,
        threads: int | None = None,
        batch_rows: int = 1,
        inputs: Sequence[Input] = (Input(),),
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.side_step_px = CUDA_SIDE_STEP_PX if self.device.type == "cuda" else 1
        self._one_size = all(view.side_px is not None for view in inputs)
        self._rows = batch_rows
        self.precision = autocast_type(precision)
        network = network.to(device).eval()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = with_weights_in(self.precision, network)
        self.max_concurrency = CUDA_CALLS if self.device.type == "cuda" else 1
        self.largest: int | None = None
        self._of_thread = threading.local()

    def __call__(self, *pixels: Pixels) -> Floats:
        """See :class:`nucpipe.backends.base.Backend`."""
        parts: list[Floats] = []
        start, step, count = 0, self.largest or len(pixels[0]), len(pixels[0])
        while start < count:
            try:
                parts.append(self._run([view[start : start + step] for view in pixels]))
                start += step
            except torch.OutOfMemoryError as error:
                step = min(step, count - start) // 2
                if step == 0:
                    raise MemoryError(f"{self.device} has too little memory for one image") from error
                self.largest = step
                torch.cuda.empty_cache()
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _filled(self, count: int) -> int:
        """Return how many images a batch of ``count`` is filled up to."""
        if self.side_step_px == 1 or not self._one_size:
            return count
        rows = self._rows
        while rows < count:
            rows *= 2
        self._rows = rows
        return min(rows, self.largest or rows)

    def _run(self, pixels: Sequence[Pixels]) -> Floats:
        count = len(pixels[0])
        rows = self._filled(count)
        return assert_finite(self._compute([filled_up(view, rows) for view in pixels])[:count])

    def _compute(self, pixels: Sequence[Pixels]) -> Floats:
        batch = [torch.from_numpy(np.ascontiguousarray(view)) for view in pixels]
        cast = torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)
        if self.device.type != "cuda":
            with torch.inference_mode(), cast:
                return self._forward([view.to(self.device) for view in batch])
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(self._of_thread.stream), cast:
            return self._forward([view.pin_memory().to(self.device, non_blocking=True) for view in batch])

    def _forward(self, batch: Sequence[torch.Tensor]) -> Floats:
        planes = [view.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last) for view in batch]
        result: Floats = self.network(*planes).float().cpu().numpy()
        return result


def with_weights_in(precision: torch.dtype | None, network: nn.Module) -> nn.Module:
    """Return a copy of a network for autocast to ``precision``, the weights of its layers converted once; the network
    itself without autocast, where that is None.

    Autocast converts them anew in each call, and a GPU computes a small batch sooner than it is told to do that.
    """
    if precision is None:
        return network
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(precision)
    return network


class _PixelsLast(nn.Module):
    """A network that takes (N, H, W, channels)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *pixels: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(*(view.permute(0, 3, 1, 2) for view in pixels))
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


def to_openvino(network: nn.Module, *shapes: tuple[int, ...]) -> Any:
    """Return an OpenVINO model of a network, traced with an image of each shape (1, H, W, channels); its inputs are
    uint8.

    ``openvino.convert_model`` does the same, but traces three times.
    """
    example = tuple(torch.zeros(shape, dtype=torch.uint8) for shape in shapes)
    # PyTorch deprecates tracing, and warns of every size that becomes a constant.
    with torch.inference_mode(), warnings.catch_warnings(), _one_thread():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_PixelsLast(network).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
    frontend = import_openvino("frontend").FrontEndManager().load_by_framework("pytorch")
    frontend.add_extension(
        import_openvino("frontend.pytorch").ConversionExtension("aten::pixel_shuffle", _depth_to_space)
    )
    decoder = import_openvino("frontend.pytorch.ts_decoder").TorchScriptPythonDecoder(
        traced
    )  # must live as long as the conversion
    return frontend.convert(frontend.load(decoder))


def _depth_to_space(node: Any) -> list[Any]:
    """Return a pixel shuffle as the one operation that it is; OpenVINO's own conversion turns and reorders all it
    moves.
    """
    factor = int(node.get_values_from_const_input(1))
    return [import_openvino("opset8").depth_to_space(node.get_input(0), "depth_first", factor).output(0)]
