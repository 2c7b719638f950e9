"""Look at what a training would learn from: every image and outline is read before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nucpipe.datasets import AnnotatedImage, check_hold_out, is_named, open_dataset, split_groups
from nucpipe.datasets.base import NOTHING_HELD_OUT, read_outlined
from nucpipe.errors import DataError, NucpipeError, UsageError

Split = tuple[list[AnnotatedImage], list[AnnotatedImage]]

NAMED = 5
"""So many images are named in a line."""


def look_at_data(
    data: Sequence[Path], hold_out: Sequence[str], say: Callable[[str], None], takes_points: bool = False
) -> tuple[dict[Path, Split], list[NucpipeError]]:
    """Read every image and label of some data sets.

    Args:
        data: their folders.
        hold_out: names of images or groups kept for validation.
        say: told images, groups and nuclei of each set and split, a line each.
        takes_points: whether images may have points instead of outlines. Such a set teaches whole where none of
            ``hold_out`` is in it, for outlines are what a model is measured by.

    Returns:
        The images of each set that teach and those that are held out, and every problem; none is raised.
    """
    problems: list[NucpipeError] = []
    names = [path.name for path in data]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(UsageError(f"--data: two folders are called {twice[0]}, which names figures; rename one."))
    sets: dict[Path, list[AnnotatedImage]] = {}
    for path in data:
        try:
            sets[path] = open_dataset(path)
        except DataError as error:
            problems.append(error)
    if len(sets) == len(data):  # else a name may be that of an image that could not be read
        try:
            check_hold_out(hold_out, [image for images in sets.values() for image in images])
        except UsageError as error:
            problems.append(error)
    splits: dict[Path, Split] = {}
    for path, images in sets.items():
        say(f"{path.name}: {path}")
        try:
            whole = takes_points and not any(image.outlined or is_named(image, hold_out) for image in images)
            splits[path] = (images, []) if whole else split_groups(images, hold_out)
        except UsageError as error:
            problems.append(UsageError(f"{path}: {error}"))
            continue
        for split, some in zip(("training", "held out"), splits[path], strict=True):
            if whole and not some:
                continue
            problems += _look_at(path, split, some, say, takes_points)
    return splits, problems


def _look_at(
    path: Path, split: str, images: Sequence[AnnotatedImage], say: Callable[[str], None], takes_points: bool
) -> list[NucpipeError]:
    problems: list[NucpipeError] = []
    nuclei, empty, points = 0, [], 0
    for image in images:
        try:
            if takes_points and not image.outlined:
                image.pixels()
                count, points = len(image.annotation().centroids), points + 1
            else:
                count = len(read_outlined(image)[1].centroids)
        except DataError as error:
            problems.append(error)
            continue
        nuclei += count
        if not count:
            empty.append(image.name)
    groups = len({image.group for image in images})
    mpps = ", ".join(sorted({f"{image.mpp:g}" for image in images})) or "-"
    say(f"  {split}: {len(images)} images in {groups} groups, {nuclei} nuclei, pixels of {mpps} µm")
    if points:
        whose = "their outlines are made by the model that the training starts from"
        say(f"    {points} images have points: {whose if split == 'training' else 'they are not measured'}")
    elif split == "held out" and not images:
        say("    nothing is held out, for all images are of one group: the model will not be measured on them")
    if empty:
        names = ", ".join(empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
        say(f"    {len(empty):>7} images without a nucleus: {names}")
    if images and len(empty) == len(images):
        nothing = f"{path}: none of its training images has a nucleus; outline some."
        problems.append(DataError(nothing if split == "training" else NOTHING_HELD_OUT.format(path=path)))
    return problems
