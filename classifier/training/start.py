"""Initial weights of a training: ImageNet's, or those of other classifiers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from classifier.labels.libraries import LabelSpace
from classifier.network import SIZE_PX, Classifier, JointClassifier, PatchStem, TwoViewClassifier, load_classifier
from classifier.spec import CONTEXT_PX, TWO_VIEWS, check_kind
from classifier.training.config import ClassifierTraining
from nucpipe.backends.model_file import read_header
from nucpipe.backends.network_checks import check_encoder
from nucpipe.errors import DataError
from nucpipe.training import trainer
from nucpipe.training.depthwise import use_fast_depthwise
from nucpipe.training.pretrained import starting_weights

DROPOUT = 0.2

STEM = "conv_stem.weight"


def new_network(config: ClassifierTraining, columns: int) -> Classifier:
    """Return the network of a training, without the weights that it starts from.

    Raises:
        UsageError: its backbone is none of timm's, or does not fit.
    """

    def build() -> Classifier:
        if config.context:
            return TwoViewClassifier(columns, config.backbone, config.backbone, config.patch_strides, dropout=DROPOUT)
        return JointClassifier(columns, config.backbone, patch_px, dropout=DROPOUT, strides=config.strides)

    patch_px = SIZE_PX if config.context else config.sizes[-1][1]
    context = [(1, 4, CONTEXT_PX, CONTEXT_PX)] if config.context else []
    check_encoder("backbone", config.backbone, build, (1, 3, patch_px, patch_px), *context)
    return build()


def new_model(config: ClassifierTraining, outputs: LabelSpace, say: Callable[[str], None]) -> Classifier:
    """Return a network to train, with the weights that it starts from.

    Args:
        config: what is to be done.
        outputs: the network's columns.
        say: receives progress messages.

    Raises:
        UsageError: the backbone is none of timm's, or does not fit.
        DataError: ``config.start_from`` names a network that does not fit, or several that differ.
    """
    model = new_network(config, len(outputs))
    parts = [model.backbone] if isinstance(model, JointClassifier) else [model.patch, model.context]
    two_views = all(isinstance(_load(path)[0], TwoViewClassifier) for path in config.start_from)
    if not config.start_from or (config.context and not two_views):
        weights = starting_weights(config.backbone, say)
        for part in parts:
            _take_over(part, weights)
    if config.start_from:
        _start_from(model, config.backbone, outputs, config.start_from, say)
    use_fast_depthwise(model)
    return model


def architecture_of(path: Path, context: bool | None = None) -> dict[str, Any]:
    """Return the fields of a training that make a network like a trained one.

    Args:
        path: of the trained model.
        context: whether the new network shall look at the context; None: if the trained one does. If they differ, only
            the backbone is the same.

    Raises:
        ModelError: no such file, or not a classifier.
    """
    header = read_header(path)
    check_kind(header)
    of = header.architecture
    backbone = {"backbone": str(of["backbone"])}
    two_views = of.get("type") == TWO_VIEWS
    if context is not None and context != two_views:
        return backbone
    size_px = int(of["size_px"])
    sizes = {} if two_views or size_px == SIZE_PX else {"sizes": ((1.0, size_px),)}
    return backbone | sizes | {"context": two_views, "strides": tuple(map(int, of.get("strides", ())))}


def _load(path: Path) -> tuple[Classifier, str, LabelSpace]:
    model, header, outputs = load_classifier(path)
    model.projection = None  # it fits those weights alone; a training ends with one of its own
    return model, str(header.architecture["backbone"]), outputs


def _take_over(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Give an EfficientNet the weights of another whose stem may be a convolution of 3x3 px for three colours."""
    weights = dict(weights)
    stem = weights.get(STEM)
    own = getattr(network, "conv_stem", None)
    if stem is not None and isinstance(own, PatchStem):
        own.start_from(weights.pop(STEM))
    elif stem is not None and isinstance(own, nn.Conv2d) and own.in_channels > stem.shape[1]:
        # What a further channel tells is still to be learnt.
        more = stem.new_zeros(len(stem), own.in_channels - stem.shape[1], *stem.shape[2:])
        weights[STEM] = torch.cat([stem, more], 1)
    network.load_state_dict(weights, strict=False)


def _start_from(
    model: Classifier, backbone: str, outputs: LabelSpace, paths: Sequence[Path], say: Callable[[str], None]
) -> None:
    """Take over the weights of a classifier, or the mean of several, and its outputs for the labels that both have.

    A network of two views takes over a classifier of the patch alone as its own view of the patch.

    Raises:
        DataError: its backbone is another one, or the classifiers differ in their labels.
    """
    others: list[tuple[Classifier, LabelSpace]] = []
    for path in paths:
        other, theirs, known = _load(path)
        if theirs != backbone:
            raise DataError(f"--start-from {path}: its backbone is {theirs}, not {backbone}.")
        if isinstance(other, TwoViewClassifier) and isinstance(model, JointClassifier):
            raise DataError(f"--start-from {path}: it looks at the context, too; give --context.")
        if others and known.columns != others[0][1].columns:
            raise DataError(f"--start-from {path}: its labels are not those of {paths[0]}; they cannot be averaged.")
        others.append((other, known))
    other, known = others[0]
    try:
        other.load_state_dict(trainer.mean_weights([one for one, _ in others]))
    except ValueError as error:
        raise DataError(f"--start-from: {', '.join(map(str, paths))} cannot be averaged; {error}.") from error
    head, other_head = model.last_layer(), other.last_layer()
    of_head = {id(parameter) for parameter in other_head.parameters()}
    names = {name for name, parameter in other.named_parameters() if id(parameter) in of_head}
    weights = {name: tensor for name, tensor in other.state_dict().items() if name not in names}
    if isinstance(model, TwoViewClassifier) and isinstance(other, JointClassifier):
        _take_over(model.patch, {name.removeprefix("backbone."): tensor for name, tensor in weights.items()})
    else:
        model.load_state_dict(weights, strict=False)
    rows = [(i, known.columns.index(c)) for i, c in enumerate(outputs.columns) if c in known.columns]
    features = other_head.in_features
    with torch.no_grad():
        for i, j in rows:
            head.weight[i], head.bias[i] = 0, other_head.bias[j]
            head.weight[i, :features] = other_head.weight[j]
    starts = ", ".join(path.name for path in paths)
    say(f"starting from {starts}: {len(rows)} of {len(outputs)} outputs are known there")
