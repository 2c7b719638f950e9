"""One slide from Python: find and name its nuclei, then count inflammatory ones per square millimetre.

python examples/one_slide.py SLIDE results/
"""

import sys

import anndata

import nucpipe


def main(slide: str, out: str) -> None:
    (result,) = nucpipe.run(slide, out)
    if result.status == "failed":
        sys.exit(result.cause)
    table = anndata.read_zarr(result.folder / "nuclei.zarr" / "table")
    print(table.obs["PanNuke"].value_counts().to_string())
    inflammatory = (table.obs["PanNuke"] == "inflammatory").sum()
    if result.tissue_mm2:
        print(f"{inflammatory / result.tissue_mm2:.0f} inflammatory nuclei per mm² of tissue")


if __name__ == "__main__":
    main(*sys.argv[1:])
