"""Accuracy on tissue never seen: every group of some libraries is left out of a training once.

python benchmarks/leave_one_out.py CONFIG.toml --leave "pannuke=*" --leave "ocelot=stomach *" --out training/left-out

CONFIG is a file as for `nucpipe train classifier --config`; what it holds out stays out of every training and of
every figure, so that final figures can be taken there, once. `--leave LIBRARY=GROUPS` names groups (wildcards) that
are left out together; `LIBRARY=*` leaves out each group of the library in turn. Models and figures are kept in OUT,
and the same command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from pathlib import Path
from typing import Any

import click

from classifier.dataset import extract_patches
from classifier.evaluation.metrics import evaluate_logits, predict_logits
from classifier.labels.label_mapping import Matching, make_matching
from classifier.labels.libraries import libraries_of
from classifier.network import load_classifier
from classifier.training.config import ClassifierTraining
from classifier.training.config_file import read_config
from classifier.training.train import train_classifier
from nucpipe.datasets import AnnotatedImage, open_dataset, split_groups
from nucpipe.errors import UsageError
from pipeline.inference.models import find_model


def rounds(config: ClassifierTraining, leave: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (library, groups) of every training.

    Raises:
        UsageError: there is no such library or group.
    """
    found = []
    for text in leave:
        name, _, pattern = text.partition("=")
        images = images_of(config, name)
        groups = sorted({image.group for image in images if fnmatch.fnmatch(image.group, pattern)})
        if not groups:
            raise UsageError(f"--leave {text}: no such group; expected a name or pattern such as {images[0].group}.")
        found += [(name, group) for group in groups] if pattern == "*" else [(name, pattern)]
    return found


def images_of(config: ClassifierTraining, name: str) -> list[AnnotatedImage]:
    """Return a library's images that the config does not hold out."""
    paths = [path for library, path in config.libraries if library.lower() == name.lower()]
    if not paths:
        raise UsageError(f"--leave {name}: none of the training's libraries.")
    kept = [split_groups(open_dataset(path), config.hold_out)[0] for path in paths]
    return [image for images in kept for image in images]


def measured(config: ClassifierTraining, matching: Matching, name: str, groups: str) -> dict[str, Any]:
    """Return the figures of a trained model on the groups that its training left out."""
    images = [image for image in images_of(config, name) if fnmatch.fnmatch(image.group, groups)]
    library = next(one for one in matching.sources if one.name.lower() == name.lower())
    samples = extract_patches(library, images, matching)
    model, _, outputs = load_classifier(config.out)
    logits = predict_logits(model, samples, config.device, config.computed_in)
    figures = evaluate_logits(logits, samples, outputs, matching.partial)[library.name]
    if "accuracy" in figures:
        return {"nuclei": figures["nuclei"], "accuracy": figures["accuracy"], "macro_f1": figures["macro_f1"]}
    shares = {other: of["balanced_accuracy"] for other, of in figures["partial"].items()}
    return {"nuclei": len(samples), **shares}


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@click.option("--leave", multiple=True, required=True, metavar="LIBRARY=GROUPS")
@click.option("--steps", type=int, help="Instead of the file's.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(file: Path, leave: tuple[str, ...], steps: int | None, out: Path) -> None:
    """Train and measure; prints a table."""
    out.mkdir(parents=True, exist_ok=True)
    base = ClassifierTraining(**(read_config(file) | {"out": out / "base.safetensors"}))
    start = tuple(find_model("classifier", str(model)) for model in base.start_from)
    base = dataclasses.replace(base, start_from=start, steps=base.steps if steps is None else steps)
    matching = make_matching(libraries_of(base.libraries), base.match, base.similarity, base.match_table)
    rows = []
    for name, groups in rounds(base, leave):
        stem = f"{name}-{groups}".replace("*", "all").replace(" ", "-").replace("/", "-")
        config = dataclasses.replace(base, hold_out=(*base.hold_out, groups), out=out / f"{stem}.safetensors")
        kept = config.out.with_suffix(".json")
        if not kept.is_file():
            train_classifier(config, lambda text: click.echo(text, err=True))
            kept.write_text(json.dumps(measured(dataclasses.replace(base, out=config.out), matching, name, groups)))
        rows.append((name, groups, json.loads(kept.read_text())))
        click.echo(f"{name} {groups}: {rows[-1][2]}", err=True)
    click.echo(f"{base.steps} steps a training; seed {base.seed}\n")
    click.echo("| library | left out | nuclei | figures |\n|---|---|---|---|")
    for name, groups, figures in rows:
        text = ", ".join(f"{key} {value:.3f}" for key, value in figures.items() if key != "nuclei")
        click.echo(f"| {name} | {groups} | {figures['nuclei']:,} | {text} |")


if __name__ == "__main__":
    main()
