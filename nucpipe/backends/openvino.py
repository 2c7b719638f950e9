"""A network run by OpenVINO on the CPU.

On AVX-512 cores OpenVINO runs both networks two to five times as fast as PyTorch does, in the same precision. Its
convolutions give a pixel the same bits wherever it lies and however large the image is, so that the way in which a
slide is cut changes no result. A converted network is kept (see ``nucpipe.backends.conversion_cache``); later runs do
without PyTorch, which takes seconds and half a gigabyte to import.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from nucpipe.backends.base import Floats, Input, Pixels, assert_finite, filled_up
from nucpipe.backends.conversion_cache import converted_network
from nucpipe.optional.openvino import import_openvino

if TYPE_CHECKING:
    from torch import nn

_preparing = threading.Lock()


def _prepare_openvino() -> None:
    """Let OpenVINO do once, in one thread, all that it does with numpy's arrays.

    What its Python part sets up at the first array and the first result waits for the interpreter's lock while it
    holds one of C++'s: two threads that come to it at once wait for each other for ever.
    """
    with _preparing:
        _first_inference()


@cache
def _first_inference() -> None:
    openvino, opset = import_openvino(), import_openvino("opset8")
    source = opset.parameter([1], np.uint8)
    model = openvino.Model([opset.convert(source, "f32")], [source])
    request = openvino.Core().compile_model(model, "CPU").create_infer_request()
    request.infer([np.ones(1, np.uint8)], share_inputs=True)[0].copy()


class OpenVINOBackend:
    """A network run by OpenVINO on the CPU, one thread a call, as many calls at once as ``threads``."""

    name = "openvino"
    side_step_px = 1

    def __init__(
        self,
        build: Callable[[], nn.Module],
        precision: str,
        threads: int,
        batch_rows: int,
        inputs: Sequence[Input] = (Input(),),
        key: str | None = None,
    ) -> None:
        """Convert, unless that has been done, and compile; each takes about a second.

        Raises:
            ImportError: OpenVINO is not installed.
            Exception: it cannot run this network; or what ``build`` raises.
        """
        _prepare_openvino()
        model = converted_network(build, inputs, key)
        model.reshape({port: [*view.shape(batch_rows, -1)] for port, view in zip(model.inputs, inputs, strict=True)})
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            # Several processes may share the machine: each would pin its threads to the same processors.
            "ENABLE_CPU_PINNING": False,
            # Read boxes have many sizes, and what is kept for each is megabytes; making it anew takes milliseconds.
            "CPU_RUNTIME_CACHE_CAPACITY": 0,
        }
        self._compiled = import_openvino().Core().compile_model(model, "CPU", settings)
        self.max_concurrency = threads
        self.batch_rows = batch_rows
        # A request holds the memory of one call under way.
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            self._idle.put(self._compiled.create_infer_request())

    def __call__(self, *pixels: Pixels) -> Floats:
        """See :class:`nucpipe.backends.base.Backend`."""
        request = self._idle.get()
        try:
            starts = range(0, len(pixels[0]), self.batch_rows)
            parts = [self._run(request, [view[i : i + self.batch_rows] for view in pixels]) for i in starts]
        finally:
            self._idle.put(request)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _run(self, request: Any, pixels: Sequence[Pixels]) -> Floats:
        count = len(pixels[0])
        filled = [np.ascontiguousarray(filled_up(view, self.batch_rows)) for view in pixels]
        result: Floats = request.infer(filled, share_inputs=True)[0]
        return assert_finite(result[:count].copy())  # the request's own memory is used again


def openvino_facts() -> tuple[str, str]:
    """Return OpenVINO's version and the name of the processor on which it runs networks.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    openvino = import_openvino()
    return openvino.__version__.partition("-")[0], str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")).strip()
