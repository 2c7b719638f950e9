"""Density of lymphocytes near a tumour, counted in the words of two libraries, and where the two disagree.

python examples/til_density.py results/SLIDE out.png

MoNuSAC has lymphocytes; PanNuke has inflammatory cells, which are lymphocytes and others. A nucleus that both name so
is a safer lymphocyte than one that a single library does. The tumour is what PanNuke calls neoplastic: look whether
that is right on your slide before you believe a figure.
"""

import sys

import matplotlib as mpl
import numpy as np

import nucpipe

mpl.use("Agg")  # a file, no window; leave it out in a notebook
from matplotlib import pyplot as plt

TILE_UM = 100.0
TUMOUR_NUCLEI = 3  # a tile with so many neoplastic nuclei is tumour


def main(result_folder: str, out: str) -> dict[str, float]:
    result = nucpipe.open(result_folder)
    width, height = result.size_l0
    tile = TILE_UM / result.mpp
    edges = [np.arange(0, height + tile, tile), np.arange(0, width + tile, tile)]
    places = result.centroids()[:, ::-1]  # rows first
    chosen = {
        "tumour": result.labels("PanNuke") == "neoplastic",
        "PanNuke inflammatory": result.labels("PanNuke") == "inflammatory",
        "MoNuSAC lymphocyte": result.labels("MoNuSAC") == "lymphocyte",
    }
    chosen["both"] = chosen["PanNuke inflammatory"] & chosen["MoNuSAC lymphocyte"]
    counts = {name: np.histogram2d(*places[which.to_numpy()].T, edges)[0] for name, which in chosen.items()}

    tumour = counts.pop("tumour") >= TUMOUR_NUCLEI
    mm2 = tumour.sum() * (TILE_UM / 1000) ** 2
    densities = {name: float(tiles[tumour].sum() / mm2) if mm2 else float("nan") for name, tiles in counts.items()}
    print(f"{tumour.sum()} tiles of {TILE_UM:.0f} µm with tumour, {mm2:.3f} mm²")
    for name, density in densities.items():
        print(f"{name:<22} {density:8.0f} per mm² of tumour")

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained")
    most = max(tiles.max() for tiles in counts.values()) or 1
    for ax, (name, tiles) in zip(axes, counts.items(), strict=True):
        image = ax.imshow(tiles / (TILE_UM / 1000) ** 2, cmap="magma", vmin=0, vmax=most / (TILE_UM / 1000) ** 2)
        if tumour.any() and not tumour.all():
            ax.contour(tumour, levels=[0.5], colors="cyan", linewidths=1)
        ax.set(title=name, xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="nuclei per mm²")
    figure.suptitle(f"{result.name}; tumour framed")
    figure.savefig(out, dpi=110)
    return densities


if __name__ == "__main__":
    main(*sys.argv[1:3])
