"""Identify a slide before it is opened: its name, its fingerprint, and the folders that are one slide."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


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
    whole = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return " ".join("".join(c if c.isprintable() else " " for c in whole).split())


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
        return any(file.suffix.lower() in (".dcm", "") and is_dicom(file) for file in path.iterdir())
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
