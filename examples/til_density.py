"""Density of lymphocytes in and beside a tumour, counted in the words of two libraries, and where the two disagree.

python examples/til_density.py results/SLIDE out.png

MoNuSAC has lymphocytes; PanNuke has inflammatory cells, which are lymphocytes and others. A nucleus that both name so
is a safer lymphocyte than one that a single library does.

Where the tumour lies is estimated from the nuclei: it is where PanNuke calls most of the nuclei of the neighbourhood
neoplastic, inflammatory ones not counted, so that an infiltrate does not make a tumour smaller. Healthy epithelium that
is called neoplastic counts as tumour: look at the picture before you believe a figure.
"""

import sys

import matplotlib as mpl
import numpy as np
from scipy.ndimage import convolve

import nucpipe

mpl.use("Agg")  # a file, no window; leave it out in a notebook
from matplotlib import pyplot as plt

TILE_UM = 50.0
NEIGHBOURHOOD = np.ones((3, 3))  # of tiles: 150 µm
TUMOUR_NUCLEI, TUMOUR_SHARE = 3, 0.5  # neoplastic nuclei in a neighbourhood, at least, and their share


def tumour_tiles(counts: dict[str, np.ndarray]) -> np.ndarray:
    """Return which tiles are tumour, from the numbers of nuclei in each tile by PanNuke's labels."""
    neoplastic = convolve(counts["neoplastic"], NEIGHBOURHOOD, mode="constant")
    others = convolve(counts["connective"] + counts["epithelial"], NEIGHBOURHOOD, mode="constant")
    occupied = sum(counts.values()) > 0
    return occupied & (neoplastic >= TUMOUR_NUCLEI) & (neoplastic >= TUMOUR_SHARE * (neoplastic + others))


def main(result_folder: str, out: str) -> dict[str, float]:
    result = nucpipe.open(result_folder)
    width, height = result.size_l0
    tile = TILE_UM / result.mpp
    edges = [np.arange(0, height + tile, tile), np.arange(0, width + tile, tile)]
    places = result.centroids()[:, ::-1]  # rows first

    def per_tile(which: np.ndarray) -> np.ndarray:
        return np.histogram2d(*places[which].T, edges)[0]

    pannuke, monusac = result.labels("PanNuke"), result.labels("MoNuSAC")
    tumour = tumour_tiles({label: per_tile(pannuke == label) for label in pannuke.cat.categories})
    down, across = (np.diff(np.minimum(*limited)) for limited in zip(edges, (height, width), strict=True))
    tumour_mm2 = float(np.outer(down, across)[tumour].sum()) * (result.mpp / 1000) ** 2  # on the slide, not beyond it
    tissue_mm2 = result.run_facts["tissue_mm2"]
    counts = {
        "PanNuke inflammatory": per_tile(pannuke == "inflammatory"),
        "MoNuSAC lymphocyte": per_tile(monusac == "lymphocyte"),
        "both": per_tile((pannuke == "inflammatory") & (monusac == "lymphocyte")),
    }
    densities = {name: _density(tiles[tumour].sum(), tumour_mm2) for name, tiles in counts.items()}
    print(f"tumour, estimated: {tumour_mm2:.3f} of {tissue_mm2:.3f} mm² of tissue")
    for name, tiles in counts.items():
        beside = _density(tiles[~tumour].sum(), tissue_mm2 - tumour_mm2)
        print(f"{name:<22} {densities[name]:8.0f} per mm² of tumour {beside:8.0f} per mm² of other tissue")

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained")
    most = max(tiles.max() for tiles in counts.values()) or 1
    for ax, (name, tiles) in zip(axes, counts.items(), strict=True):
        image = ax.imshow(tiles / (TILE_UM / 1000) ** 2, cmap="magma", vmin=0, vmax=most / (TILE_UM / 1000) ** 2)
        if tumour.any() and not tumour.all():
            ax.contour(tumour, levels=[0.5], colors="cyan", linewidths=1)
        ax.set(title=name, xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="nuclei per mm²")
    figure.suptitle(f"{result.name}; tumour, as estimated, framed")
    figure.savefig(out, dpi=110)
    return densities


def _density(nuclei: float, mm2: float) -> float:
    return float(nuclei) / mm2 if mm2 > 0 else float("nan")


if __name__ == "__main__":
    main(*sys.argv[1:3])
