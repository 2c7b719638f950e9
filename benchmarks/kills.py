"""Kill a run with SIGKILL at random moments, run it again, and compare what comes out with a run that was never killed.

    python benchmarks/kills.py [--kills 25] [--seed 0] [--slide SLIDE --roi ROI.geojson]

The kills fall on the regions, on the finishing of the store, and on the exports. Without a slide of your own a part of
the demo slide is taken. Prints the kills by stage, and what differs; the exit status is 1 where anything does.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.cli.demo_slide import fetch_demo_slide
from pipeline.store.reader import open_store

ROI_L0 = (500, 1000, 1900, 2000)  # of the demo slide: x0, y0, x1, y1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--roi", type=Path, help="GeoJSON of the part to look at")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        slide = options.slide or fetch_demo_slide()
        tissue = options.roi or "auto"
        if options.slide is None:
            tissue = work / "roi.geojson"
            tissue.write_text(json.dumps(square(*ROI_L0)))
        command = [sys.executable, "-m", "nucpipe", "run", str(slide), "--tissue", str(tissue)]
        command += ["--region-size", "512", "--precision", options.precision, "--out"]
        whole = work / "whole"
        print("never killed:", flush=True)
        subprocess.run([*command, str(whole)], check=True)
        folder = next(whole.glob("*/nuclei.zarr")).parent
        stages = json.loads((folder / "run.json").read_text())["seconds"]
        rounds, killed, longest = kill(command, work, folder.name, stages, options.kills, random.Random(options.seed))
        differences = [text for finished in rounds for text in compare(folder, finished)]
        print(f"{sum(killed.values())} kills: {', '.join(f'{n} at {stage}' for stage, n in sorted(killed.items()))}")
        print(f"most kills of one run: {longest}; {len(rounds)} finished runs compared with the one never killed")
        print("\n".join(differences) if differences else "all equal: store and GeoJSON, none lost, none doubled")
        sys.exit(bool([text for text in differences if not text.startswith("rounding")]))


def square(x0: int, y0: int, x1: int, y1: int) -> dict[str, object]:
    """Return a rectangle as QuPath exports it."""
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}


def kill(
    command: list[str], work: Path, name: str, stages: dict[str, float], kills: int, chance: random.Random
) -> tuple[list[Path], collections.Counter[str], int]:
    """Run, kill, and run again until the wanted number of kills; then let the run end."""
    killed: collections.Counter[str] = collections.Counter()
    rounds: list[Path] = []
    longest = of_this_run = 0
    wanted = {"finish": kills // 3, "exports": kills // 3, "regions": kills - 2 * (kills // 3)}
    out = work / "killed-0"
    while sum(killed.values()) < kills:
        left = [stage for stage in ("regions", "finish", "exports") if killed[stage] < wanted[stage]]
        before, at = regions(out / name), stage_of(out / name)
        # A store that was being written is begun again; a finished one stays.
        reachable = [stage for stage in left if at == "regions" or stage == "exports" or (stage, at) == ("finish",) * 2]
        target = (reachable or left)[0]
        if not reachable:  # it is past what is wanted: another run
            rounds.append(to_the_end(command, out, name))
            longest, of_this_run = max(longest, of_this_run), 0
            out, before = work / f"killed-{len(rounds)}", 0
        process = subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL)
        wait(process, out / name, target, before, stages, chance)
        process.kill()
        if process.wait() == -9:
            stage = stage_of(out / name)
            killed[stage] += 1
            of_this_run += 1
            print(f"kill {sum(killed.values())} at {stage}, {regions(out / name)} regions done", flush=True)
        else:  # it was faster
            rounds.append(out / name)
            longest, of_this_run = max(longest, of_this_run), 0
            out = work / f"killed-{len(rounds)}"
    return [*rounds, to_the_end(command, out, name)], killed, max(longest, of_this_run)


def to_the_end(command: list[str], out: Path, name: str) -> Path:
    """Let a run end."""
    print("to the end:", flush=True)
    subprocess.run([*command, str(out)], check=True)
    return out / name


def wait(
    process: subprocess.Popen[bytes],
    folder: Path,
    target: str,
    before: int,
    stages: dict[str, float],
    chance: random.Random,
) -> None:
    """Wait for the stage, and then for a random part of it."""
    seconds = {"regions": 0.5, "finish": stages["store"], "exports": stages["exports"]}[target]
    begun = {
        "regions": lambda: regions(folder) > before or stage_of(folder) != "regions",
        "finish": lambda: (folder / "nuclei.zarr.partial").exists() or (folder / "nuclei.zarr").exists(),
        "exports": lambda: (folder / "nuclei.zarr").exists(),
    }[target]
    while process.poll() is None and not begun():
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.9 * seconds))


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


if __name__ == "__main__":
    main()
