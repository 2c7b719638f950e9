"""Kill commands with SIGKILL at random moments, give them again, and compare what comes out with what was never killed.

    python benchmarks/kills.py [--kills 100] [--seed 0] [--slide SLIDE --roi ROI.geojson]

Two fifths of the kills fall on a run: on its regions, on the finishing of its store and on its exports. The others fall
on a whole process group (a run that two processes share), on `nucpipe export` to every format, and on trainings of both
models. Moments are drawn over the time that each takes when it is not killed. What has its name after a kill must
be whole, and what comes out at the end the same. Without a slide of your own a part of the demo slide is taken. Prints
the kills by stage, and what differs; the exit status is 1 where anything does.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import scipy.io
import torch
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.cli.demo_slide import fetch_demo_slide
from pipeline.store.reader import open_store
from tests.support.synthetic import draw_slide

ROI_L0 = (500, 1000, 1100, 1500)  # of the demo slide: x0, y0, x1, y1
NUCPIPE = [sys.executable, "-m", "nucpipe"]
# As nucpipe, but that a training of seconds has checkpoints, too.
OFTEN = "from nucpipe.training import trainer; trainer.CHECKPOINT_SECONDS = 0.5; "
OFTEN_SAVED = [sys.executable, "-c", OFTEN + "from pipeline.cli.main import main_process; main_process()"]
EXPORTS = {
    "geojson": "out.geojson",
    "qupath": "out",
    "csv": "out.csv",
    "parquet": "out.parquet",
    "anndata": "out.h5ad",
    "spatialdata": "out.zarr",
    "annotationstore": "out.db",
    "labels": "labels.zarr",
}

SHARES = {"run": 40, "group": 10, "export": 34, "training": 16}
"""Of a hundred kills."""
UNFINISHED = (".partial", ".old")
"""In the names of what a killed process was writing, which nobody takes for a result, and nobody removes."""
Kills = collections.Counter[str]


@dataclass(frozen=True)
class Job:
    """A command that is killed and given again.

    Attributes:
        name: for people.
        command: for the folder that it shall work in.
        compare: what differs between the folder of one that was never killed, and another.
        named: what is whole as soon as it is there, in that folder.
    """

    name: str
    command: Callable[[Path], list[str]]
    compare: Callable[[Path, Path], list[str]]
    named: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--roi", type=Path, help="GeoJSON of the part to look at")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", choices=SHARES, nargs="+", default=list(SHARES), help="what is killed")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        slide = options.slide or fetch_demo_slide()
        tissue = options.roi or "auto"
        if options.slide is None:
            tissue = work / "roi.geojson"
            tissue.write_text(json.dumps(square(*ROI_L0)))
        command = [*NUCPIPE, "run", str(slide), "--tissue", str(tissue)]
        command += ["--region-size", "512", "--precision", options.precision, "--out"]
        whole = work / "whole"
        took = never_killed(command, whole)
        folder = next(whole.glob("*/nuclei.zarr")).parent
        shares = split(options.kills, {kind: part if kind in options.only else 0 for kind, part in SHARES.items()})
        killed, differences = Kills(), list[str]()
        if shares["run"]:
            killed, differences = kill_run(command, work, folder, took, shares["run"], chance)
        for jobs, kills in (
            ([shared_run(command, folder)], shares["group"]),
            (list(exports(folder)), shares["export"]),
            (list(trainings(work / "data")), shares["training"]),
        ):
            for job, number in zip(jobs, spread(kills, len(jobs)), strict=True):
                if number:
                    theirs, found = kill(job, work / job.name.replace(" ", "-"), number, chance)
                    killed.update(theirs)
                    differences += found
        print(f"{sum(killed.values())} kills: {', '.join(f'{n} at {stage}' for stage, n in sorted(killed.items()))}")
        print("\n".join(differences) if differences else "all equal, none lost, none doubled")
        sys.exit(bool([text for text in differences if not text.startswith("rounding")]))


def square(x0: int, y0: int, x1: int, y1: int) -> dict[str, object]:
    """Return a rectangle as QuPath exports it."""
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}


def split(kills: int, parts: dict[str, int]) -> dict[str, int]:
    """Return so many kills by kind, in such parts."""
    ends = [round(kills * end / sum(parts.values())) for end in itertools.accumulate(parts.values(), initial=0)]
    return {kind: stop - start for kind, (start, stop) in zip(parts, itertools.pairwise(ends), strict=True)}


def spread(kills: int, jobs: int) -> list[int]:
    """Return so many kills over jobs, evenly."""
    return list(split(kills, dict.fromkeys(map(str, range(jobs)), 1)).values())


# ---- a run, by its stages


@dataclass(frozen=True)
class Took:
    """Seconds that the run took which was never killed: to the first region, to the last, and for what came then."""

    first: float
    last: float
    regions: int
    finish: float
    exports: float


def never_killed(command: list[str], out: Path) -> Took:
    """Run, and look on."""
    print("never killed:", flush=True)
    began = time.monotonic()
    with subprocess.Popen([*command, str(out)]) as process:
        seen: list[float] = []
        while process.poll() is None:
            seen += [time.monotonic() - began] * (len(list(out.glob("*/journal/*.region"))) - len(seen))
            time.sleep(0.01)
    if process.returncode or not seen:
        sys.exit("the run that nobody killed failed, or has no region")
    seconds = json.loads(next(out.glob("*/run.json")).read_text())["seconds"]
    return Took(seen[0], seen[-1], len(seen), seconds["store"], seconds["exports"])


def kill_run(
    command: list[str], work: Path, whole: Path, took: Took, kills: int, chance: random.Random
) -> tuple[Kills, list[str]]:
    """Run, kill, and run again until the wanted number of kills; then let the run end."""
    name, killed, rounds = whole.name, Kills(), list[Path]()
    wanted = split(kills, {"regions": 1, "finish": 1, "exports": 1})
    out = work / "killed-0"
    while killed.total() < kills:
        left = [stage for stage in wanted if killed[stage] < wanted[stage]] or ["regions"]
        at = stage_of(out / name)
        # A store that was being written is begun again; a finished one stays.
        reachable = [stage for stage in left if at == "regions" or stage == "exports" or (stage, at) == ("finish",) * 2]
        if not reachable:  # it is past what is wanted: another run
            rounds.append(to_the_end(command, out, name))
            out = work / f"killed-{len(rounds)}"
        process = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL)
        wait(process, out / name, (reachable or left)[0], took, chance)
        process.kill()
        if process.wait() == -signal.SIGKILL:
            stage = stage_of(out / name)
            killed[stage] += 1
            print(f"kill {killed.total()} at {stage}, {regions(out / name)} regions done", flush=True)
        else:  # it was faster
            rounds.append(out / name)
            out = work / f"killed-{len(rounds)}"
    rounds.append(to_the_end(command, out, name))
    differences = [text for finished in rounds for text in compare(whole, finished)]
    print("\n".join(["run: compared", *differences]), flush=True)
    return Kills({f"run, {stage}": n for stage, n in killed.items()}), differences


def to_the_end(command: list[str], out: Path, name: str) -> Path:
    """Let a run end."""
    print("to the end:", flush=True)
    subprocess.run([*command, str(out)], check=True)
    return out / name


def wait(process: subprocess.Popen[bytes], folder: Path, target: str, took: Took, chance: random.Random) -> None:
    """Wait until this process is at the stage, and then for a random part of the time that it takes."""
    began, left = time.time(), 1 - regions(folder) / took.regions

    def written(names: str) -> bool:
        """Tell whether this process has written something of such a name; other ones have begun it before."""
        return any(path.stat().st_mtime > began for path in folder.glob(names))

    seconds, begun = {
        "regions": (took.first + (took.last - took.first) * left, lambda: True),
        "finish": (took.finish, lambda: written("nuclei.zarr*")),
        "exports": (took.exports, lambda: stage_of(folder) == "exports" and written("[!.]*")),
    }[target]
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # it was renamed as we looked
            if begun():
                break
        time.sleep(0.001)
    time.sleep(chance.uniform(0, seconds))


def regions(folder: Path) -> int:
    """Return how many are in the journal."""
    return len(list((folder / "journal").glob("*.region")))


def stage_of(folder: Path) -> str:
    """Return what the run was at, by what it left on the disk."""
    if (folder / "nuclei.zarr").exists():
        return "exports"
    return "finish" if (folder / "nuclei.zarr.partial").exists() else "regions"


def compare(whole: Path, other: Path) -> list[str]:
    """Return what differs between two results."""
    differences = []
    left = sorted(path.name for path in other.iterdir())
    if left != sorted(path.name for path in whole.iterdir()):
        differences.append(f"{other}: other files: {left}")
    a, b = open_store(whole / "nuclei.zarr"), open_store(other / "nuclei.zarr")
    print(f"{len(a)} nuclei never killed, {len(b)} nuclei killed, {len(set(b.ids))} of them distinct", flush=True)
    if not np.array_equal(a.ids, b.ids):
        return [*differences, f"{other}: {len(set(a.ids) - set(b.ids))} lost, {len(set(b.ids) - set(a.ids))} more"]
    for what in ("centroids_l0", "detection_p", "area_um2"):
        if not np.array_equal(getattr(a, what), getattr(b, what)):
            differences.append(f"{other}: {what}")
    if any(not np.array_equal(x, y) for x, y in zip(a.contours(), b.contours(), strict=True)):
        differences.append(f"{other}: outlines")
    for library in a.info.outputs.libraries:
        changed = int((a.label_numbers(library.name) != b.label_numbers(library.name)).sum())
        if changed:
            differences.append(f"{other}: {changed} labels of {library.name}")
    if most := float(np.abs(a.probabilities - b.probabilities).max(initial=0)):
        differences.append(f"rounding: {other}: probabilities differ by at most {most:.2g}")
    elif (whole / "nuclei.geojson").read_bytes() != (other / "nuclei.geojson").read_bytes():
        differences.append(f"{other}: nuclei.geojson")
    return differences


# ---- everything else, as a process group


def kill(job: Job, work: Path, kills: int, chance: random.Random) -> tuple[Kills, list[str]]:
    """Kill a job at moments of the time that it takes until the wanted number of kills; then let it end."""
    whole = work / "whole"
    whole.mkdir(parents=True)
    began = time.monotonic()
    log = work / "log"
    subprocess.run(job.command(whole), check=True, stdout=log.open("w"), stderr=subprocess.STDOUT)
    seconds = time.monotonic() - began
    killed, rounds, differences, there = 0, 1, list[str](), False
    out = work / "killed-0"
    out.mkdir()
    print(f"{job.name}: {seconds:.1f} s when never killed", flush=True)
    while True:
        at_last = killed == kills
        process = subprocess.Popen(
            job.command(out), stdout=log.open("a"), stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(None if at_last else chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        if status == -signal.SIGKILL:
            killed += 1
            print(f"kill {killed} of {job.name}", flush=True)
            if job.named and (out / job.named).exists():
                differences += job.compare(whole, out)
                there = True
            elif there:
                differences.append(f"{out / str(job.named)}: was there before the kill, and is not now")
            continue
        if status:
            differences.append(f"{job.name} after a kill: exit status {status}: {log.read_text()[-500:]}")
        else:
            differences += job.compare(whole, out)
        if at_last:
            break
        rounds, there = rounds + 1, False
        out = work / f"killed-{rounds}"
        out.mkdir()
    print("\n".join([f"{job.name}: compared", *differences]), flush=True)
    return Kills({job.name: killed}), differences


def same_bytes(whole: Path, other: Path) -> list[str]:
    """Return which files differ between two folders, but for the folder's address, which QuPath's scripts have.

    What a killed process was writing is passed over.
    """

    def files(folder: Path) -> dict[str, bytes]:
        paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        address = str(folder.resolve()).encode()
        kept = {name: path for name, path in paths.items() if not any(sign in name for sign in UNFINISHED)}
        return {name: path.read_bytes().replace(address, b"") for name, path in kept.items()}

    a, b = files(whole), files(other)
    return [f"{other / name}: differs" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def shared_run(command: list[str], whole: Path) -> Job:
    """Return a run whose regions two processes share; all of them are killed, with the one that gives them work."""
    return Job(
        "group of a shared run",
        lambda out: [*command, str(out), "--cluster", "local:2"],
        lambda _, other: compare(whole, other / whole.name),
    )


def exports(result: Path) -> Iterator[Job]:
    """Yield an export to each format, onto what an earlier one has left."""
    for form, name in EXPORTS.items():

        def command(out: Path, form: str = form, name: str = name) -> list[str]:
            return [*NUCPIPE, "export", str(result), "--to", form, "--out", str(out / name), "--overwrite"]

        yield Job(f"export to {form}", command, same_bytes, name)


def trainings(data: Path) -> Iterator[Job]:
    """Yield a short training of each model on drawn nuclei, from the bundled models."""
    for folder in ("Images", "Labels"):
        (data / folder).mkdir(parents=True)
    for seed in range(3):
        drawn = draw_slide(264, 264, seed=seed)
        drawn.save(data / "Images" / f"image_{seed}.png")
        number, instances = cv2.connectedComponents((drawn.image[..., 1] < 110).astype(np.uint8), connectivity=4)
        types = 2 + np.arange(number - 1)[:, None] % 3
        scipy.io.savemat(data / "Labels" / f"image_{seed}.mat", {"inst_map": instances, "inst_type": types})
    common = ["--hold-out", "image_2", "--device", "cpu", "--out"]
    for kind, of in (
        ("segmentor", ["--data", str(data), "--steps", "4", "--batch-size", "1", "--start-from", "hovernet-compact"]),
        ("classifier", ["--library", f"consep={data}", "--steps", "12", "--batch-size", "8", "--start-from", "fast"]),
    ):

        def command(out: Path, kind: str = kind, of: list[str] = of) -> list[str]:
            return [*OFTEN_SAVED, "train", kind, *of, *common, str(out / "model.safetensors")]

        yield Job(f"training of a {kind}", command, same_model)


def same_model(whole: Path, other: Path) -> list[str]:
    """Return what differs between two trained models, and between the tables of their losses."""
    differences = []
    (tensors, header), (others, other_header) = (read_model(folder / "model.safetensors") for folder in (whole, other))
    if header != other_header:
        differences.append(f"{other}: the model's header")
    if tensors.keys() != others.keys() or any(not torch.equal(tensors[name], others[name]) for name in tensors):
        differences.append(f"{other}: the model's weights")
    if (whole / "model.losses.csv").read_bytes() != (other / "model.losses.csv").read_bytes():
        differences.append(f"{other}: the losses")
    return differences


def read_model(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a file's tensors and its header; in which order they stand in the file is left to chance."""
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


if __name__ == "__main__":
    main()
