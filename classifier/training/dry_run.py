"""Dry run of a training: counts of what it would learn from."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from classifier.labels.label_mapping import make_matching
from classifier.labels.libraries import LabelSpace, libraries_of
from classifier.training.config import ClassifierTraining
from classifier.training.distillation import add_teacher_labels
from classifier.training.start import new_network
from nucpipe.datasets import AnnotatedImage, check_hold_out, open_dataset, split_groups
from nucpipe.datasets.base import NOTHING_HELD_OUT
from nucpipe.errors import DataError, ModelError, UsageError


def check_training(config: ClassifierTraining, say: Callable[[str], None]) -> int:
    """Read every image and label of a training and report them.

    Args:
        config: the training.
        say: told the counts for each label and split, what they teach, and each problem with its file, a line each.

    Returns:
        The number of problems. What is wrong with the settings themselves is one too.
    """
    problems: list[str] = []
    try:
        matching = make_matching(libraries_of(config.libraries), config.match, config.similarity, config.match_table)
    except (DataError, UsageError) as error:
        say(f"problem: {error}")
        return 1
    outputs = LabelSpace(matching.libraries, (False,) * matching.columns)
    try:
        new_network(config, len(outputs))
    except UsageError as error:
        problems.append(str(error))
    sources = {library.name.lower(): library for library in matching.sources}
    taught = np.zeros(matching.columns, np.int64)
    sets: list[tuple[str, Path, list[AnnotatedImage]]] = []
    for name, path in config.libraries:
        try:
            sets.append((name, path, open_dataset(path)))
        except DataError as error:
            problems.append(str(error))
    if len(sets) == len(config.libraries):  # else a name may be that of an image that could not be read
        try:
            check_hold_out(config.hold_out, [image for _, _, images in sets for image in images])
        except UsageError as error:
            problems.append(str(error))
    for name, path, opened in sets:
        library = sources[name.lower()]
        say(f"{library.name}: {path}")
        try:
            splits = dict(zip(("training", "held out"), split_groups(opened, config.hold_out), strict=True))
        except UsageError as error:
            problems.append(f"{path}: {error}")
            continue
        for split, images in splits.items():
            counts: Counter[str] = Counter()
            empty = 0
            for image in images:
                try:
                    labels = _labels(image)
                    counts.update(labels)
                    empty += not labels
                except DataError as error:
                    problems.append(str(error))
            groups = len({image.group for image in images})
            mpps = ", ".join(sorted({f"{image.mpp:g}" for image in images})) or "-"
            say(f"  {split}: {len(images)} images in {groups} groups, {counts.total()} nuclei, pixels of {mpps} µm")
            if empty:
                say(f"    {empty:>7} images without a nucleus")
                if empty == len(images) and split == "held out":
                    problems.append(NOTHING_HELD_OUT.format(path=path))
            for text, count in counts.most_common():
                try:
                    row = matching.targets(library.name, text)
                except DataError as error:
                    problems.append(f"{path}: {count} nuclei: {error}")
                    continue
                says = ", ".join(" ".join(outputs.columns[c]) for c in np.flatnonzero(row))
                say(f"    {count:>7} {text:<24} teaches {says}")
                if split == "training":
                    taught += count * matching.taught(row[None])
    outputs = dataclasses.replace(outputs, trained=tuple(bool(count) for count in taught))
    if config.distil:
        try:
            outputs = add_teacher_labels(config.distil, outputs)
        except ModelError as error:
            problems.append(str(error))
    nothing = [" ".join(column) for column, yes in zip(outputs.columns, outputs.trained, strict=True) if not yes]
    say(f"{sum(outputs.trained)} of {len(outputs)} labels are taught; not: {', '.join(nothing) or 'none'}")
    for problem in problems:
        say(f"problem: {problem}")
    say(f"{len(problems)} problems" if problems else "no problems")
    return len(problems)


def _labels(image: AnnotatedImage) -> tuple[str, ...]:
    """Return the labels of an image whose pixels can be read too.

    Raises:
        DataError: something of it cannot be read.
    """
    image.pixels()
    return image.annotation().labels
