"""Training of Mask R-CNN and Faster R-CNN: tiles, losses, step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import find_objects
from torch import nn

from nucpipe.backends.network_checks import check_encoder
from nucpipe.datasets import AnnotatedImage
from nucpipe.training.augmentation import jitter_focus, jitter_stain
from nucpipe.training.pretrained import starting_weights
from segmentation.dataset import TileDataset
from segmentation.rcnn.detector import TILE_PX, build_rcnn

LOSSES = {
    "fasterrcnn": ("total", "loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
    "maskrcnn": ("total", "loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"),
}
MIN_PX = 20
"""Smaller bits of a nucleus, as at a tile's edge, are no example."""


@dataclass(frozen=True)
class ObjectBatch:
    """Tiles with their instances.

    Attributes:
        pixels: (N, S, S, 3) uint8 RGB at 0.25 um.
        instances: (N, S, S) int32, 0 = background.
    """

    pixels: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int32]


def new_rcnn(kind: str, encoder: str, say: Callable[[str], None]) -> nn.Module:
    """Return a network whose encoder has ImageNet's weights, where they are at hand.

    Raises:
        UsageError: there is no such encoder, or it does not fit.
    """

    def backbone() -> nn.Module:
        return build_rcnn(kind, encoder).get_submodule("backbone")

    check_encoder("--encoder", encoder, backbone, (1, 3, TILE_PX, TILE_PX))
    model = build_rcnn(kind, encoder)
    model.get_submodule("backbone.encoder").load_state_dict(starting_weights(encoder, say), strict=False)
    return model


class RCNNTask:
    """Train an R-CNN in float32 on tiles of the network's size."""

    def __init__(
        self,
        kind: str,
        sets: Sequence[Sequence[AnnotatedImage]],
        seed: int,
        batch_size: int,
        device: str,
    ) -> None:
        self.kind, self.device = kind, torch.device(device)
        self.losses = LOSSES[kind]
        self.source = TileDataset(sets, seed, batch_size)

    def batch(self, step: int) -> ObjectBatch:
        """Return the batch of that step; it depends on (seed, step) alone."""
        return ObjectBatch(*(np.stack(parts) for parts in zip(*self.source.draw(step, TILE_PX), strict=True)))

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: ObjectBatch, seed: int
    ) -> dict[str, float]:
        """Learn from a batch; the losses by name."""
        torch.manual_seed(seed)  # torchvision draws its samples of boxes from the global generator
        model.train()
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.from_numpy(batch.pixels).to(self.device).permute(0, 3, 1, 2).float()
        pixels = jitter_focus(jitter_stain(pixels, generator), generator, max_sigma_px=1.2) / 255
        targets = [targets_of(instances, self.kind == "maskrcnn") for instances in batch.instances]
        targets = [{name: part.to(self.device) for name, part in target.items()} for target in targets]
        losses = model(list(pixels), targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return {"total": float(total.detach()), **{name: float(loss.detach()) for name, loss in losses.items()}}


def targets_of(instances: npt.NDArray[np.int32], masks: bool) -> dict[str, torch.Tensor]:
    """Boxes, labels (all 1) and, if wanted, masks of a tile's nuclei, as torchvision takes them."""
    boxes, found = [], []
    for k, box in enumerate(find_objects(instances)):
        if box is None or (mask := instances[box] == k + 1).sum() < MIN_PX or min(mask.shape) < 3:
            continue
        boxes.append((box[1].start, box[0].start, box[1].stop, box[0].stop))
        found.append(k + 1)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
    }
    if masks:
        target["masks"] = torch.from_numpy((instances[None] == np.array(found).reshape(-1, 1, 1)).astype(np.uint8))
    return target
