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
from pathlib import Path

import click
import httpx
import numpy as np
from exports import lay

from pipeline.store.reader import open_store
from pipeline.web.viewer.tiles import ENLARGED_LEVELS, TILE_PX, Pyramid


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--nuclei", type=int, default=1_000_000)
@click.option("--tiles", type=int, default=40, help="Tiles of a level.")
def main(result: Path, out: Path, nuclei: int, tiles: int) -> None:
    """Print a table of milliseconds by level."""
    path = out / "nuclei.zarr"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        lay(open_store(result / "nuclei.zarr"), nuclei, out)
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
