"""Choose what runs a network: OpenVINO on an x86 processor, PyTorch elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nucpipe.backends.base import Backend, Input
from nucpipe.backends.openvino import OpenVINOBackend

if TYPE_CHECKING:
    from torch import nn


def select_backend(
    build: Callable[[], nn.Module],
    device: str,
    precision: str,
    threads: int,
    batch_rows: int,
    inputs: Sequence[Input] = (Input(),),
    key: str | None = None,
) -> Backend:
    """Return the fastest way to run a network there.

    Args:
        build: makes the network, with weights: from (N, channels, H, W) uint8, one of each input, to one tensor, in
            evaluation mode. Its layers must not depend on H and W, but for their sizes. Not called if what OpenVINO
            needs is kept.
        device: to run on.
        precision: to compute in: ``fp32``, ``bf16`` or ``fp16``.
        threads: processors that it may use.
        batch_rows: images that OpenVINO computes at a time, always the same number, so that a batch's size changes no
            bit; on a GPU the least number.
        inputs: what the network takes.
        key: names the network and its weights, so that it can be kept for the next time; None: it is not kept.

    Raises:
        Exception: what ``build`` raises.
    """
    if device == "cpu":
        try:
            return OpenVINOBackend(build, precision, threads, batch_rows, inputs, key)
        except ImportError:
            pass  # there is none for this platform
        except Exception:  # OpenVINO's exceptions have no base of their own; it lacks something that this network uses
            logging.getLogger(__name__).debug("OpenVINO cannot run this network", exc_info=True)
    from nucpipe.backends.pytorch import PyTorchBackend  # late: torch takes seconds to import

    return PyTorchBackend(build(), device, precision, threads, batch_rows, inputs)
