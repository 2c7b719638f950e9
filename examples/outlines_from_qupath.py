r"""A segmentor of your own, from nuclei that you outlined in QuPath on whole slides.

In QuPath, draw rectangles of the class Region* round places of, say, 250 x 250 µm, and outline EVERY nucleus in them
as annotations (brush, wand or polygon); what is left out teaches that there is no nucleus. File > Export objects as
GeoJSON, all objects, writes slide.geojson. Then:

    python examples/outlines_from_qupath.py lab/ slide1.svs slide1.geojson slide2.svs slide2.geojson ...
    nucpipe train segmentor --data lab --out mine.safetensors --start-from hovernet-compact --steps 400 --check
    nucpipe train segmentor --data lab --out mine.safetensors --start-from hovernet-compact --steps 400
    nucpipe run slide3.svs --out results/ --segmentor mine.safetensors

Each rectangle becomes an image of 0.25 µm per pixel with its outlines beside; the images of a slide stay together when
some are held out. Classes of the nuclei are kept, so that the folder can teach a classifier, too.
"""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np

from nucpipe.geojson import class_name, is_no_nucleus, read_annotations, read_nuclei
from pipeline.slide.open import open_slide

MPP = 0.25
REGION = "Region*"


def write_tiles(root: Path, slide_file: Path, annotations: Path) -> int:
    regions = [one for one in read_annotations(annotations) if one.label == REGION]
    outlines = [(class_name(feature.get("properties") or {}), ring) for feature, ring in read_nuclei(annotations)]
    outlines = [(label, ring) for label, ring in outlines if not is_no_nucleus(label)]
    for part in ("images", "labels"):
        (root / part / slide_file.stem).mkdir(parents=True, exist_ok=True)
    with open_slide(slide_file) as slide:
        scale = slide.mpp / MPP
        for region in regions:
            corners = np.concatenate([rings[0] for rings in region.polygons]) + slide.origin_l0
            left, top = (max(0, math.floor(v)) for v in corners.min(0))
            right, bottom = (min(end, math.ceil(v)) for v, end in zip(corners.max(0), slide.size_l0, strict=True))
            pixels = slide.read_level(0, (left, top, right, bottom))
            size = (round((right - left) * scale), round((bottom - top) * scale))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
            features = []
            for label, ring in outlines:
                inside = (ring + slide.origin_l0 - (left, top)) * scale
                if (inside.max(0) > 0).all() and (inside.min(0) < size).all():
                    geometry = {"type": "Polygon", "coordinates": [[*inside.tolist(), inside[0].tolist()]]}
                    properties = {"classification": {"name": label}} if label else {}
                    features.append({"type": "Feature", "geometry": geometry, "properties": properties})
            name = f"{slide_file.stem}/{left}_{top}"
            cv2.imwrite(str(root / "images" / f"{name}.png"), pixels[..., ::-1])
            collection = {"type": "FeatureCollection", "features": features}
            (root / "labels" / f"{name}.geojson").write_text(json.dumps(collection), "utf-8")
            print(f"{name}: {size[0]} x {size[1]} pixels, {len(features)} nuclei")
    return len(regions)


def main(folder: str, *files: str) -> None:
    if not files or len(files) % 2:
        sys.exit("expected a folder, and for each slide its file and its GeoJSON")
    root = Path(folder)
    count = sum(write_tiles(root, Path(s), Path(a)) for s, a in zip(files[::2], files[1::2], strict=True))
    if not count:
        sys.exit(f"no annotation of the class {REGION}: draw rectangles of that class round what is outlined")
    (root / "library.toml").write_text(f'mpp = {MPP}\nlicence = "not stated"\n', "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
