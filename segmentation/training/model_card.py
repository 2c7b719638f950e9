"""The model card: what a segmentor's header says, in words and a table."""

from __future__ import annotations

from typing import Any

from nucpipe.backends.model_file import ModelHeader
from nucpipe.training.lineage import lineage_lines
from segmentation.nuclei import NucleusFilter

WHAT = {
    "hovernet": [
        "A compact HoVer-Net: finds and outlines nuclei in H&E. Pixels are taken at 0.5 µm, outlines come out at "
        "0.25 µm."
    ],
    "maskrcnn": ["A Mask R-CNN: finds and outlines nuclei in H&E at 0.25 µm."],
    "fasterrcnn": ["A Faster R-CNN: finds nuclei in H&E at 0.25 µm; outlines are rectangles."],
}
NETWORK = {
    "hovernet": "with a U-Net-shaped decoder and two branches (nuclear pixels; horizontal and vertical distances), "
    "after Graham et al. 2019.",
    "maskrcnn": "with a feature pyramid, after He et al. 2017, as torchvision builds it.",
    "fasterrcnn": "with a feature pyramid, after Ren et al. 2015, as torchvision builds it.",
}


def model_card(header: ModelHeader) -> str:
    """Return the card of a segmentor, in Markdown."""
    made = header.architecture
    kept = NucleusFilter(header.min_area_um2, header.min_detection_p)
    lines = [
        f"# {header.name}",
        "",
        *WHAT[made["type"]],
        "",
        "Intended use: research. It is not a medical device and must not be used for diagnosis.",
        "",
        f"- Network: {made['encoder']} encoder {NETWORK[made['type']]}",
        f"- Trained {header.date} with nucpipe {header.nucpipe_version}.",
        *([f"- Training started from the weights of {made['started_from']}."] if "started_from" in made else []),
        f"- Licence of the weights: {header.licence}",
        f"- Nuclei that are kept unless a run says otherwise: {kept}"
        f"{', as of the model that it started from' if 'started_from' in made else ''}.",
        "",
        "## Data",
        "",
        "| set | images learnt from | images held out | groups held out |",
        "|---|---|---|---|",
        *map(_row, header.data),
        "",
        *lineage_lines(header),
        *([""] if header.made_from else []),
        "## Figures on the images held out",
        "",
        "Dice, DQ, SQ and PQ are means over images; F1 is over all nuclei of a set, found within 3 µm, one to one.",
        "",
        "| set | images | Dice | DQ | SQ | PQ | detection F1 |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {f['images']} | {f['dice']:.3f} | {f['dq']:.3f} | {f['sq']:.3f} | {f['pq']:.3f} "
            f"| {f['detection_f1']:.3f} |"
            for name, f in header.figures.items()
        ),
        "",
    ]
    return "\n".join(lines)


def _row(data: dict[str, Any]) -> str:
    name = f"{data['name']}{' (points)' if data.get('points') else ''}"
    return f"| {name} | {data['images']} | {data['held_out_images']} | {', '.join(data['held_out']) or '-'} |"
