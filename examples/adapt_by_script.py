"""The loop of correcting and adapting without a screen: what `nucpipe view` and `nucpipe adapt` do, from Python.

    python examples/adapt_by_script.py results/slide PanNuke "epithelial=1200,3400 neoplastic=800,950"

Corrects the nuclei at these places of the slide (pixels of level 0), adapts all others, and prints each label's count
before and after. To look at it: nucpipe view results/slide
"""

import sys
from pathlib import Path

import nucpipe
from pipeline.adaptation.adapt import learn, write
from pipeline.adaptation.corrections import CORRECTIONS, Correction, merged, now, read_corrections, write_corrections


def main(folder: str, library: str, places: str) -> None:
    result = nucpipe.open(folder)
    said = []
    for text in places.split():
        label, _, at = text.partition("=")
        x, y = map(float, at.split(","))
        said.append(Correction(x, y, library, label, when=now()))
    path = Path(folder) / CORRECTIONS
    write_corrections(path, merged(read_corrections(path), said))

    learnt = learn(result)
    write(result, learnt, left_out=learnt.worse)
    before, after = result.labels(library).value_counts(), nucpipe.open(folder).adapted().labels(library).value_counts()
    for label in before.index:
        print(f"{library} {label}: {before[label]:,} -> {after[label]:,}")


if __name__ == "__main__":
    main(*sys.argv[1:])
