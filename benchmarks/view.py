"""How long the viewer's tiles take on a store of a million nuclei, made by laying a real result side by side.

python benchmarks/view.py RESULT --out /tmp/million [--nuclei 1000000] [--tiles 40]

A tile is timed from the request to its last byte, over HTTP, one after another; first for tiles that nobody has asked
for yet, then again for the same ones (another library, so that nothing is answered from a memory of tiles).
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import httpx
import numpy as np

from classifier.predictions import Predictions
from pipeline.store.journal import Journal
from pipeline.store.reader import Store, open_store
from pipeline.store.writer import finish
from pipeline.web.viewer.tiles import ENLARGED_LEVELS, TILE_PX, Pyramid
from segmentation.nuclei import Nuclei


def lay_side_by_side(store: Store, path: Path, wanted: int) -> None:
    """Write a store of copies of another, moved by its width and height."""
    width, height = store.info.size_l0
    copies = math.ceil(wanted / len(store))
    columns = math.ceil(math.sqrt(copies * height / width))
    offsets, points = store.contours()
    nuclei = Nuclei(store.centroids_l0, offsets, points.astype(float), store.detection_p, store.area_um2)
    labels = Predictions(store.probabilities)
    journal = Journal.open(path.with_name("journal"), {})
    for k in range(copies):
        journal.write(k, nuclei.transformed(1.0, (k % columns * width, k // columns * height)), labels)
    size_l0 = (columns * width, math.ceil(copies / columns) * height)
    finish(journal, range(copies), path, replace(store.info, slide_name="million", size_l0=size_l0))
    journal.remove()


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--nuclei", type=int, default=1_000_000)
@click.option("--tiles", type=int, default=40, help="Tiles of a level.")
def main(result: Path, out: Path, nuclei: int, tiles: int) -> None:
    """Print a table of milliseconds by level."""
    path = out / "nuclei.zarr"
    if not path.exists():
        lay_side_by_side(open_store(result / "nuclei.zarr"), path, nuclei)
    store = open_store(path)
    pyramid, rng = Pyramid(store.info.size_l0), np.random.default_rng(0)
    began = time.perf_counter()
    command = [sys.executable, "-m", "nucpipe", "view", str(out), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        print(f"{line.strip()}, open after {time.perf_counter() - began:.1f} s")
        url = line.split(" at ")[1].split()[0]
        every: list[float] = []
        with httpx.Client(base_url=url) as client:
            print("level  l0 px per px  first, median (95 %)  again, median (95 %)  kB")
            for level in range(6, pyramid.full_level + ENLARGED_LEVELS + 1):
                l0_per_px = 2.0 ** (pyramid.full_level - level)
                columns, lines = (math.ceil(side / l0_per_px / TILE_PX) for side in store.info.size_l0)
                count = min(tiles, columns * lines)
                chosen = rng.choice(columns * lines, count, replace=False)
                addresses = [f"tiles/nuclei/{level}/{k % columns}_{k // columns}.png" for k in chosen]
                times, size = [], 0
                for library in ("PanNuke", "CoNSeP"):
                    for address in addresses:
                        start = time.perf_counter()
                        answer = client.get(address, params={"library": library})
                        times.append(1000 * (time.perf_counter() - start))
                        assert answer.status_code == 200, answer.text
                        size += len(answer.content)
                every += times
                first, again = (
                    f"{np.median(part):8.1f} ({np.percentile(part, 95):6.1f})"
                    for part in (times[:count], times[count:])
                )
                print(f"{level:5} {l0_per_px:13} {first:>21} {again:>21} {size / count / 2000:6.1f}")
        print(f"all {len(every)} tiles: median {np.median(every):.1f} ms, 95 % {np.percentile(every, 95):.1f} ms")
        status = Path(f"/proc/{server.pid}/status").read_text()
        print("server:", *(line for line in status.splitlines() if line.startswith(("VmHWM", "VmRSS"))))
        server.terminate()


if __name__ == "__main__":
    main()
