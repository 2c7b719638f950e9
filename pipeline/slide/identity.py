"""Identify a slide before it is opened: its name, its fingerprint, and the folders that are one slide."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath


def slide_name(path: Path) -> str:
    """Return the name that results are filed under: the file's name without its extension (``.ome.tiff`` counts as
    one).

    It can be printed on one line: white space is one blank, and what is no UTF-8 is replaced. As a folder it lies where
    it is put: it is never ``..``.
    """
    name = path.name.removesuffix(".zarr") if path.is_dir() else path.stem
    name = printable(name.removesuffix(".ome"))
    return name if name.strip(".") else "slide"


def printable(text: object) -> str:
    """Return a text on one line, without control characters or bytes that are not UTF-8."""
    return " ".join("".join(c if c.isprintable() else " " for c in valid_utf8(text)).split())


def valid_utf8(text: object) -> str:
    """Return a text, such as a path, with what is no UTF-8 in it replaced, so that it can be written to a file."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "svs ndpi mrxs scn vms vmu bif svslide tif tiff btf dcm zarr jp2 png jpg jpeg".split()  # noqa: SIM905
)
"""Extensions of slides in a folder; a file named on the command line is tried whatever its name."""
CONTENTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  \r\n\x87\n")
"""First bytes of TIFF, BigTIFF and JPEG 2000: files of an unknown extension with these are slides too."""
NO_SLIDES = frozenset(
    f".{suffix}"
    for suffix in "csv tsv txt json geojson xml gz zip md pdf log ini dat region partial lock safetensors".split()  # noqa: SIM905
)
"""Extensions whose files are not opened to see what they are."""

FINGERPRINT_BLOCKS, FINGERPRINT_BYTES, FINGERPRINT_WHOLE_BYTES = 16, 65536, 2**24


def slide_fingerprint(path: Path) -> str:
    """Return what tells one slide from another of the same name: sizes of the files, and a hash of what is in them.

    Of a large file, blocks spread over it count, and of a folder each file's first block: reading a whole slide would
    take as long as running it.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else []
    for folder in (path, *([path.with_suffix("")] if path.suffix.lower() == ".mrxs" else [])):
        if folder.is_dir():
            files += sorted(p for p in folder.rglob("*") if p.is_file())
    if len(files) == 1 and files[0].stat().st_size <= FINGERPRINT_WHOLE_BYTES:
        return "sha256:" + hashlib.sha256(files[0].read_bytes()).hexdigest()
    blocks = FINGERPRINT_BLOCKS if len(files) == 1 else 1
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size};".encode())
        with file.open("rb") as stream:
            for k in range(blocks):
                stream.seek(max(0, size - FINGERPRINT_BYTES) * k // max(1, blocks - 1))
                digest.update(stream.read(FINGERPRINT_BYTES))
    return "sha256:" + digest.hexdigest()


def is_slide_folder(path: Path) -> bool:
    """Tell whether a folder is one slide: DICOM, or NGFF (OME-Zarr). Other zarr folders, such as results, are none."""
    if not path.is_dir():
        return False
    try:
        for name, keys in ((".zattrs", ()), ("zarr.json", ("attributes", "ome"))):
            if (path / name).is_file():
                return _has_image(path / name, keys)
        # A folder of DICOM files is one slide, but only if nothing else in it is one.
        files = list(path.iterdir())
        dicom = {file for file in files if file.suffix.lower() in (".dcm", "") and is_dicom(file)}
        others = (file for file in files if file not in dicom and file.suffix.lower() != ".dcm")
        return bool(dicom) and not any(is_slide_file(file) or is_slide_folder(file) for file in others)
    except OSError:  # a folder that may not be read holds no slide for us
        return False


def _has_image(metadata: Path, keys: tuple[str, ...]) -> bool:
    """Tell whether a zarr group's metadata, under ``keys``, tell of an NGFF image."""
    try:
        node = json.loads(metadata.read_bytes())
        for key in keys:
            node = node[key]
        return "multiscales" in node or "bioformats2raw.layout" in node
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_dicom(path: Path) -> bool:
    """Tell whether a file's content is DICOM."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_slide_file(path: Path) -> bool:
    """Tell whether a file in a folder is taken for a slide, by its extension or else by how it begins."""
    if path.name.startswith(".") or is_special(path):
        return False
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in NO_SLIDES:
        return suffix in SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(16).startswith(CONTENTS) or is_dicom(path)
    except OSError:
        return False


def is_slide_name(name: str) -> bool:
    """Tell whether a name alone says that a file is a slide."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def is_special(path: Path) -> bool:
    """Tell whether a path is a pipe, a socket or a device, which would be read for ever."""
    try:
        return path.exists() and not path.is_file() and not path.is_dir()
    except OSError:  # a link that leads round in a circle; opening it says so
        return False
