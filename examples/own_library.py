"""Train the classifier on a label system of your own, and name a slide's nuclei in its words.

python examples/own_library.py LIBRARY SLIDE results/ [STEPS]

LIBRARY is a folder with images/*.png, labels/<image>.csv (columns x, y, label; pixels) and library.toml (name, labels,
mpp, licence). Training starts from the bundled classifier, so that few nuclei and steps go a long way, and lets it
teach what it knows of the five published libraries, so that every nucleus has six labels.
"""

import sys
import tomllib
from pathlib import Path

import nucpipe
from classifier.training.start import architecture_of
from classifier.training.train import ClassifierTraining, train_classifier
from pipeline.config import RunConfig
from pipeline.inference.models import find_model


def main(library: str, slide: str, out: str, steps: int = 300, **settings: object) -> None:
    name = tomllib.loads((Path(library) / "library.toml").read_text("utf-8"))["name"]
    model = Path(out) / "classifier.safetensors"
    model.parent.mkdir(parents=True, exist_ok=True)
    bundled = find_model("classifier", RunConfig().classifier)
    training = ClassifierTraining(
        libraries=((name, Path(library)),),
        out=model,
        start_from=(bundled,),
        distil=(bundled,),
        steps=steps,
        batch_size=32,
        **architecture_of(bundled),
    )
    train_classifier(training)

    (done,) = nucpipe.run(slide, out, classifier=str(model), primary=name, **settings)
    if done.status == "failed":
        sys.exit(done.cause)
    labels = nucpipe.open(done.folder).labels(name)
    print(f"{name} on {done.slide.name}:\n{labels.value_counts().to_string()}")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]))
