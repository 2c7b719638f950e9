"""The model card: what a classifier's header says, in words and tables."""

from __future__ import annotations

from typing import Any

from classifier.evaluation.metrics import intervals_in_words
from classifier.labels.libraries import LabelSpace
from classifier.spec import unmeasured
from nucpipe.backends.model_file import ModelHeader
from nucpipe.training.lineage import lineage_lines


def _row(*cells: object) -> str:
    return "| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |"


def _between(interval: list[float] | None) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "-"


def _table(figures: dict[str, Any]) -> list[str]:
    return [
        f"{figures['nuclei']} nuclei held out: accuracy {figures['accuracy']:.3f} "
        f"({_between(figures['accuracy_95'])}), balanced accuracy {figures['balanced_accuracy']:.3f}, macro F1 "
        f"{figures['macro_f1']:.3f} ({_between(figures['macro_f1_95'])}), calibration error "
        f"{figures.get('ece_cross_fitted', figures['ece']):.3f}.",
        "",
        _row("label", "nuclei", "precision", "recall", "F1", "95 % interval"),
        "|---|---|---|---|---|---|",
        *(
            _row(k, v["count"], v["precision"], v["recall"], v["f1"], _between(v["f1_95"]))
            for k, v in figures["labels"].items()
        ),
        "",
    ]


def _figures(name: str, figures: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", ""]
    if "units" in figures:
        lines += [*_table(figures), f"Intervals: {intervals_in_words(figures)}.", ""]
    for other, of in figures.get("partial", {}).items():
        own = ", ".join(f"{label} {row['recall']:.3f} of {row['count']}" for label, row in of["labels"].items())
        lines += [f"- {other}'s label may be right for {of['accuracy']:.3f} of {of['nuclei']} nuclei ({own})."]
    if "partial" in figures:
        if not figures["partial"]:
            lines.append("Its labels say nothing that could be measured.")
        lines.append("")
    for grouping, coarse in figures.get("groups", {}).items():
        lines += [f"In the classes of `{grouping}`:", "", *_table(coarse)]
    return lines


def _enlarged(made: dict[str, Any]) -> str:
    if made["size_px"] == made["window_px"]:
        return "taken as it is"
    return f"enlarged to {made['size_px']} px"


def _context(made: dict[str, Any]) -> list[str]:
    if "context" not in made:
        return []
    context = made["context"]
    return [
        f"- The first layer takes the enlarged patch in squares of {made['stem_px']} px. A second network "
        f"({context['backbone']}) sees the tissue round the nucleus, {context['size_px']} px of {context['mpp']:g} µm; "
        f"{context['dropout']:.0%} of the training's nuclei were shown without it."
    ]


def _strides(made: dict[str, Any]) -> str:
    return f" with strides {','.join(map(str, made['strides']))}" if made.get("strides") else ""


def _made(made: dict[str, Any]) -> str:
    if made["steps"] == 0:
        source = made.get("started_from", "nothing")
        return f"the {'mean of the ' if ', ' in source else ''}weights of {source}"
    return f"{made['steps']} steps of {made['batch_size']} patches"


def _from_other_models(made: dict[str, Any]) -> list[str]:
    lines = []
    if "started_from" in made and made["steps"] > 0:
        lines += ["", f"Training started from the weights of {made['started_from']}."]
    if "distilled_from" in made:
        lines += [
            "",
            f"Beside the labels, the probabilities of {made['distilled_from']} taught the outputs known there.",
        ]
    if "completed_by" in made:
        lines += ["", f"Confident predictions of {made['completed_by']} taught what the labels do not say."]
    return lines


def model_card(header: ModelHeader) -> str:
    """Return the card of a classifier, in Markdown."""
    made = header.architecture
    outputs = LabelSpace.from_dict(header.outputs)
    trained = {column for column, yes in zip(outputs.columns, outputs.trained, strict=True) if yes}
    lines = [
        f"# {header.name}",
        "",
        "A classifier of nuclei in H&E: one label in the words of each library for every nucleus.",
        "",
        "Intended use: research. It is not a medical device and must not be used for diagnosis.",
        "",
        f"- Network: {made['backbone']}{_strides(made)}; input: a patch of {made['window_px']} px at {header.mpp} µm "
        f"per pixel round the nucleus, {_enlarged(made)}.",
        *_context(made),
        f"- Made {header.date} with nucpipe {header.nucpipe_version}: {_made(made)}.",
        f"- Licences of the data: {header.licence}. The weights may be used as these allow.",
        "",
        "## What it learnt from",
        "",
        "`own` nuclei carry the library's label; `taught` counts also those that other libraries taught through the "
        "table of matching labels. A label with 0 was taught by nothing and is never predicted.",
        *_from_other_models(made),
        "",
        _row("library", "label", "own", "taught"),
        "|---|---|---|---|",
    ]
    for entry in header.data:
        for k, n in entry["taught"].items():
            by_model = "by the model" if not n and (entry["name"], k) in trained else n
            lines.append(_row(entry["name"], k, entry["nuclei"].get(k, 0), by_model))
    lines += ["", "## Measured on groups that were held out", ""]
    lines += [
        f"- {entry['name']}: {entry['images']} images taught; held out {', '.join(entry['held_out']) or 'nothing'}."
        for entry in header.data
        if entry["images"]
    ]
    lines += [
        f"- {name}: no images of its own; its labels were taught only by other libraries' and could not be "
        f"measured on {name}."
        for name in unmeasured(header)
    ]
    lines += [
        f"- {entry['name']}: no images in this training; the models that it was made from taught its labels, which "
        "were not measured here."
        for entry in header.data
        if not entry["images"] and entry["name"] not in unmeasured(header)
    ]
    for model in header.made_from:
        if shares := model.get("agreement"):
            listed = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
            lines.append(f"- Share of the nuclei held out with the label that {model['name']} gives them: {listed}.")
    lines.append("")
    for name, figures in header.figures.items():
        lines += _figures(name, figures)
    names = {entry["name"] for entry in header.data}
    sources = [*header.data, *(e for e in header.all_data if e["name"] not in names and e.get("citation"))]
    lines += ["## Sources", "", *(f"- {e['name']} ({e['licence']}): {e['citation']}" for e in sources)]
    lines += ["", *lineage_lines(header)] if header.made_from else []
    return "\n".join(lines) + "\n"
