"""Slides and results in object stores: addresses such as ``s3://bucket/slide.svs``, through fsspec.

OpenSlide and the other readers need a file on a disk, so a slide is fetched into a cache, run, and removed; the
results are made on the local disk and sent when they are finished.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from nucpipe.addresses import RemotePath
from nucpipe.cache import cache_folder
from nucpipe.errors import NucpipeError, OutputError, SlideError, UsageError
from nucpipe.files import cannot_write
from nucpipe.optional.extras import install_command
from pipeline.slide.causes import cause
from pipeline.slide.identity import slide_name

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LAST = ("nuclei.zarr/zarr.json", "run.json")
"""Files that complete a result: sent last, in this order, so that no reader takes a half for whole."""


def file_system(address: RemotePath) -> tuple[AbstractFileSystem, str]:
    """Return the file system behind an address, and the path in it.

    Raises:
        UsageError: fsspec knows no such protocol, or the package for it is missing.
    """
    import fsspec

    protocol = address.partition("://")[0]
    try:
        found, path = fsspec.core.url_to_fs(str(address))
    except (ImportError, ValueError) as error:
        package = "s3fs" if protocol in ("s3", "s3a") else f"the fsspec package for {protocol}"
        hint = f"; to add it: {install_command('s3')}" if package == "s3fs" else ""
        raise UsageError(f"{address}: cannot be reached ({cause(error)}); {package} may be missing{hint}.") from error
    # What a listing said a while ago need not be true any more.
    found.use_listings_cache = False
    return found, str(path)


def list_slides(address: RemotePath, is_slide: Callable[[str], bool]) -> Iterator[tuple[RemotePath, PurePosixPath]]:
    """Yield the slides at an address and the folder of results of each: itself, or all below it where it is a folder.

    Raises:
        UsageError: there is none, or the store cannot be asked.
    """
    files, root = file_system(address)
    try:
        if address.name.lower().endswith(".zarr") or (not address.endswith("/") and files.isfile(root)):
            yield address, PurePosixPath(slide_name(Path(address.name)))
            return
        inside = files.find(root)
    except Exception as error:  # each file system raises what its library does
        raise UsageError(f"{address}: cannot be reached ({cause(error)}).") from error
    base = PurePosixPath(root)
    paths = {PurePosixPath(path).relative_to(base) for path in inside}
    # A zarr is one slide, though it is many objects.
    zarrs = {parent for path in paths for parent in path.parents if parent.suffix.lower() == ".zarr"}
    alone = {path for path in paths if is_slide(path.name) and not zarrs & set(path.parents)}
    outermost = {path for path in zarrs if not zarrs & set(path.parents) and path.name != "nuclei.zarr"}
    if not alone | outermost:
        raise UsageError(f"{address}: no slide at this address; expected files such as .svs, .ndpi or .tif.")
    for path in sorted(alone | outermost):
        yield RemotePath(f"{address.rstrip('/')}/{path}"), path.parent / slide_name(Path(path.name))


def local_folder(address: RemotePath, purpose: str) -> Path:
    """Return a folder in the cache that belongs to an address: for its slide, or for its unfinished results."""
    return cache_folder() / purpose / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:24]


@contextmanager
def fetched(address: RemotePath) -> Iterator[Path]:
    """Yield the slide at an address as a file (or folder) on this disk, for as long as the block runs.

    Raises:
        SlideError: it is not there or cannot be fetched.
        OutputError: there is no room for it.
    """
    folder = local_folder(address, "slides")
    path = folder / address.name
    try:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run left may be half of it
        folder.mkdir(parents=True)
        files, root = file_system(address)
        _get(files, root, path)
        if address.name.lower().endswith(".mrxs"):  # its pixels lie in a folder beside it
            _get(files, root[: -len(".mrxs")], path.with_suffix(""))
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _get(files: AbstractFileSystem, source: str, target: Path) -> None:
    try:
        if files.isdir(source):
            files.get(source.rstrip("/") + "/", str(target) + "/", recursive=True)
        else:
            files.get_file(source, str(target))
    except OSError as error:
        if error.errno is not None and not isinstance(error, FileNotFoundError):
            raise cannot_write(target, error) from error
        raise SlideError(f"{files.unstrip_protocol(source)}: cannot be fetched ({cause(error)}).") from error
    except Exception as error:  # each file system raises what its library does
        raise SlideError(f"{files.unstrip_protocol(source)}: cannot be fetched ({cause(error)}).") from error


def version(address: RemotePath) -> str:
    """Return what tells the object at an address from another that was there before.

    Raises:
        SlideError: it is not there or cannot be asked for.
    """
    files, root = file_system(address)
    try:
        return str(files.ukey(root))
    except Exception as error:  # each file system raises what its library does
        raise SlideError(f"{address}: cannot be asked for ({cause(error)}).") from error


def send(folder: Path, names: Sequence[str], address: RemotePath) -> None:
    """Send a finished result; the files that make it one go last.

    Args:
        folder: on this disk.
        names: of the files and folders in it that are sent.
        address: of the folder that they become.

    Raises:
        OutputError: it cannot be sent; the local files stay.
    """
    with reaching(address):
        files, root = file_system(address)
        found = (path for name in names for path in [folder / name, *(folder / name).rglob("*")])
        paths = [path.relative_to(folder).as_posix() for path in found if path.is_file()]
        for name in LAST:  # an older result stops being one before its files are replaced
            if files.exists(f"{root}/{name}"):
                files.rm_file(f"{root}/{name}")
        for name in [*(name for name in sorted(paths) if name not in LAST), *(name for name in LAST if name in paths)]:
            files.put_file(str(folder / name), f"{root}/{name}")


def read(address: RemotePath) -> bytes | None:
    """Return what an address holds; None where there is nothing.

    Raises:
        OutputError: the store cannot be asked.
    """
    with reaching(address):
        files, root = file_system(address)
        return bytes(files.cat_file(root)) if files.exists(root) else None


def exists(address: RemotePath) -> bool:
    """Tell whether an address holds a file or a folder.

    Raises:
        OutputError: the store cannot be asked.
    """
    with reaching(address):
        files, root = file_system(address)
        return bool(files.exists(root))


def folders_in(address: RemotePath) -> list[str]:
    """Return the names of the folders at an address; none where there is nothing.

    Raises:
        OutputError: the store cannot be asked.
    """
    with reaching(address):
        files, root = file_system(address)
        try:
            entries = files.ls(root, detail=True)
        except FileNotFoundError:
            return []
        return [PurePosixPath(one["name"]).name for one in entries if one["type"] == "directory"]


def write(address: RemotePath, content: bytes) -> None:
    """Put content at an address, whole.

    Raises:
        OutputError: it cannot be sent.
    """
    with reaching(address):
        files, root = file_system(address)
        files.pipe_file(root, content)


@contextmanager
def reaching(address: RemotePath) -> Iterator[None]:
    """Yield whatever a file system's library raises -> an OutputError."""
    try:
        yield
    except NucpipeError:
        raise
    except Exception as error:  # each file system raises what its library does
        raise OutputError(
            f"{address}: cannot be written or read ({cause(error)}); the same command goes on."
        ) from error
