"""One slide from Python: find and name its nuclei, count them in the words of two libraries, look at a detail.

python examples/one_slide.py SLIDE results/
"""

import sys

import matplotlib as mpl
import pandas as pd

import nucpipe

mpl.use("Agg")  # a file, no window; leave it out in a notebook


def main(slide: str, out: str, **settings: object) -> None:
    (done,) = nucpipe.run(slide, out, **settings)
    if done.status == "failed":
        sys.exit(done.cause)
    result = nucpipe.open(done.folder)

    print(f"{len(result):,} nuclei on {done.tissue_mm2:.2f} mm² of tissue")
    for library in ("PanNuke", "CoNSeP"):
        print(f"\n{library}:\n{result.labels(library).value_counts().to_string()}")
    # What one library calls a label of the other: every nucleus has both.
    print(f"\n{pd.crosstab(result.labels('PanNuke'), result.labels('CoNSeP')).to_string()}")

    # A square of 200 µm where nuclei are, in level-0 pixels.
    side = 200 / result.mpp
    x, y = result.centroids()[len(result) // 2] - side / 2 if len(result) else (0, 0)
    axes = nucpipe.plot(result, (x, y, x + side, y + side), library="PanNuke")
    axes.figure.savefig(done.folder / "detail.png", dpi=120)
    print(f"\n{done.folder / 'detail.png'}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
