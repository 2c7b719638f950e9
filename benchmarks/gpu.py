"""Both networks on a GPU: nuclei and square millimetres a second, memory, and results against the CPU's.

python benchmarks/gpu.py [--device cuda] [--out gpu.md]

Each line is a network, a precision, a way to run it (eager, torch.compile, a CUDA graph) and a batch size. Pixels lie
in page-locked memory and are copied while the batch before them is computed, as in a run. Results are compared with
those of the CPU in float32 on the first batch.
Without a GPU it runs on the processor, as a test of itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn

from classifier.network import TwoViewClassifier, load_classifier, of_patches
from classifier.spec import CONTEXT_PX, PATCH_PX
from nucpipe.backends.pytorch import with_weights_in
from pipeline.inference.models import find_model
from segmentation.hovernet.network import read_hovernet
from segmentation.hovernet.spec import INPUT_MPP

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WAYS = ("eager", "compile", "graph")
WARM_UP = 3


@dataclass(frozen=True)
class Network:
    """A network and a maker of its input.

    Attributes:
        title: of its lines.
        network: it, in evaluation mode.
        shapes: of one image of each input, (H, W, channels).
        unit: what is counted a second.
        per_image: units of an image.
    """

    title: str
    network: nn.Module
    shapes: tuple[tuple[int, int, int], ...]
    unit: str
    per_image: float


@dataclass(frozen=True)
class Line:
    """A measurement; a reason in place of figures where it could not be made."""

    network: str
    precision: str
    way: str
    batch: int
    rate: float = 0.0
    unit: str = ""
    memory_mib: float = 0.0
    difference: float = 0.0
    reason: str = ""

    def cells(self) -> list[str]:
        """Return the cells of its row in the table."""
        first = [self.network, self.precision, self.way, str(self.batch)]
        if self.reason:
            return [*first, self.reason, "", ""]
        memory = f"{self.memory_mib:,.0f}" if self.memory_mib else ""
        return [*first, f"{self.rate:,.4g} {self.unit}/s", memory, f"{self.difference:.1e}"]


HEADER = ["network", "precision", "way", "batch", "rate", "MiB", "largest difference to the CPU"]


def networks(classifier: str, segmentor: str, side_px: int) -> Iterator[Network]:
    """Yield the classifier on patches and the segmentor on squares of ``side_px``."""
    model, _, _ = load_classifier(find_model("classifier", classifier))
    patch, context = (PATCH_PX, PATCH_PX, 3), (CONTEXT_PX, CONTEXT_PX, 4)
    shapes = (patch, context) if isinstance(model, TwoViewClassifier) else (patch,)
    yield Network(f"classifier {classifier}", of_patches(model), shapes, "nuclei", 1.0)
    hovernet, _ = read_hovernet(find_model("segmentor", segmentor))
    area_mm2 = (side_px * INPUT_MPP / 1000) ** 2
    yield Network(f"segmentor {segmentor}", hovernet.eval(), ((side_px, side_px, 3),), "mm²", area_mm2)


def images(of: Network, count: int) -> list[torch.Tensor]:
    """Return (count, H, W, channels) uint8 for each input: smooth noise in the colours of H&E."""
    rng = np.random.default_rng(0)
    made = []
    for height, width, channels in of.shapes:
        coarse = torch.from_numpy(rng.integers(60, 240, (count, channels, height // 8, width // 8)).astype(np.float32))
        fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
        if channels == 4:
            fine[:, 3] = 255
        made.append(fine.to(torch.uint8).permute(0, 2, 3, 1).contiguous())
    return made


def runner(of: Network, device: torch.device, precision: str, way: str, batch: int) -> Callable[..., torch.Tensor]:
    """Return a function from a batch on the device to the network's output."""
    cast = PRECISIONS[precision]
    on_device = of.network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = with_weights_in(cast, on_device)

    def run(*views: torch.Tensor) -> torch.Tensor:
        planes = [view.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last) for view in views]
        with torch.autocast(device.type, cast or torch.bfloat16, enabled=cast is not None):
            output: torch.Tensor = network(*planes)
        return output.float()

    if way == "eager":
        return run
    if way == "compile":
        compiled: Callable[..., torch.Tensor] = torch.compile(run)
        return compiled
    if device.type != "cuda":
        raise RuntimeError("needs a GPU")
    held = [view.to(device) for view in images(of, batch)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(*held)

    def replay(*views: torch.Tensor) -> torch.Tensor:
        for place, view in zip(held, views, strict=True):
            place.copy_(view)
        graph.replay()
        return output

    return replay


@torch.inference_mode()
def measure(of: Network, device: torch.device, precision: str, way: str, batch: int, seconds: float) -> Line:
    """Measure one line of the table."""
    line = (of.title, precision, way, batch)
    views = images(of, batch)
    expected = of.network.to("cpu")(*(view[:8].permute(0, 3, 1, 2).float() for view in views)).float()
    try:
        run = runner(of, device, precision, way, batch)
        if device.type == "cuda":
            views = [view.pin_memory() for view in views]
            torch.cuda.reset_peak_memory_stats()
        for _ in range(WARM_UP):
            output = run(*(view.to(device) for view in views))
        difference = float((output[:8].cpu() - expected).abs().max())
        count, wall = timed(run, views, device, seconds)
    except Exception as error:  # out of memory, no compiler: the line says so, the others are measured
        return Line(*line, reason=str(error).strip().splitlines()[0][:60])
    memory = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    return Line(*line, count * batch * of.per_image / wall, of.unit, memory, difference)


def timed(
    run: Callable[..., torch.Tensor], views: Sequence[torch.Tensor], device: torch.device, seconds: float
) -> tuple[int, float]:
    """Return the number of batches, and the seconds by the clock."""
    ends = []
    copies = torch.cuda.Stream() if device.type == "cuda" else None
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or not count:
        if copies is None:
            run(*views)
        else:
            with torch.cuda.stream(copies):
                there = [view.to(device, non_blocking=True) for view in views]
            torch.cuda.current_stream().wait_stream(copies)
            run(*there).to("cpu", non_blocking=True)
            ends.append(torch.cuda.Event())
            ends[-1].record()
            for view in there:
                view.record_stream(torch.cuda.current_stream())
            if count >= 2:  # no more than two batches ahead, as in a run
                ends[count - 2].synchronize()
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return count, time.perf_counter() - began


def table(lines: Sequence[Line]) -> str:
    """Return the lines as a Markdown table."""
    rows = [HEADER, ["---"] * len(HEADER), *(line.cells() for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


@click.command()
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--classifier", default="joint-context", show_default=True, help="Name or path.")
@click.option("--segmentor", default="hovernet-compact", show_default=True, help="Name or path.")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(PRECISIONS)), default=["fp32", "bf16"])
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), default=WAYS)
@click.option("--batch", "batches", multiple=True, type=int, default=[64, 256, 1024], help="Of the classifier.")
@click.option("--side", "side_px", default=1024, show_default=True, help="Of the segmentor's squares, px.")
@click.option("--seconds", default=5.0, show_default=True, help="A line.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write the table to.")
def main(
    device: str,
    classifier: str,
    segmentor: str,
    precisions: tuple[str, ...],
    ways: tuple[str, ...],
    batches: tuple[int, ...],
    side_px: int,
    seconds: float,
    out: Path | None,
) -> None:
    """Print the table."""
    target = torch.device(device)
    name = (
        torch.cuda.get_device_name(target) if target.type == "cuda" else f"processor, {torch.get_num_threads()} threads"
    )
    lines = []
    for of in networks(classifier, segmentor, side_px):
        for precision in precisions:
            for way in ways:
                for batch in batches if of.unit == "nuclei" else sorted({max(1, size // 64) for size in batches}):
                    lines.append(measure(of, target, precision, way, batch, seconds))
                    click.echo(" ".join(lines[-1].cells()), err=True)
    text = f"{name}, PyTorch {torch.__version__}\n\n{table(lines)}"
    click.echo(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
