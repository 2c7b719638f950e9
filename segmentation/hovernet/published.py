"""The HoVer-Net that its authors published (Graham et al. 2019), with their weights, as a detector.

The network is tiatoolbox's. Its convolutions are partly unpadded: of a tile of 256 pixels it maps the middle 164
(``fast``, PanNuke and MoNuSAC), of 270 the middle 80 (``original``, CoNSeP and Kumar). Padding inside the network makes
the maps depend on where a tile lies, so tiles stand on one grid for the whole slide and are always of that size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nucpipe.backends.base import Input
from nucpipe.backends.model_file import why_not_unpickled
from nucpipe.backends.select import select_backend
from nucpipe.errors import ModelError
from nucpipe.optional.tiatoolbox import import_tiatoolbox, quiet
from segmentation.detector import Detector
from segmentation.hovernet.postprocess import PostProcessing, find_nuclei
from segmentation.nuclei import Nuclei

INPUT_MPP = 0.25

TYPES = {
    "pannuke": ("neoplastic", "inflammatory", "connective", "dead", "epithelial"),
    "monusac": ("epithelial", "lymphocyte", "macrophage", "neutrophil"),
    # As the authors' training code numbers them. tiatoolbox's own table names them in another order.
    "consep": ("miscellaneous", "inflammatory", "epithelial", "spindle_shaped"),
    "kumar": (),
}
"""Names of the types 1, 2, ... by the data that taught a published model; type 0 is background."""


@dataclass(frozen=True)
class Windows:
    """Input of the network.

    Attributes:
        input_px: side of the read box that it takes.
        output_px: side of the middle part that it maps.
    """

    input_px: int
    output_px: int


TILES = {"fast": Windows(256, 164), "original": Windows(270, 80)}
ENLARGED_PX = 3
"""At the edge of a region, pixels of a slide enlarged twofold that depend on where the edge is."""


class PublishedHoVerNet(Detector):
    """The published HoVer-Net with nucpipe's post-processing.

    Args:
        network: tiatoolbox's, with weights.
        types: names of the types 1, 2, ... that it gives; empty if it gives none.
        device: to run on.
        precision: to compute in.
        threads: processors that it may use.
        batch_size: tiles at a time; None: 16 on a GPU, 1 on a CPU, where more bring nothing.
        settings: constants of the post-processing.
    """

    input_mpp = INPUT_MPP
    # The widest nuclei reach so far beyond a region's core; what the network looks at round them is the margin.
    context_px = 128

    def __init__(
        self,
        network: torch.nn.Module,
        types: tuple[str, ...] = (),
        device: str = "cpu",
        precision: str = "fp32",
        threads: int = 1,
        batch_size: int | None = None,
        settings: PostProcessing | None = None,
    ) -> None:
        self.network = network
        self.types = types
        self.tile = TILES[str(network.mode)]
        self.align_px = self.tile.output_px
        self.rim_px = (self.tile.input_px - self.tile.output_px) // 2
        # An even number, because a slide at 0.5 um is read in pixels of two.
        self.margin_px = (self.rim_px + ENLARGED_PX + 1) // 2 * 2
        self.batch_size = batch_size or (1 if device == "cpu" else 16)
        maps = _Stacked(network, bool(types)).eval()
        self.runtime = select_backend(
            lambda: maps, device, precision, threads, batch_rows=1, inputs=(Input(self.tile.input_px),)
        )
        self.max_concurrency = self.runtime.max_concurrency
        self.settings = settings or PostProcessing(weak_border=0)  # chosen for the compact network alone

    def predict(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the maps of a region's read box.

        Args:
            pixels: (H + 2 M, W + 2 M, 3) uint8 RGB at 0.25 um with M = ``margin_px``; H and W multiples of
                ``align_px``.

        Returns:
            (3 or 4, H, W) float32: nuclear logit, horizontal and vertical map, and, if the model gives types, the type
            of each pixel (0 = background).
        """
        side, step, skip = self.tile.input_px, self.tile.output_px, self.margin_px - self.rim_px
        batch_rows, columns = ((length - 2 * self.margin_px) // step for length in pixels.shape[:2])
        maps = np.zeros((3 + bool(self.types), batch_rows * step, columns * step), np.float32)
        places = [(i * step, j * step) for i in range(batch_rows) for j in range(columns)]
        for first in range(0, len(places), self.batch_size):
            chosen = places[first : first + self.batch_size]
            batch = np.stack([pixels[y + skip :, x + skip :][:side, :side] for y, x in chosen])
            for (y, x), found in zip(chosen, self.runtime(batch), strict=True):
                maps[:, y : y + step, x : x + step] = found
        return maps

    def nuclei(self, prediction: npt.NDArray[np.float32], mpp: float) -> Nuclei:
        """Return the nuclei in pixels of the read box that :meth:`predict` was given; ``mpp`` is that read box's pixel
        size.
        """
        types = prediction[3].astype(np.uint8) if self.types else None
        found = find_nuclei(prediction[:3], mpp, self.settings, types=types)
        return found.transformed(1.0, (self.margin_px, self.margin_px))


class _Repeated(torch.nn.Module):
    """Every pixel as a square of 2 x 2. tiatoolbox's own module takes a product that OpenVINO does not know."""

    def __init__(self, unpool_mat: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("unpool_mat", unpool_mat)  # so that the network's weights keep their names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")


class _Stacked(torch.nn.Module):
    """The branches' maps in one tensor."""

    def __init__(self, network: torch.nn.Module, types: bool) -> None:
        super().__init__()
        self.network = network
        self.types = types
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if type(child).__name__ == "UpSample2x":
                    setattr(parent, name, _Repeated(child.get_buffer("unpool_mat")))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Turn (N, 3, side, side) tiles, 0-255, into maps (N, 3 or 4, step, step)."""
        branches: Mapping[str, torch.Tensor] = self.network(tiles.float())
        nuclear = branches["np"].float()
        parts = [nuclear[:, 1:] - nuclear[:, :1], branches["hv"].float()]
        if self.types:
            parts.append(branches["tp"].float().argmax(1, keepdim=True).float())
        return torch.cat(parts, 1)


def load_published(path: Path, device: str = "cpu", precision: str = "fp32", threads: int = 1) -> PublishedHoVerNet:
    """Return the detector in a file of HoVer-Net's authors (``.tar``, weights under ``desc``) or of tiatoolbox
    (``.pth``).

    Mode and number of types are read from the weights. Types are named if the file's name says on what data the model
    learnt (as the published ones do) and their number fits; else they are ``type_1``, ``type_2``, ...

    Raises:
        ModelError: no such file, something else than weights in it, or those of another network.
    """
    weights = _read_weights(path)
    try:
        kernel = weights["decoder.np.u3.conva.weight"].shape[-1]
        out = weights.get("decoder.tp.u0.conv.bias")
        mode = {3: "fast", 5: "original"}[kernel]
        count = None if out is None else len(out)
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(
            f"{path}: expected the weights of a HoVer-Net as published; its tensors are others."
        ) from error
    network = _network(mode, count)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: expected the weights of a HoVer-Net ({mode}); they do not fit ({first}).") from error
    return PublishedHoVerNet(network, _type_names(path.stem, count), device, precision, threads)


def _network(mode: str, types: int | None) -> torch.nn.Module:
    try:
        architecture: Any = import_tiatoolbox("models.architecture.hovernet")
    except ImportError as error:
        raise ModelError(f"the published HoVer-Net needs tiatoolbox ({error}); install it.") from error
    with quiet():
        network: torch.nn.Module = architecture.HoVerNet(num_types=types, mode=mode)
    return network


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read tensors by name. Nothing but tensors and plain containers is unpickled."""
    if not path.is_file():
        raise ModelError(f"{path}: no such model file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Broken files make torch raise nearly anything.
    except Exception as error:
        raise ModelError(
            f"{path}: expected weights saved by PyTorch; it cannot be read safely ({why_not_unpickled(error)}). "
            "Save its state_dict() alone, or fetch it again."
        ) from error
    weights = content.get("desc", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ModelError(f"{path}: expected weights by name, or those under 'desc'; found something else.")
    return {str(name).removeprefix("module."): tensor for name, tensor in weights.items()}


def _type_names(stem: str, count: int | None) -> tuple[str, ...]:
    """Return names of the types 1 to ``count`` - 1 of a model whose file is called ``stem``."""
    if count is None:
        return ()
    known = next((names for data, names in TYPES.items() if data in stem.lower() and len(names) == count - 1), None)
    return known or tuple(f"type_{k}" for k in range(1, count))
