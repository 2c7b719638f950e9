r"""A label system of your own, from nuclei that you marked in QuPath, as a sixth library beside the published five.

In QuPath, mark nuclei on image tiles with the points tool, a class for each label, and export the annotations of each
tile as GeoJSON beside it (tile.png, tile.geojson). Then:

    python examples/points_from_qupath.py Lab 0.25 lab/ tile1.png tile2.png ...
    nucpipe train classifier --library lab=lab --out lab.safetensors --check
    nucpipe train classifier --library lab=lab --out lab.safetensors --start-from fast --distil fast
    nucpipe run slide.svs --out results/ --classifier lab.safetensors --primary Lab

Every nucleus then has six labels. --distil keeps what the bundled model knows of the five; give their data too if you
have it (--library consep=CoNSeP ...). What your labels mean in the words of the five can be said in a table of your own
(match_table in a --config, in the form of classifier/labels/label_mapping.toml), so that they teach these too.
"""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from shapely.geometry import shape


def marked(annotations: Path) -> Iterator[tuple[float, float, str]]:
    """Return x, y and class of every point (or outline's middle) of a GeoJSON that QuPath exported."""
    content = json.loads(annotations.read_text("utf-8"))
    for feature in content["features"] if isinstance(content, dict) else content:
        label = feature["properties"].get("classification", {}).get("name")
        if label is None:
            continue
        geometry = shape(feature["geometry"])
        for part in getattr(geometry, "geoms", [geometry]):
            yield part.centroid.x, part.centroid.y, label


def main(name: str, mpp: str, folder: str, *tiles: str) -> None:
    root = Path(folder)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True, exist_ok=True)
    labels: list[str] = []
    for tile in map(Path, tiles):
        rows = list(marked(tile.with_suffix(".geojson")))
        labels += [label for _, _, label in rows if label not in labels]
        shutil.copy(tile, root / "images" / tile.name)
        with (root / "labels" / f"{tile.stem}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("x", "y", "label"), *rows])
    quoted = ", ".join(json.dumps(label) for label in dict.fromkeys(labels))
    library = f'name = "{name}"\nlabels = [{quoted}]\nmpp = {float(mpp)}\nlicence = "not stated"\n'
    (root / "library.toml").write_text(library, encoding="utf-8")
    print(f"{root}: {len(tiles)} images, labels {quoted}")


if __name__ == "__main__":
    main(*sys.argv[1:])
