"""The common face of an annotated data set: images, each with nuclei."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import scipy.ndimage

from nucpipe import label_images
from nucpipe.errors import DataError, UsageError
from nucpipe.pixel_size import MAX_MPP, MIN_MPP, is_plausible_mpp

LIBRARY_FILE = "library.toml"
"""In the root of a data folder: what a user's own library is, its pixel size and labels."""


@dataclass(frozen=True)
class Annotation:
    """The annotated nuclei of one image.

    Attributes:
        centroids: (N, 2) float64, x and y in pixels; pixel i covers [i, i+1).
        labels: the label of each nucleus in its library's own words (snake_case); "" where none is published.
        instances: (H, W) int32, 0 = background, k + 1 = nucleus k (which has no pixel where others cover it wholly);
            None where the library publishes no outlines.
    """

    centroids: npt.NDArray[np.float64]
    labels: tuple[str, ...]
    instances: npt.NDArray[np.int32] | None


@dataclass(frozen=True)
class AnnotatedImage(ABC):
    """One annotated image of a data set; pixels and nuclei are read when asked for.

    Attributes:
        name: the image's name inside its set, such as ``train_6``.
        group: what a split into training and validation must keep together (image, patient, case or tissue).
        mpp: pixel size in micrometres.
        image_path: the file of its pixels.
        label_path: the file of its nuclei.
        outlined: whether the layout publishes outlines, or points alone.
    """

    outlined: ClassVar[bool] = True
    name: str
    group: str
    mpp: float
    image_path: Path
    label_path: Path

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return RGB (H, W, 3) uint8.

        Raises:
            DataError: the image cannot be read.
        """
        return read_rgb(self.image_path)

    @abstractmethod
    def annotation(self) -> Annotation:
        """Return the nuclei."""


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Return an image file as RGB (H, W, 3) uint8.

    Raises:
        DataError: the file is missing, or not an image that OpenCV reads.
    """
    if not path.is_file():
        what = "it is a folder; give the images in it" if path.is_dir() else "there is no such file"
        raise DataError(f"{path}: expected an image; {what}.")
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: expected an image (PNG, JPEG, TIFF); the file is something else, or cut off.")
    return np.ascontiguousarray(image[..., ::-1]).astype(np.uint8, copy=False)


def read_outlined(image: AnnotatedImage) -> tuple[npt.NDArray[np.uint8], Annotation, npt.NDArray[np.int32]]:
    """Return the pixels, the nuclei and the instance map of an image whose nuclei are outlined.

    Raises:
        DataError: they are not, outlines and image differ in size, or a file cannot be read.
    """
    annotation, pixels = image.annotation(), image.pixels()
    if annotation.instances is None:
        raise DataError(
            f"{image.label_path}: has no outlines; a segmentor needs outlined nuclei, or points "
            "and a model to start from (train segmentor --start-from)."
        )
    (height, width), (image_height, image_width) = annotation.instances.shape, pixels.shape[:2]
    if (height, width) != (image_height, image_width):
        raise DataError(
            f"{image.label_path}: the outlines of {image.name} are on {width} x {height} pixels, its image has "
            f"{image_width} x {image_height}; expected the same size."
        )
    return pixels, annotation, annotation.instances


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
LABEL_FILES = {"points": (".csv",), "consep": (".mat",), "outlines": (*label_images.SUFFIXES, ".geojson")}
"""Endings of the files of ``labels``, by the layout that they make of ``images`` and ``labels``."""


def subfolder(path: Path, name: str) -> Path | None:
    """Return the folder of that name in ``path``, in whatever case of letters; None if there is none."""
    return next((p for p in sorted(path.iterdir()) if p.name.lower() == name and p.is_dir()), None)


def labelled_folders(path: Path, layout: str) -> tuple[Path, Path] | None:
    """Return the folders ``images`` and ``labels`` in ``path``; None if one is missing or it is another layout's.

    Args:
        path: of the data set.
        layout: one of ``LABEL_FILES``.

    Raises:
        DataError: ``labels`` has files of no layout, or of several.
    """
    images, labels = subfolder(path, "images"), subfolder(path, "labels")
    if images is None or labels is None:
        return None
    endings = {p.suffix.lower() for p in _files(labels)}
    layouts = [name for name, suffixes in LABEL_FILES.items() if endings & {*suffixes}]
    if len(layouts) != 1:
        name = next((p.stem for p in _files(images)), "image")
        found = ", ".join(sorted(filter(None, endings))) or "none"
        raise DataError(
            f"{labels}: expected files of one kind: points ({name}.csv), CoNSeP's ({name}.mat), or label images and "
            f"outlines ({name}.png, .tif, .npy, .geojson); found {found}."
        )
    return (images, labels) if layouts == [layout] else None


def paired_files(images: Path, labels: Path, suffixes: Iterable[str]) -> list[tuple[str, Path, Path]]:
    """Return the name, the image and the label file of each image; a name contains subfolders, the ending it does not.

    Args:
        images, labels: folders whose files have the same names.
        suffixes: of label files; others are passed over.

    Raises:
        DataError: an image has no label file or a label file no image, or there are two of one name.
    """
    pictures, answers = _by_name(images, IMAGE_SUFFIXES), _by_name(labels, suffixes)
    for name in sorted(pictures.keys() - answers.keys()):
        raise DataError(
            f"{pictures[name]}: its label file is missing; expected {labels / name}{' or '.join(suffixes)}."
        )
    for name in sorted(answers.keys() - pictures.keys()):
        raise DataError(
            f"{answers[name]}: its image is missing; expected {images / name}{' or '.join(IMAGE_SUFFIXES)}."
        )
    return [(name, picture, answers[name]) for name, picture in pictures.items()]


def _by_name(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in (p for p in _files(folder) if p.suffix.lower() in suffixes):
        first = files.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
        if first != file:
            raise DataError(f"{file}: {first.name} has the same name; expected one of them.")
    return files


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, by name, without hidden ones."""
    return (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))


def group_of(name: str) -> str:
    """Return the group of an image of that name: its subfolder, or else itself."""
    return name.split("/")[0]


def centroids_of(instances: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Return the centroids (N, 2), x and y in pixels, of an instance map (H, W) with the ids 1 to N."""
    ids = np.arange(1, int(instances.max(initial=0)) + 1)
    centres = scipy.ndimage.center_of_mass(instances > 0, instances, ids)
    return np.asarray(centres, float).reshape(-1, 2)[:, ::-1] + 0.5


def renumbered(instances: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the instance map (H, W) with its ids made 1 to N, in their order."""
    ids = np.unique(instances[instances > 0])
    numbers = np.searchsorted(ids, instances) + 1
    return np.where(instances > 0, numbers, 0).astype(np.int32)


def library_fields(path: Path) -> dict[str, Any] | None:
    """Return what the ``library.toml`` of a data folder says; None without one.

    Raises:
        DataError: it is no TOML.
    """
    file = path / LIBRARY_FILE
    if not file.is_file():
        return None
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: expected a library in TOML; it cannot be read ({error}).") from error


def labels_of(path: Path, published: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels, in order, of a data folder's ``library.toml``; without one ``published``."""
    fields = library_fields(path) or {}
    return tuple(map(str, fields.get("labels", published)))


def licence_of(path: Path) -> str:
    """Return the licence that a data folder's ``library.toml`` states; "" where it states none."""
    return str((library_fields(path) or {}).get("licence", ""))


def mpp_of(path: Path, published: float | None = None) -> float:
    """Return the pixel size that a data folder's ``library.toml`` states; without one ``published``, micrometres.

    Raises:
        DataError: it states none and there is no published one, or it cannot be true.
    """
    fields = library_fields(path)
    if published is not None and "mpp" not in (fields or {}):
        return published
    if fields is None:
        raise DataError(
            f"{path / LIBRARY_FILE}: missing; it states the images' pixel size (mpp = 0.25, micrometres) and, for a "
            "classifier, name, labels and licence."
        )
    return checked_mpp(fields.get("mpp"), path / LIBRARY_FILE)


def checked_mpp(mpp: object, file: Path) -> float:
    """Return a pixel size that ``file`` states.

    Raises:
        DataError: it is no number, or none that can be true.
    """
    if isinstance(mpp, bool) or not isinstance(mpp, int | float) or not is_plausible_mpp(mpp):
        found = "none" if mpp is None else repr(mpp)
        raise DataError(
            f"{file}: expected mpp, the pixel size in micrometres, a number from {MIN_MPP} to {MAX_MPP} such as "
            f"mpp = 0.25; found {found}."
        )
    return float(mpp)


def split_groups(
    images: Sequence[AnnotatedImage], hold_out: Iterable[str] = (), fraction: float = 0.15
) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
    """Split images into training and validation by group, never by nucleus.

    ``hold_out`` names groups, or images whose groups are meant (wildcards allowed). Where none of the names is found
    in this set, about ``fraction`` of its images are held out, whole groups in the order of a hash of their names, so
    that the same set is always split the same way; groups without a nucleus, which would measure nothing, are not.

    Raises:
        UsageError: everything would be held out.
    """
    patterns = list(hold_out)
    groups = {i.group for i in images if is_named(i, patterns)}
    held = {i.name for i in images if i.group in groups}
    if not held and len({i.group for i in images}) > 1:
        order = sorted({i.group for i in images}, key=lambda g: hashlib.sha256(g.encode()).digest())
        for group in order[:-1]:
            if len(held) >= fraction * len(images):
                break
            if any(_has_nuclei(i) for i in images if i.group == group):
                held |= {i.name for i in images if i.group == group}
    train = [i for i in images if i.name not in held]
    if not train:
        raise UsageError("every image would be held out for validation and none is left to train on; hold out fewer.")
    return train, [i for i in images if i.name in held]


NOTHING_HELD_OUT = "{path}: none of its held out images has a nucleus; hold out others (--hold-out)."


def _has_nuclei(image: AnnotatedImage) -> bool:
    try:
        return len(image.annotation().centroids) > 0
    except DataError:  # whoever reads it for its nuclei is told
        return True


def check_hold_out(hold_out: Iterable[str], images: Sequence[AnnotatedImage]) -> None:
    """See that each name of what is to be held out is that of an image or a group.

    Raises:
        UsageError: some are not.
    """
    if wrong := [name for name in hold_out if not any(is_named(image, [name]) for image in images)]:
        names = sorted({name for image in images for name in (image.group, image.name)})
        near = difflib.get_close_matches(wrong[0], names, 1) or names[:1]
        such = f"; expected names such as {near[0]}" if near else ""
        raise UsageError(f"hold out {', '.join(wrong)}: no image or group of the data is called that{such}.")


def choose_images(images: list[AnnotatedImage], name: str, patterns: Sequence[str]) -> list[AnnotatedImage]:
    """Return the images that patterns name by image or group; all without patterns. ``name`` is the set's, for the
    message.

    Raises:
        UsageError: there is none.
    """
    found = [image for image in images if is_named(image, patterns)]
    if patterns and not found:
        raise UsageError(f"{name}: no image or group is called {', '.join(patterns)}; name others by --hold-out.")
    return found or images


def is_named(image: AnnotatedImage, patterns: Sequence[str]) -> bool:
    """Tell whether one of the patterns (wildcards allowed) names an image or its group."""
    # QuPath's tiles are called slide [x=0,y=0,w=512,h=512], which as a pattern would mean something else.
    return any(name == p or fnmatch.fnmatchcase(name, p) for name in (image.name, image.group) for p in patterns)
