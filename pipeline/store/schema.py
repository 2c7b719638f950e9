"""The layout of a store, ``nuclei.zarr``: what it says of itself, and how its table and index are cut."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from classifier.decision_rule import DecisionRule
from classifier.labels.libraries import LabelSpace
from pipeline.store.ordering import BLOCK_L0
from segmentation.nuclei import NucleusFilter

SCHEMA_VERSION = 1
CHUNK_ROWS = 65536  # of a column
CHUNK_ROWS_X = 16384  # of the probabilities
ADAPTED = "_adapted"
"""Ends the name of a column of adapted labels, see ``pipeline.store.adapted``."""
ADAPTED_X = "layers/adapted"
NOT_A_NUCLEUS = "not_a_nucleus"
"""A column beside adapted labels, and what a correction without a library says: found, but no nucleus."""
OOD_SCORE = "ood_score"
"""A column of how unlike the training data a nucleus is, see ``classifier.out_of_distribution``."""


@dataclass(frozen=True)
class StoreInfo:
    """Metadata of a store.

    Attributes:
        slide_name: name of the slide.
        size_l0: (width, height), level-0 pixels.
        mpp: micrometres per level-0 pixel.
        origin_l0: (x, y) that QuPath subtracts from level-0 coordinates.
        outputs: the libraries and the labels of the classifier.
        models: the models' names, fingerprints and what else tells them apart, as JSON can hold it.
        settings: of the run, as JSON can hold it.
        nucpipe_version: that wrote the store.
        slide_fingerprint: of the slide's content, see :func:`pipeline.slide.identity.slide_fingerprint`.
    """

    slide_name: str
    size_l0: tuple[int, int]
    mpp: float
    origin_l0: tuple[int, int]
    outputs: LabelSpace
    models: dict[str, Any]
    settings: dict[str, Any]
    nucpipe_version: str
    slide_fingerprint: str = ""

    @property
    def segmentor_types(self) -> tuple[str, ...]:
        """The detector's own names of the types that it gives to nuclei; empty where it gives none."""
        return tuple(self.models.get("segmentor", {}).get("types", ()))

    @property
    def rule(self) -> DecisionRule:
        """Decision rule of the run."""
        return DecisionRule.from_dict(self.settings.get("decide", {}))

    def with_segmentor_types(self, types: tuple[str, ...]) -> StoreInfo:
        """Return the same with the detector's own names of the types that it gives to nuclei."""
        segmentor = {**self.models["segmentor"], "types": list(types)}
        return replace(self, models={**self.models, "segmentor": segmentor})

    def fingerprint(self) -> dict[str, Any]:
        """Return all that the nuclei and labels depend on, as JSON gives it back: slide, models and settings.

        nucpipe's version is not part of it, nor are the segmentor's types, which follow from its file.
        """
        fields: dict[str, Any] = json.loads(json.dumps(self.to_dict()))
        del fields["nucpipe_version"]
        fields["models"].get("segmentor", {}).pop("types", None)
        return fields

    @property
    def nucleus_filter(self) -> NucleusFilter:
        """The least area and detection probability of the nuclei that were kept."""
        return NucleusFilter.from_dict(self.settings)

    @property
    def features(self) -> int:
        """How many features of the classifier are stored of each nucleus; 0 for none."""
        return int(self.settings.get("features", 0))

    @property
    def has_ood_scores(self) -> bool:
        """Whether each nucleus has a score of how unlike the training data it is."""
        return bool(self.settings.get("ood_score", False))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> StoreInfo:
        """Make it of the form that :meth:`to_dict` gives."""
        width, height = fields["size_l0"]
        x, y = fields["origin_l0"]
        # Thousands of results have one classifier: they share what is made of its labels.
        outputs = _label_space(json.dumps(fields["outputs"]))
        return cls(**{**fields, "size_l0": (width, height), "origin_l0": (x, y), "outputs": outputs})

    def to_dict(self) -> dict[str, Any]:
        """Return the form that the store's metadata hold."""
        return {**vars(self), "outputs": self.outputs.to_dict()}


@lru_cache(maxsize=16)
def _label_space(text: str) -> LabelSpace:
    return LabelSpace.from_dict(json.loads(text))


def blocks_across(size_l0: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of blocks that cover the slide, and the rim by which the working grid may reach beyond
    it.
    """
    width, height = size_l0
    return height // BLOCK_L0 + 2, width // BLOCK_L0 + 2
