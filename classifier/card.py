"""The model card: what a classifier's header says, in words and tables."""

from __future__ import annotations

from typing import Any

from nucpipe.common.modelfile import ModelHeader


def _row(*cells: object) -> str:
    return "| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |"


def _figures(name: str, figures: dict[str, Any]) -> list[str]:
    return [
        f"### {name}",
        "",
        f"{figures['nuclei']} nuclei held out: accuracy {figures['accuracy']:.3f}, balanced accuracy "
        f"{figures['balanced_accuracy']:.3f}, macro F1 {figures['macro_f1']:.3f}.",
        "",
        _row("label", "nuclei", "precision", "recall", "F1"),
        "|---|---|---|---|---|",
        *(_row(k, v["count"], v["precision"], v["recall"], v["f1"]) for k, v in figures["labels"].items()),
        "",
    ]


def model_card(header: ModelHeader) -> str:
    """The card of a classifier, in Markdown."""
    made = header.architecture
    lines = [
        f"# {header.name}",
        "",
        "A classifier of nuclei in H&E: one label in the words of each library for every nucleus.",
        "",
        "Intended use: research. It is not a medical device and must not be used for diagnosis.",
        "",
        f"- Network: {made['backbone']}; input: a window of {made['window_px']} px at {header.mpp} µm per pixel round "
        f"the nucleus, enlarged to {made['size_px']} px.",
        f"- Trained {header.date} with nucpipe {header.nucpipe_version}: {made['steps']} steps of "
        f"{made['batch_size']} windows.",
        f"- Licences of the data: {header.licence}. The weights may be used as these allow.",
        "",
        "## What it learnt from",
        "",
        "`own` nuclei carry the library's label; `taught` counts also those that other libraries taught through the "
        "table of matching labels. A label with 0 was taught by nothing and is never predicted.",
        "",
        _row("library", "label", "own", "taught"),
        "|---|---|---|---|",
    ]
    for entry in header.data:
        lines += [_row(entry["name"], k, entry["nuclei"].get(k, 0), n) for k, n in entry["taught"].items()]
    lines += ["", "## Measured on groups that were held out", ""]
    lines += [
        f"- {entry['name']}: {entry['images']} images taught; held out {', '.join(entry['held_out']) or 'nothing'}."
        for entry in header.data
        if entry["images"]
    ]
    lines += [
        f"- {entry['name']}: no images of its own; its labels were taught only through the table and could not be "
        f"measured on {entry['name']}."
        for entry in header.data
        if not entry["images"]
    ]
    lines.append("")
    for name, figures in header.figures.items():
        lines += _figures(name, figures)
    lines += ["## Sources", "", *(f"- {e['name']} ({e['licence']}): {e['citation']}" for e in header.data)]
    return "\n".join(lines) + "\n"
