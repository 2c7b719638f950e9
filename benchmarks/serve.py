"""A service under load: clients that send images without a pause, their errors, and whether the memory grows.

python benchmarks/serve.py SLIDE [--clients 20] [--seconds 120] [--side 128]
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import cv2
import httpx
import numpy as np

from pipeline.regions.tissue import tissue_mask
from pipeline.slide.open import open_slide


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--clients", type=int, default=20)
@click.option("--seconds", type=float, default=120.0)
@click.option("--side", type=int, default=128, help="Of an image, level-0 pixels.")
def main(slide: Path, clients: int, seconds: float, side: int) -> None:
    """Print requests, errors, latencies and the server's memory by the minute."""
    with open_slide(slide) as opened:
        mpp, images = opened.mpp, some_images(opened, 40, side)
    command = [sys.executable, "-m", "nucpipe", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ")[1].split()[0]
        times: list[float] = []
        errors: list[str] = []
        nuclei = [0]
        end = time.monotonic() + seconds

        def work(k: int) -> None:
            with httpx.Client(base_url=url, timeout=130) as client:
                while time.monotonic() < end:
                    began = time.perf_counter()
                    image = ("tile.png", images[(k + len(times)) % len(images)])
                    try:
                        answer = client.post("v1/nuclei", files={"image": image}, data={"mpp": mpp})
                        answer.raise_for_status()
                        nuclei[0] += answer.json()["count"]
                    except httpx.HTTPError as error:
                        errors.append(repr(error))
                    times.append(time.perf_counter() - began)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(clients)]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            time.sleep(min(10.0, seconds / 12))
            print(
                f"{time.monotonic() - began:6.0f} s  {len(times):5} answers  {memory_mib(server.pid):7.1f} MiB",
                flush=True,
            )
        lines = httpx.get(f"{url}metrics").text.splitlines()
        together = {x.split()[0]: float(x.split()[1]) for x in lines if x.startswith("nucpipe_images_together_")}
        print(f"{len(times)} requests of {clients} clients in {seconds:g} s, {len(errors)} errors {errors[:3]}")
        print(f"{nuclei[0]:,} nuclei; seconds: median {np.median(times):.2f}, 95 % {np.percentile(times, 95):.2f}")
        mean = together["nucpipe_images_together_sum"] / together["nucpipe_images_together_count"]
        print(f"images worked on together: {mean:.1f} on average")
        server.terminate()


def some_images(opened, count: int, side: int) -> list[bytes]:
    """Return PNG files of places on tissue."""
    rng, tissue, images = np.random.default_rng(0), tissue_mask(opened), []
    width, height = opened.size_l0
    while len(images) < count:
        x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        if tissue.contains(np.array([[x + side / 2, y + side / 2]]))[0]:
            pixels = opened.read_level(0, (x, y, x + side, y + side))
            images.append(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    return images


def memory_mib(pid: int) -> float:
    """Return what a process holds in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
