"""One classifier for all libraries against one for each: same data, same network, same number of steps per library.

python benchmarks/joint_vs_separate.py --library consep=DATA/consep --library monusac=DATA/monusac \
    --library brecahad=DATA/brecahad --library pannuke=DATA/pannuke --out training/joint

Every library's groups (images, patients, cases, tissues) are dealt into as many folds as there are seeds; seed k holds
fold k out, so that every nucleus is tested once, by a model that saw nothing of its group. Compared is the macro
F1 of the pooled predictions, with an interval from 1,000 paired draws of whole groups. Runs are kept in OUT/runs.jsonl
and the same command goes on after an interruption; --table only writes what is there into docs/joint.md.

Kinds of runs: ``joint``; ``separate NAME``; ``carried NAME``: the library's labels taught by the other libraries alone,
through the table of matching labels; ``completed``: a second joint round in which the first one's confident predictions
teach (label completion).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from classifier.dataset import PatchDataset, extract_patches
from classifier.evaluation.metrics import predict_logits
from classifier.labels.label_mapping import Matching, make_matching
from classifier.labels.libraries import LabelSpace, Library, libraries_of
from classifier.network import MEAN, STD, Enlarged, JointClassifier
from classifier.predictions import probabilities
from classifier.predictor import ROWS
from classifier.spec import MPP, PATCH_PX
from classifier.training.config import ClassifierTraining
from classifier.training.pseudo_labels import pseudo_label
from classifier.training.start import new_model
from classifier.training.train import architecture, fit
from nucpipe.backends.base import Input
from nucpipe.backends.device import pick_precision
from nucpipe.backends.model_file import ModelHeader, save_model
from nucpipe.backends.select import select_backend
from nucpipe.datasets import open_dataset

CPU = "cpu"
DRAWS = 1000
MIN_UNITS = 5
DOCUMENT = Path(__file__).parents[1] / "docs" / "joint.md"


@dataclasses.dataclass(frozen=True)
class Data:
    """All nuclei with their folds."""

    samples: PatchDataset
    matching: Matching
    fold: np.ndarray  # (N,)
    units: tuple[str, ...]  # what the bootstrap draws, of each image
    names: tuple[str, ...]  # the libraries that have nuclei


def deal(groups: Iterable[str], folds: int) -> dict[str, int]:
    """Return each group's fold: largest first, each to the fold that has least; ties by a hash of the name."""
    counts: dict[str, int] = defaultdict(int)
    for group in groups:
        counts[group] += 1
    filled, fold_of = [0] * folds, {}
    for group in sorted(counts, key=lambda g: (-counts[g], hashlib.sha256(g.encode()).digest())):
        fold_of[group] = int(np.argmin(filled))
        filled[fold_of[group]] += counts[group]
    return fold_of


def load(sets: Sequence[tuple[str, Path]], folds: int) -> Data:
    libraries = libraries_of(sets)
    matching = make_matching(libraries)
    parts, fold, units, names = [], [], [], []
    for name, path in sets:
        library = LabelSpace(libraries, ()).library(name)
        images = open_dataset(path)
        part = extract_patches(library, images, matching)
        fold_of = deal((image.group for image in images), folds)
        fold.append(np.array([fold_of[image.group] for image in images])[part.image])
        few = len(fold_of) < MIN_UNITS
        units += [image.name if few else image.group for image in images]
        parts.append(part)
        names.append(library.name)
        print(f"{library.name}: {len(part)} nuclei, {len(images)} images, {len(fold_of)} groups", flush=True)
    return Data(PatchDataset.concatenate(parts), matching, np.concatenate(fold), tuple(units), tuple(names))


def train(
    data: Data, kind: str, name: str, seed: int, base: ClassifierTraining, out: Path
) -> dict[str, list[list[Any]]]:
    """Return one run; for each tested library [unit, truth, predicted, how many]."""
    libraries = data.matching.libraries
    place = {library.name: k for k, library in enumerate(libraries)}
    rows = data.fold != seed
    if kind == "separate":
        rows = rows & (data.samples.library == place[name])
    elif kind == "carried":
        rows = data.samples.library != place[name]
    taught = data.samples.select(rows)
    if kind == "separate":
        columns = LabelSpace(libraries, ()).slices[name]
        own = np.zeros_like(taught.targets)
        own[:, columns] = taught.targets[:, columns]
        taught = dataclasses.replace(taught, targets=own)
    outputs = LabelSpace(libraries, tuple(bool(n) for n in data.matching.taught(taught.targets)))
    if kind == "completed":
        first = model_path(out, "joint", "", seed)
        taught = pseudo_label(taught, outputs, first, base.complete_above, CPU, base.computed_in, print)
    sets = len(np.unique(taught.library))
    path = model_path(out, kind, name, seed)
    config = dataclasses.replace(base, seed=seed, out=path, steps=base.steps * sets)
    tensors, _ = fit(config, taught, taught.select(np.zeros(len(taught), bool)), outputs, None, print)
    header = ModelHeader("classifier", path.stem, architecture(config), MPP, MEAN, STD, outputs.to_dict())
    save_model(path, header, tensors)
    model = new_model(config, outputs, lambda _: None)
    model.load_state_dict(tensors)
    tested = {"separate": [name], "carried": [name]}.get(kind, list(data.names))
    result = {}
    for library in tested:
        mine = (data.samples.library == place[library]) & (data.samples.label >= 0)
        held = data.samples.select(mine if kind == "carried" else mine & (data.fold == seed))
        p = probabilities(predict_logits(model.eval(), held, CPU, base.computed_in), outputs)
        said = outputs.best(p)[library]
        counts: dict[tuple[str, int, int], int] = defaultdict(int)
        for image, truth, label in zip(held.image, held.label, said, strict=True):
            counts[data.units[image], int(truth), int(label)] += 1
        result[library] = [[*key, n] for key, n in counts.items()]
    return result


def model_path(out: Path, kind: str, name: str, seed: int) -> Path:
    return out / f"{kind}-{name}-{seed}.safetensors".replace("--", "-")


def speed(names: Sequence[str], libraries: Sequence[Library], base: ClassifierTraining) -> dict[str, float]:
    """Return nuclei a second of one processor's time by one joint network, and by one network after another."""
    crops = np.random.default_rng(0).integers(0, 255, (1024, 64, 64, 3), np.uint8)
    precision = pick_precision("auto", CPU)

    def once(sets: Sequence[Sequence[Library]]) -> float:
        made = []
        for some in sets:
            outputs = LabelSpace(tuple(some), (True,) * sum(len(library.labels) for library in some))
            model = JointClassifier(len(outputs), base.backbone, base.sizes[-1][1], strides=base.strides).eval()
            made.append(select_backend(partial(Enlarged, model), CPU, precision, 1, ROWS, (Input(PATCH_PX),)))
        best = 0.0
        for _ in range(6):
            began = time.process_time()
            for runtime in made:
                runtime(crops)
            best = max(best, len(crops) / (time.process_time() - began))
        return best

    separate = [[library] for library in libraries if library.name in names]
    return {"joint": once([libraries]), "separate": once(separate)}


def macro_f1(matrix: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Of matrices (..., K, K), over the labels that are ``there``."""
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    total = matrix.sum(-1) + matrix.sum(-2)
    return (2 * right / np.maximum(total, 1))[..., there].mean(-1)


def pooled(runs: list[dict[str, Any]], kind: str, library: str, size: int, beside: str = "") -> dict[str, np.ndarray]:
    """Confusion matrices by unit, of all runs together whose seed has a run of the kind ``beside`` too."""

    def seeds(of: str) -> set[int]:
        return {run["seed"] for run in runs if run["kind"] == of and run["name"] in ("", library)}

    chosen = seeds(kind) & seeds(beside) if beside and "carried" not in (kind, beside) else seeds(kind)
    matrices: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((size, size)))
    for run in runs:
        if run["kind"] == kind and run["name"] in ("", library) and run["seed"] in chosen:
            for unit, truth, said, n in run["result"].get(library, ()):
                matrices[unit][truth, said] += n
    return matrices


def compared(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> tuple[float, float, tuple[float, float], float, float]:
    """Macro F1 of both, the 95 % interval of second less first, and both accuracies."""
    units = sorted(first)
    a, b = (np.stack([m[unit] for unit in units]) for m in (first, second))
    there = a.sum((0, 2)) > 0
    draws = np.random.default_rng(0).multinomial(len(units), np.full(len(units), 1 / len(units)), DRAWS).astype(float)
    difference = macro_f1(np.tensordot(draws, b, 1), there) - macro_f1(np.tensordot(draws, a, 1), there)
    low, high = np.quantile(difference, (0.025, 0.975))
    whole = [m.sum(0) for m in (a, b)]
    one, two = (float(macro_f1(m, there)) for m in whole)
    right = [float(np.trace(m) / m.sum()) for m in whole]
    return one, two, (float(low), float(high)), right[0], right[1]


def table(runs: list[dict[str, Any]], libraries: Sequence[Library]) -> dict[str, list[str]]:
    """Return the lines of each part of the document that this script writes."""
    parts: dict[str, list[str]] = {}
    by_name = {library.name: library for library in libraries}
    names = [name for name in by_name if any(run["kind"] == "separate" and run["name"] == name for run in runs)]

    def rows(kind: str, title: str, base: str, base_title: str, chosen: Sequence[str]) -> list[str]:
        lines = [
            f"| library | nuclei | {base_title} macro F1 | {title} macro F1 | difference, 95 % | "
            f"{base_title} accuracy | {title} accuracy |",
            "|---|---|---|---|---|---|---|",
        ]
        gains = []
        for name in chosen:
            size = len(by_name[name].labels)
            first, second = (pooled(runs, *pair) for pair in ((base, name, size, kind), (kind, name, size, base)))
            # What was carried over was tested on everything, by one network.
            second = {unit: matrix for unit, matrix in second.items() if unit in first}
            if not first or first.keys() != second.keys():
                continue
            one, two, (low, high), right_one, right_two = compared(first, second)
            gains.append(two - one)
            count = int(sum(m.sum() for m in first.values()))
            lines.append(
                f"| {name} | {count:,} | {one:.3f} | {two:.3f} | {two - one:+.3f} ({low:+.3f} to {high:+.3f}) | "
                f"{right_one:.3f} | {right_two:.3f} |"
            )
        if not gains:
            return ["Not measured yet."]
        if len(gains) == 1:
            return lines
        return [*lines, f"| mean | | | | {np.mean(gains):+.3f} | | |"]

    parts["joint"] = rows("joint", "joint", "separate", "separate", names)
    parts["completed"] = rows("completed", "completed", "joint", "joint", names)
    carried = sorted({run["name"] for run in runs if run["kind"] == "carried"})
    parts["carried"] = rows("carried", "others alone", "separate", "own labels", carried)
    parts["labels"] = ["| library | label | nuclei | separate F1 | joint F1 |", "|---|---|---|---|---|"]
    for name in names:
        size = len(by_name[name].labels)
        first, second = (
            sum(pooled(runs, k, name, size, other).values(), np.zeros(()))
            for k, other in (("separate", "joint"), ("joint", "separate"))
        )
        if first.ndim != 2 or second.ndim != 2:
            continue
        for k, label in enumerate(by_name[name].labels):
            if first[k].sum():
                one, two = (2 * m[k, k] / max(1, m[k].sum() + m[:, k].sum()) for m in (first, second))
                parts["labels"].append(f"| {name} | {label} | {int(first[k].sum()):,} | {one:.3f} | {two:.3f} |")
    for run in runs:
        if run["kind"] == "speed":
            one, all_ = run["result"]["joint"], run["result"]["separate"]
            parts["cost"] = [
                "| | nuclei a second of one core's time |",
                "|---|---|",
                f"| one joint network | {one:,.0f} |",
                f"| {len(names)} separate networks, one after another | {all_:,.0f} |",
                "",
                f"The joint pass is {one / all_:.1f} times as fast ({run['precision']}, untrained networks).",
            ]
    return parts


def write_document(parts: dict[str, list[str]]) -> None:
    text = DOCUMENT.read_text("utf-8")
    for name, lines in parts.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if begin in text:
            before, rest = text.split(begin, 1)
            text = before + begin + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1]
    DOCUMENT.write_text(text, "utf-8")


@click.command()
@click.option("--library", "sets", multiple=True, required=True, metavar="NAME=PATH")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--seeds", default=3, show_default=True, help="As many folds.")
@click.option("--fold", "folds", type=int, multiple=True, help="Only these of them, from 0.")
@click.option("--steps", default=300, show_default=True, help="Batches of 64, for each library.")
@click.option("--size", default=64, show_default=True)
@click.option("--strides", default="", help="Of an EfficientNet's stem and each stage.")
@click.option("--context", is_flag=True, help="Look at the tissue round a nucleus, too; --size is not read.")
@click.option("--carried", multiple=True, default=("PanNuke",), show_default=True)
@click.option("--completed/--no-completed", default=True, show_default=True)
@click.option("--complete-above", default=0.9, show_default=True, help="How sure the first round must be.")
@click.option("--cost", is_flag=True, help="Measure the speed only.")
@click.option("--table", "only_table", is_flag=True, help="Write the document only.")
def main(
    sets: Sequence[str],
    out: Path,
    seeds: int,
    folds: Sequence[int],
    steps: int,
    size: int,
    strides: str,
    context: bool,
    carried: Sequence[str],
    completed: bool,
    complete_above: float,
    cost: bool,
    only_table: bool,
) -> None:
    """Train what is missing in OUT and write docs/joint.md."""
    pairs = [(text.split("=", 1)[0], Path(text.split("=", 1)[1])) for text in sets]
    base = ClassifierTraining(
        tuple(pairs),
        out / "none.safetensors",
        steps=steps,
        sizes=((1.0, size),),
        strides=tuple(int(s) for s in strides.split(",") if s),
        context=context,
        sampling="round-robin",
        complete_above=complete_above,
    )
    out.mkdir(parents=True, exist_ok=True)
    log = out / "runs.jsonl"
    runs = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    libraries = libraries_of(pairs)
    names = [LabelSpace(libraries, ()).library(name).name for name, _ in pairs]

    def keep(kind: str, name: str, seed: int, result: dict[str, Any], **more: Any) -> None:
        runs.append({"kind": kind, "name": name, "seed": seed, "result": result, **more})
        with log.open("a") as file:
            file.write(json.dumps(runs[-1]) + "\n")
        write_document(table(runs, libraries))

    if cost:
        precision = pick_precision("auto", CPU)
        keep("speed", "", 0, speed(names, libraries, base), precision=precision)
    if cost or only_table:
        write_document(table(runs, libraries))
        return
    wanted = []
    for seed in folds or range(seeds):
        wanted += [("joint", "", seed), *(("separate", name, seed) for name in names)]
    wanted += [("carried", name, 0) for name in carried]
    wanted += [("completed", "", seed) for seed in folds or range(seeds) if completed]
    done = {(run["kind"], run["name"], run["seed"]) for run in runs}
    missing = [run for run in wanted if run not in done]
    data = load(pairs, seeds) if missing else None
    for kind, name, seed in missing:
        assert data is not None
        began = time.monotonic()
        result = train(data, kind, name, seed, base, out)
        keep(kind, name, seed, result, seconds=round(time.monotonic() - began))
        print(f"{kind} {name} seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
