"""Slides and results in object stores: addresses such as ``s3://bucket/slide.svs``, through fsspec.

OpenSlide and the other readers need a file on a disk, so a slide is fetched into the cache, run and removed; the
results are made on the local disk and sent when they are finished.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from nucpipe.addresses import RemotePath
from nucpipe.cache import cache_folder
from nucpipe.errors import NucpipeError, OutputError, SlideError, UsageError
from nucpipe.files import cannot_write
from nucpipe.optional.extras import install_command
from pipeline.batch.lock import Lock, held
from pipeline.slide.causes import cause
from pipeline.slide.identity import slide_name
from pipeline.store.run_record import RUN_JSON, STORE

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LAST = (f"{STORE}/zarr.json", RUN_JSON)
"""Files that complete a result: sent last, in this order, so that no reader takes a half for whole."""
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
"""What this disk says; file systems give their servers' answers other numbers."""
STAGED = "staged"
"""Name of the lock on a fetched slide."""


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
        raise UsageError(f"{address}: cannot be reached ({_why(error)}); {package} may be missing{hint}.") from error
    # What a listing said a while ago need not be true any more.
    found.use_listings_cache = False
    return found, str(path)


def _why(error: BaseException) -> str:
    """Return what the store's library says; fsspec's own time-out says nothing, and what lies behind it does."""
    while not str(error).strip() and error.__cause__ is not None:
        error = error.__cause__
    return cause(error)


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
        raise UsageError(f"{address}: cannot be reached ({_why(error)}).") from error
    base = PurePosixPath(root)
    paths = {PurePosixPath(path).relative_to(base) for path in inside}
    # A zarr is one slide, though it is many objects.
    zarrs = {parent for path in paths for parent in path.parents if parent.suffix.lower() == ".zarr"}
    alone = {path for path in paths if is_slide(path.name) and not zarrs & set(path.parents)}
    outermost = {path for path in zarrs if not zarrs & set(path.parents) and path.name != STORE}
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

    It has a folder of its own in the cache, with a lock in it, so that several processes may use one slide. Folders
    whose process was killed are removed first.

    Raises:
        SlideError: it is not there, cannot be fetched, or is larger than what is free on the disk.
        OutputError: the cache cannot be written.
    """
    stage = cache_folder() / "slides"
    _remove_abandoned(stage)
    folder = stage / uuid.uuid4().hex
    path = folder / address.name
    lock = Lock(folder, STAGED)
    lock.acquire()
    with held(lock):
        try:
            files, root = file_system(address)
            sources = {path: root}
            if address.name.lower().endswith(".mrxs"):  # its pixels lie in a folder beside it
                sources[path.with_suffix("")] = root[: -len(".mrxs")]
            _check_room(address, folder, sum(_size(files, source) for source in sources.values()))
            for target, source in sources.items():
                _get(files, source, target)
            yield path
        finally:
            for target in (path, path.with_suffix("")):
                if target.is_dir():
                    shutil.rmtree(target, ignore_errors=True)
                else:
                    target.unlink(missing_ok=True)


def _remove_abandoned(stage: Path) -> None:
    """Remove the fetched slides of processes that have ended."""
    for folder in stage.iterdir() if stage.is_dir() else ():
        lock = Lock(folder, STAGED)
        with suppress(OSError, OutputError):
            if any(folder.glob(f".{STAGED}.*.lock")) and lock.acquire():
                shutil.rmtree(folder, ignore_errors=True)


def _size(files: AbstractFileSystem, source: str) -> int:
    """Return the bytes at an address; 0 where the store does not tell."""
    try:
        return int(files.du(source))
    except Exception:  # what is missing or cannot be reached is named when it is fetched
        return 0


def _check_room(address: RemotePath, folder: Path, size: int) -> None:
    if size > (free := shutil.disk_usage(folder).free):
        raise SlideError(
            f"{address}: {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in {folder.parent}; make room, or let "
            "NUCPIPE_CACHE name a folder on a larger disk."
        )


def _get(files: AbstractFileSystem, source: str, target: Path) -> None:
    try:
        if files.isdir(source):
            files.get(source.rstrip("/") + "/", str(target) + "/", recursive=True)
            return
        expected = files.size(source)
        files.get_file(source, str(target))
    except OSError as error:
        if error.errno in FULL:
            raise cannot_write(target, error) from error
        raise SlideError(f"{files.unstrip_protocol(source)}: cannot be fetched ({_why(error)}).") from error
    except Exception as error:  # each file system raises what its library does
        raise SlideError(f"{files.unstrip_protocol(source)}: cannot be fetched ({_why(error)}).") from error
    got = target.stat().st_size
    if expected is not None and got != expected:
        raise SlideError(f"{files.unstrip_protocol(source)}: broke off after {got} of {expected} bytes; try again.")


def version(address: RemotePath) -> str:
    """Return what tells the object at an address from another that was there before.

    Raises:
        SlideError: it is not there or cannot be asked for.
    """
    files, root = file_system(address)
    try:
        return str(files.ukey(root))
    except Exception as error:  # each file system raises what its library does
        raise SlideError(f"{address}: cannot be asked for ({_why(error)}).") from error


def check_readable(address: RemotePath) -> None:
    """Check that the store of an address answers this process; that one object is missing is no fault of the store.

    Raises:
        SlideError: wrong credentials, or a store that cannot be reached.
    """
    files, root = file_system(address)
    try:
        files.info(root)
    except FileNotFoundError:
        pass
    except Exception as error:  # each file system raises what its library does
        raise SlideError(f"{address}: cannot be asked for ({_why(error)}).") from error


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
        there = {path for name in names if files.exists(f"{root}/{name}") for path in files.find(f"{root}/{name}")}
        found = (path for name in names for path in [folder / name, *(folder / name).rglob("*")])
        paths = [path.relative_to(folder).as_posix() for path in found if path.is_file()]
        # An older result stops being one before its files are replaced, and none of them stays beside the new ones.
        gone = [f"{root}/{name}" for name in LAST] + sorted(there - {f"{root}/{name}" for name in (*paths, *LAST)})
        for path in (path for path in gone if path in there):
            with suppress(FileNotFoundError):  # another process that sends the same was faster
                files.rm_file(path)
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


def check_reachable(address: RemotePath) -> None:
    """Check that something can be written below an address, before hours are spent on what shall go there.

    Raises:
        OutputError: wrong credentials, no such bucket, or a store that does not answer.
    """
    with reaching(address):
        files, root = file_system(address)
        probe = f"{root}/.nucpipe-{uuid.uuid4().hex}"
        files.pipe_file(probe, b"can be written")
        with suppress(Exception):  # who may write may not be allowed to remove
            files.rm_file(probe)


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
        raise OutputError(f"{address}: cannot be written or read ({_why(error)}); the same command goes on.") from error
