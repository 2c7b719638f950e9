"""The journal: the regions of one unfinished slide, each written as it is finished, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from classifier.predictions import Predictions
from nucpipe.errors import OutputError
from nucpipe.files import cannot_write, written_whole
from pipeline.store.changes import differences
from segmentation.nuclei import Nuclei

DIGEST_BYTES = 16
JOURNAL, JOURNAL_HEADER, JOURNAL_SLIDE = "journal", "journal.json", "slide.json"
"""The folder in a slide's results, and the files in it that say what the regions depend on and which slide it is."""


class Journal:
    """A folder with one file a finished region and ``journal.json``, the fingerprint of the run.

    The file of a region is a BLAKE2b digest of 16 bytes, then an uncompressed ``.npz`` of the arrays of its nuclei
    (level-0 pixels) and labels. The digest tells a torn or damaged file from a whole one.
    """

    def __init__(self, folder: Path, done: Iterable[int] = ()) -> None:
        self.folder = folder
        self._done = set(done)

    @classmethod
    def open(cls, folder: Path, fingerprint: dict[str, Any], slide: str = "") -> Journal:
        """Begin a journal, or go on with one.

        Args:
            folder: made if it is not there.
            fingerprint: what the regions depend on (slide, models, settings), as JSON can hold it.
            slide: where a person finds it; tells the results from those of another slide of the same name.

        Raises:
            OutputError: the folder holds regions of a run with another fingerprint, or cannot be written.
        """
        fingerprint = json.loads(json.dumps(fingerprint))  # tuples become lists, as they come back from the file
        header = folder / JOURNAL_HEADER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            going_on = header.exists()
        except OSError as error:
            raise cannot_write(folder, error) from error
        if going_on:
            check_unchanged(folder, "an unfinished run", _read_header(header), fingerprint)
            return cls(folder, _whole_regions(folder))
        if any(folder.glob("*.region")):
            raise OutputError(
                f"{folder}: regions of an unfinished run without their journal.json; use --overwrite or another --out."
            )
        if slide:
            with written_whole(folder / JOURNAL_SLIDE) as partial:
                record = {"slide": slide, "slide_fingerprint": fingerprint.get("slide_fingerprint")}
                partial.write_text(json.dumps(record), "utf-8")
        with written_whole(header) as partial:
            partial.write_text(json.dumps(fingerprint, indent=1), "utf-8")
        return cls(folder)

    @classmethod
    def join(cls, folder: Path, fingerprint: dict[str, Any]) -> Journal:
        """Write to a journal that another process has begun, without looking at all that is in it.

        Raises:
            OutputError: it is not there, or was begun with another fingerprint.
        """
        check_unchanged(folder, "a run", _read_header(folder / JOURNAL_HEADER), json.loads(json.dumps(fingerprint)))
        return cls(folder)

    @property
    def done(self) -> frozenset[int]:
        """The regions that are written, by index."""
        return frozenset(self._done)

    def write(self, index: int, nuclei: Nuclei, labels: Predictions) -> None:
        """Write a region, whole or not at all.

        Args:
            index: of the region.
            nuclei: in level-0 pixels.
            labels: one row a nucleus.

        Raises:
            OutputError: it cannot be written, as on a full disk.
        """
        if len(nuclei) != len(labels):
            raise ValueError(f"region {index}: {len(nuclei)} nuclei with {len(labels)} rows of labels")
        arrays: dict[str, Any] = {
            "centroids": nuclei.centroids,
            "contour_offsets": nuclei.contour_offsets,
            "contour_points": nuclei.contour_points,
            "detection_p": nuclei.detection_p,
            "area_um2": nuclei.area_um2,
            "probabilities": labels.probabilities,
        }
        extras = {"types": nuclei.types, "measures": nuclei.measures, "ids": nuclei.ids, "features": labels.features}
        extras["ood_scores"] = labels.ood_scores
        for name, optional in extras.items():
            if optional is not None:
                arrays[name] = optional
        payload = io.BytesIO()
        np.savez(payload, **arrays)
        # A worker that was given up on may still write the region that another does again.
        writer = f".{socket.gethostname()}.{os.getpid()}"
        with written_whole(self._path(index), writer) as partial, partial.open("wb") as file:
            file.write(_digest(payload.getbuffer()))
            file.write(payload.getbuffer())
        self._done.add(index)

    def is_whole(self, index: int) -> bool:
        """Tell whether a region is written, by whichever process."""
        return _read_whole(self._path(index)) is not None

    def read(self, index: int) -> tuple[Nuclei, Predictions]:
        """Return a region as it was written.

        Raises:
            OutputError: the region is missing or damaged.
        """
        path = self._path(index)
        content = _read_whole(path)
        if content is None:
            raise OutputError(f"{path}: this finished region is missing or damaged; run the same command again.")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            nuclei = Nuclei(
                centroids=arrays["centroids"],
                contour_offsets=arrays["contour_offsets"],
                contour_points=arrays["contour_points"],
                detection_p=arrays["detection_p"],
                area_um2=arrays["area_um2"],
                types=arrays.get("types"),
                measures=arrays.get("measures"),
                ids=arrays.get("ids"),
            )
            return nuclei, Predictions(arrays["probabilities"], arrays.get("features"), arrays.get("ood_scores"))

    def remove(self) -> None:
        """Remove the journal from the disk, if there is one. Killed in the middle, what is left is still a journal.

        Raises:
            OutputError: a file in it cannot be removed.
        """
        header = self.folder / JOURNAL_HEADER
        if not self.folder.exists():
            return
        try:
            for path in self.folder.iterdir():
                if path != header:
                    path.unlink()
            header.unlink()
            self.folder.rmdir()
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._done.clear()

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.region"


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _read_whole(path: Path) -> bytes | None:
    """Return what follows the digest; None where the file is missing, torn or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    payload = content[DIGEST_BYTES:]
    return payload if content[:DIGEST_BYTES] == _digest(payload) else None


def _whole_regions(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.region") if _read_whole(path) is not None]


def _read_header(path: Path) -> dict[str, Any]:
    try:
        fingerprint = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); use --overwrite or another --out.") from error
    if not isinstance(fingerprint, dict):
        raise OutputError(f"{path}: not a journal of nucpipe; use --overwrite or another --out.")
    return fingerprint


def check_unchanged(path: Path | str, what: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Check that ``what`` at ``path`` was made from the same slide, models and settings.

    Raises:
        OutputError: it was not; the message names what differs.
    """
    if old == new:
        return
    raise OutputError(
        f"{path}: {what} with other settings already exists ({'; '.join(differences(old, new))}); "
        "give the earlier settings, --overwrite to start again, or another --out."
    )
