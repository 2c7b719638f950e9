"""Report of ``nucpipe evaluate classifier``: figures, tables, confusion matrices."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classifier.dataset import PatchDataset, extract_patches
from classifier.evaluation.metrics import intervals_in_words, library_figures, partial_figures, predict_logits
from classifier.labels.label_mapping import Matching, make_matching
from classifier.labels.libraries import LabelSpace, load_library
from classifier.network import load_classifier
from classifier.predictions import probabilities
from nucpipe.backends.device import pick_device, pick_precision
from nucpipe.backends.model_file import NOTHING_UNSEEN, ModelHeader
from nucpipe.datasets import AnnotatedImage, choose_images, open_dataset
from nucpipe.datasets.base import LIBRARY_FILE
from nucpipe.errors import DataError


def evaluate_classifier(
    path: Path,
    data: Sequence[tuple[str, Path]],
    out: Path | None,
    say: Callable[[str], None],
    hold_out: Sequence[str] = (),
    everything: bool = False,
    device: str = "auto",
    precision: str = "auto",
    context: bool = True,
) -> dict[str, Any]:
    """Return by library what ``classifier.evaluation.metrics.library_figures`` measures of a classifier.

    Args:
        path: the model file.
        data: (library, folder) of each data set.
        out: folder for ``figures.json``, ``predictions.csv`` and a picture for each library, if wanted.
        say: told the results, a line each.
        hold_out: images or groups to measure on; without any, what the model's training held out.
        everything: measure on all images.
        device, precision: where and how the network runs.
        context: whether a network that looks at the context is shown it.

    Raises:
        UsageError: an unknown library or device, or nothing to measure on.
        DataError: a data set is broken.
    """
    where = pick_device(device)
    how = pick_precision(precision, where)
    model, header, outputs = load_classifier(path)
    for line in header.made_from_in_words:
        say(line)
    figures: dict[str, Any] = {}
    rows: list[list[object]] = []
    for name, folder in data:
        matching = _matching(outputs, name, folder)
        library = next(source for source in matching.sources if source.name.lower() == name.lower())
        images = _chosen(open_dataset(folder), library.name, header, hold_out, everything, say)
        samples = extract_patches(library, images, matching)
        if not len(samples):
            raise DataError(f"{folder}: none of the chosen images has a nucleus.")
        p = probabilities(predict_logits(model, samples, where, how, context), outputs)
        if library.partial:
            figures[library.name] = partial_figures(p, samples, outputs, library, matching.sources.index(library))
            _tell_partial(library.name, figures[library.name], say)
            continue
        found = library_figures(p, samples, outputs, library.name)
        figures[library.name] = found
        taught = next((bool(e["images"]) for e in header.all_data if e["name"] == library.name), True)
        _tell(library.name, found, taught, say)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for grouping, part in {"": found, **found.get("groups", {})}.items():
                if "matrix" in part:
                    _draw_matrix(part, library.name, out / f"{'-'.join(filter(None, (library.name, grouping)))}.png")
            rows += _predictions(samples, p[:, outputs.slices[library.name]], outputs, library.name)
    if out is not None:
        (out / "figures.json").write_text(json.dumps(figures, indent=1), "utf-8")
        with (out / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("library", "group", "image", "x", "y", "truth", "predicted", "probabilities"))
            writer.writerows(rows)
        say(f"wrote {out / 'figures.json'}, predictions.csv and a confusion matrix for each library")
    return figures


def _matching(outputs: LabelSpace, name: str, path: Path) -> Matching:
    """Return a classifier's libraries, and the partial one that the folder defines, if it is not among them.

    Raises:
        UsageError: neither knows the name.
    """
    if any(library.name.lower() == name.lower() for library in outputs.libraries):
        return Matching(outputs.libraries)
    library = load_library(path / LIBRARY_FILE) if (path / LIBRARY_FILE).is_file() else outputs.library(name)
    if library.name.lower() != name.lower() or not library.partial:
        outputs.library(name)
    return make_matching((*outputs.libraries, library), "own")


def _chosen(
    images: list[AnnotatedImage],
    library: str,
    header: ModelHeader,
    hold_out: Sequence[str],
    everything: bool,
    say: Callable[[str], None],
) -> list[AnnotatedImage]:
    patterns = list(hold_out)
    if not patterns and not everything:
        patterns = header.held_out_of(library)
        if not patterns:
            say(f"{library}: {NOTHING_UNSEEN}")
    return choose_images(images, library, [] if everything else patterns)


def _tell_partial(name: str, figures: dict[str, Any], say: Callable[[str], None]) -> None:
    if not figures["partial"]:
        say(f"{name}: the labels of its {figures['nuclei']} nuclei say nothing that could be measured.")
    for other, of in figures["partial"].items():
        own = ", ".join(f"{label} {row['recall']:.3f} of {row['count']}" for label, row in of["labels"].items())
        say(
            f"\n{name}: {other}'s label may be right for {of['accuracy']:.3f} of {of['nuclei']} nuclei, balanced "
            f"{of['balanced_accuracy']:.3f} ({own})"
        )


def _tell(name: str, figures: dict[str, Any], taught: bool, say: Callable[[str], None]) -> None:
    note = "" if taught else " (its labels were taught by other libraries only)"
    for grouping, part in {"": figures, **figures.get("groups", {})}.items():
        if "accuracy" not in part:
            continue
        interval = "no interval" if part["accuracy_95"] is None else "{:.3f} to {:.3f}".format(*part["accuracy_95"])
        auroc = "-" if part["auroc"] is None else f"{part['auroc']:.3f}"
        say(
            f"\n{' '.join(filter(None, (name, grouping)))}{note}: {part['nuclei']} nuclei, accuracy "
            f"{part['accuracy']:.3f} ({interval}), balanced {part['balanced_accuracy']:.3f}, macro F1 "
            f"{part['macro_f1']:.3f}, weighted F1 {part['weighted_f1']:.3f}, AUROC {auroc}, calibration error "
            f"{part['ece']:.3f}"
        )
        say(f"  {'label':<24}{'nuclei':>7}{'precision':>11}{'recall':>8}{'F1':>7}   95 %")
        for label, row in part["labels"].items():
            cells = ("    -" if row[k] is None else f"{row[k]:.3f}" for k in ("precision", "recall", "f1"))
            interval = "" if row["f1_95"] is None else "{:.2f} to {:.2f}".format(*row["f1_95"])
            untrained = "  (untrained)" if label in part.get("untrained", ()) else ""
            precision, recall, f1 = cells
            say(f"  {label:<24}{row['count']:>7}{precision:>11}{recall:>8}{f1:>7}   {interval}{untrained}")
    if "units" in figures:
        say(f"  intervals: {intervals_in_words(figures)}")


def _predictions(
    samples: PatchDataset, p: npt.NDArray[np.float32], outputs: LabelSpace, name: str
) -> list[list[object]]:
    labels = outputs.library(name).labels
    rows: list[list[object]] = []
    for i in range(len(samples)):
        group, image = samples.images[samples.image[i]]
        allowed = samples.targets[i, outputs.slices[name]]
        truth = "|".join(label for label, yes in zip(labels, allowed, strict=True) if yes)
        x, y = (round(float(v), 2) for v in samples.centroids[i])
        said = " ".join(f"{v:.4f}" for v in p[i])
        rows.append([name, group, image, x, y, truth, labels[int(p[i].argmax())], said])
    return rows


def _draw_matrix(figures: dict[str, Any], title: str, path: Path) -> None:
    """Draw a confusion matrix with counts; the shade is the share of a row."""
    import matplotlib.figure

    matrix, labels = np.array(figures["matrix"]), list(figures["labels"])
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    side = 2.2 + 0.75 * len(labels)
    figure = matplotlib.figure.Figure(figsize=(side, side * 0.9), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="truth")
    axes.set_title(f"{title}: {figures['nuclei']} nuclei, accuracy {figures['accuracy']:.3f}")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    for (row, column), count in np.ndenumerate(matrix):
        colour = "white" if shares[row, column] > 0.6 else "black"
        text = f"{count}\n{100 * shares[row, column]:.0f} %" if count else ""
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=120)
