"""Mutated slides and model files: each must be run or refused in one line, in bounded time and memory.

    python benchmarks/fuzz.py [--cases 240] [--seed 0] [--keep DIR]

Slides and models are made or taken from the project, and spoilt: bytes flipped, numbers of headers set to extremes,
files cut off, blocks swapped, zeroed or repeated. Each case runs in a process of its own, which opens the slide, finds
its tissue and reads from it, or loads the model. Prints what became of them; the exit status is 1 where one left a
traceback, died, took more than 60 s, or more than 3 GB.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tests.support.slides as make
from nucpipe.errors import NucpipeError
from pipeline.cli.demo_slide import fetch_demo_slide
from pipeline.inference.models import find_model, load_models
from pipeline.regions.region import cut_regions
from pipeline.regions.tissue import tissue_from
from pipeline.slide.grid import WorkingGrid
from pipeline.slide.open import open_slide

SECONDS, BYTES = 60, 3 * 1000**3
MPP = 0.25
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 40000, 1 << 24]


def originals(folder: Path) -> list[Path]:
    """Make small slides of every kind that can be made here; the demo slide comes last."""
    picture = make.tissue_texture(300, 260)
    make.write_tiled_tiff(folder / "tiled.tif", picture, MPP)
    make.write_ome_tiff(folder / "ome.ome.tif", picture, MPP)
    make.write_plain_tiff(folder / "plain.tif", picture, MPP)
    make.write_image(folder / "image.png", picture)
    make.write_image(folder / "image.jpg", picture)
    make.write_ngff(folder / "ngff.zarr", picture, MPP)
    make.write_dicom(folder / "dicom", picture, MPP)
    shutil.copy(fetch_demo_slide(), folder / "aperio.svs")
    for kind, name in (("segmentor", "hovernet-compact"), ("classifier", "fast")):
        shutil.copy(find_model(kind, name), folder / f"{kind}.safetensors")
    return sorted(folder.iterdir())


def mutate(content: bytearray, chance: random.Random) -> str:
    """Spoil a file's content in place; says how."""
    size = len(content)
    # Headers stand at the start as a rule, TIFF's directories anywhere.
    place = chance.randrange(min(size, 4096)) if chance.random() < 0.6 else chance.randrange(size)
    match how := chance.choice(["flip", "number", "cut", "zero", "swap", "repeat", "text"]):
        case "flip":
            for _ in range(chance.randint(1, 30)):
                content[chance.randrange(min(size, 4096) if chance.random() < 0.5 else size)] ^= 1 << chance.randrange(
                    8
                )
        case "number":
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(min(size, 4096)) & ~1
                form = chance.choice(["<H", "<I", ">I", "<Q"])
                packed = struct.pack(form, chance.choice(EXTREMES) & (256 ** struct.calcsize(form) - 1))
                content[at : at + len(packed)] = packed
        case "cut":
            del content[place:]
        case "zero":
            length = chance.randint(1, 5000)
            content[place : place + length] = bytes(len(content[place : place + length]))
        case "swap":
            other, length = chance.randrange(size), chance.randint(1, 2000)
            content[place : place + length], content[other : other + length] = (
                content[other : other + length],
                content[place : place + length],
            )
        case "repeat":
            content[place:place] = content[place : place + chance.randint(1, 100_000)]
        case "text":
            digits = [i for i in range(min(size, 20_000)) if 48 <= content[i] <= 57]
            for i in chance.sample(digits, min(len(digits), chance.randint(1, 20))):
                content[i] = chance.choice(b"0123456789-.e")
    return how


def spoilt(original: Path, target: Path, chance: random.Random) -> str:
    """Return a spoilt copy of a file, or of a folder with one of its files spoilt."""
    if original.is_dir():
        shutil.copytree(original, target)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        chosen = chance.choice([path for path in files if path.name.startswith(".")] + files)
    else:
        shutil.copy(original, target)
        chosen = target
    content = bytearray(chosen.read_bytes())
    how = mutate(content, chance) if content else "empty"
    chosen.write_bytes(content)
    return how


def use(path: Path) -> str:
    """Open and read a slide, or load a model; says what became of it."""
    if path.suffix == ".safetensors":
        names = [str(path) if path.name.startswith(kind) else name for kind, name in BUNDLED]
        load_models(names[0], names[1], "cpu", "fp32")
        return "used"
    with open_slide(path, MPP if path.suffix in (".png", ".jpg") else None) as slide:
        tissue = tissue_from("auto", slide)
        grid = WorkingGrid.for_slide(slide.size_l0, slide.mpp)
        for region in cut_regions(grid, tissue, 512, 64, 32, 0)[:8]:
            assert slide.read(grid, region.read_box_w).dtype == np.uint8
    return "used"


BUNDLED = (("segmentor", "hovernet-compact"), ("classifier", "fast"))


def in_a_process(path: Path, work: Callable[[Path], str]) -> tuple[str, str, float, int]:
    """Return (what became of it, its last line, seconds, most bytes) of ``work(path)`` in a process of its own."""
    read, write = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read)
        signal.alarm(SECONDS)
        try:
            text = work(path)
        except NucpipeError as error:
            text = "refused" if "\n" not in str(error) else "lines"
            text += f"\t{error}"
        except BaseException:
            text = "traceback\t" + traceback.format_exc()
        os.write(write, text.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode("utf-8", "replace")
    _, status, usage = os.wait4(child, 0)
    what, _, detail = text.partition("\t")
    if os.WIFSIGNALED(status):
        what = "hang" if os.WTERMSIG(status) == signal.SIGALRM else f"died of signal {os.WTERMSIG(status)}"
    return what, detail, time.monotonic() - began, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that were not taken well")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    chance = random.Random(options.seed)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    bad: list[str] = []
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "originals").mkdir()
        sources = originals(Path(temporary) / "originals")
        for source in sources:
            what, detail, _, _ = in_a_process(source, use)
            if what != "used":
                print(f"{source.name} is not even good unspoilt: {what} {detail}")
                sys.exit(2)
        for case in range(options.cases):
            source = sources[case % len(sources)]
            path = Path(temporary) / f"{source.name.partition('.')[0]}-{case}{source.name[source.name.find('.') :]}"
            if "." not in source.name:
                path = Path(temporary) / f"{source.name}-{case}"
            how = spoilt(source, path, chance)
            what, detail, seconds, size = in_a_process(path, use)
            slowest, largest = max(slowest, seconds), max(largest, size)
            counts[source.name, what] += 1
            if what not in ("used", "refused") or size > BYTES:
                bad.append(f"case {case}, {path.name}, {how}: {what}, {size / 2**30:.1f} GB, {detail}")
                print(bad[-1], flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    shutil.move(path, options.keep / path.name)
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for (name, what), number in sorted(counts.items()):
        print(f"{name:<24} {what:<10} {number}")
    print(
        f"{options.cases} spoilt files: {sum(n for (_, what), n in counts.items() if what == 'used')} used, "
        f"{sum(n for (_, what), n in counts.items() if what == 'refused')} refused, {len(bad)} not taken well; "
        f"slowest {slowest:.1f} s, most memory {largest / 2**30:.2f} GB"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
