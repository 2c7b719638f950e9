"""Networks from headers that anybody may have written: of a known kind, and no larger than the weights beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def check_name(name: str) -> None:
    """Refuse a name that timm does not have itself; "hf-hub:..." and the like would be fetched from elsewhere.

    Raises:
        ValueError: so it is.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no network '{name[:80]}'")


def check_size(build: Callable[[], nn.Module], tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse a network that is larger than the weights for it, before any memory is taken for it.

    Args:
        build: makes the network.
        tensors: its weights.

    Raises:
        ValueError: so it is. Whatever else ``build`` raises.
    """
    import torch

    with torch.device("meta"):
        wanted = sum(tensor.numel() for tensor in build().state_dict().values())
    held = sum(tensor.numel() for tensor in tensors.values())
    if wanted > held:
        raise ValueError(f"the header describes a network of {wanted:,} numbers, the file holds {held:,}")
