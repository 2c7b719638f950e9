"""Joint training of the classifier on published data sets, each in its own labels."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from classifier.dataset import PatchDataset, extract_patches
from classifier.evaluation.metrics import evaluate_logits, predict_logits
from classifier.labels.label_mapping import Matching, make_matching
from classifier.labels.libraries import LabelSpace, libraries_of
from classifier.network import MEAN, SIZE_PX, STD, STEM_PX, Classifier
from classifier.patches import CONTEXT_W
from classifier.spec import CONTEXT_PX, MPP, PATCH_PX, TWO_VIEWS
from classifier.training.agreement import agreement
from classifier.training.augmentation import Views, augment, augment_views
from classifier.training.batches import LibrarySampler, SamplePixels
from classifier.training.calibration import calibrate
from classifier.training.config import ClassifierTraining
from classifier.training.distillation import Teachers, add_teacher_labels, distillation_loss, within_groups
from classifier.training.losses import LOSSES, JointLoss
from classifier.training.model_card import model_card
from classifier.training.projection import Projection, add_projection
from classifier.training.pseudo_labels import pseudo_label
from classifier.training.start import new_model
from nucpipe._version import __version__
from nucpipe.backends.device import autocast_type
from nucpipe.backends.model_file import ModelHeader, read_header, rewrite_header, save_model
from nucpipe.datasets import AnnotatedImage, check_hold_out, open_dataset, split_groups
from nucpipe.datasets.base import NOTHING_HELD_OUT
from nucpipe.errors import DataError, UsageError
from nucpipe.training import trainer
from nucpipe.training.lineage import all_licences, earlier_models

WEIGHT_DECAY = 0.02
SMOOTHING = 0.05
WATCHED = 2000
"""Held-out nuclei, at most, on which the loss is looked at during training."""


@dataclass(frozen=True)
class LibraryData:
    """One library's data, split by group."""

    library: str
    path: Path
    train: tuple[AnnotatedImage, ...]
    held: tuple[AnnotatedImage, ...]


def train_classifier(config: ClassifierTraining, say: Callable[[str], None] = print) -> ModelHeader:
    """Train, evaluate on what was held out, and write the model.

    A checkpoint is kept beside ``config.out``; the same call resumes from it and ends with the same model.

    Args:
        config: what to do.
        say: receives progress messages, a line each.

    Raises:
        UsageError: an unknown library, or a set of which everything would be held out.
        DataError: a data set is incomplete or has other labels, or the checkpoint has other settings.
    """
    matching = make_matching(libraries_of(config.libraries), config.match, config.similarity, config.match_table)
    weighted = _places("library_weights", [name for name, _ in config.library_weights], matching)
    factors = dict(zip(weighted, (factor for _, factor in config.library_weights), strict=True))
    exchanged = frozenset(_places("always_exchanged", config.always_exchanged, matching))
    data = open_libraries(config)
    train, held = _gather(data, matching)
    outputs = LabelSpace(matching.libraries, tuple(bool(n) for n in matching.taught(train.targets)))
    if config.distil:
        outputs = add_teacher_labels(config.distil, outputs)
    taught = f"{sum(outputs.trained)} of {len(outputs)} labels taught"
    say(f"training on {len(train)} nuclei, {len(held)} held out; {taught}")
    if config.watched and not len(held):
        raise UsageError("stop = 'converged' and keep = 'best' need held-out nuclei, and nothing is held out.")
    if config.complete is not None:
        train = pseudo_label(
            train, outputs, config.complete, config.complete_above, config.device, config.computed_in, say
        )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    tensors, steps = fit(config, train, held, outputs, say, factors, exchanged)
    header = _header(config, data, train, held, outputs, matching, steps)
    save_model(config.out, header, tensors)
    made = add_projection(config.out, config.out, train, held, config.seed, config.device, config.computed_in)
    earlier = agreement(
        made.logits, held, outputs, (*config.start_from, *config.distil), config.device, config.computed_in, say
    )
    of_models = [model | {"agreement": earlier.get(model["name"], {})} for model in header.made_from]
    rewrite_header(config.out, dataclasses.replace(read_header(config.out), made_from=of_models))
    header = add_figures(config.out, made.logits, held, matching, say)
    say(f"wrote {config.out}: {made.in_words}")
    return header


def add_figures(
    path: Path, logits: npt.NDArray[np.float32], held: PatchDataset, matching: Matching, say: Callable[[str], None]
) -> ModelHeader:
    """Give a model file temperatures and figures from what was held out, and write the model card beside it.

    Args:
        path: of the file; its tensors stay as they are.
        logits: (N, columns) of the file's network, in half precision and at its own size.
        held: the N nuclei.
        matching: of their libraries.
        say: receives messages, a line each.
    """
    header = read_header(path)
    taught = "distilled_from" in header.architecture
    by_teachers = {entry["name"] for entry in header.data if taught and not entry["images"]}
    outputs, errors = calibrate(logits, held, LabelSpace.from_dict(header.outputs), say, by_teachers)
    figures = evaluate_logits(logits, held, outputs, matching.partial)
    for name, error in errors.items():
        figures[name]["ece_cross_fitted"] = round(error, 4)
    header = dataclasses.replace(header, outputs=outputs.to_dict(), figures=figures)
    rewrite_header(path, header)
    path.with_suffix(".md").write_text(model_card(header), encoding="utf-8")
    for name, f in figures.items():
        if "accuracy" in f:
            say(f"{name}: accuracy {f['accuracy']:.3f}, macro F1 {f['macro_f1']:.3f} of {f['nuclei']} held out")
        for other, of in f.get("partial", {}).items():
            say(f"{name}: {other}'s label may be right for {of['accuracy']:.3f} of {of['nuclei']} held out")
    return header


def finish_again(
    config: ClassifierTraining, model: Path, calibrated: bool, say: Callable[[str], None] = print
) -> Projection:
    """Do again what ends a training, without training: the projection, the out-of-distribution score, the figures.

    Args:
        config: names the file to write, the libraries and what is held out.
        model: the classifier. Of what ``config`` holds out only groups count that its header says were held out; all
            others taught it.
        calibrated: whether to fit temperatures and measure figures anew, too, and write the model card.
        say: receives messages, a line each.

    Raises:
        UsageError: ``calibrated``, and the header calls nothing of this held out.
    """
    matching = make_matching(libraries_of(config.libraries), config.match, config.similarity, config.match_table)
    data = open_libraries(config)
    known = {entry["name"]: set(entry.get("held_out", ())) for entry in read_header(model).data}
    data = [dataclasses.replace(d, held=tuple(i for i in d.held if i.group in known.get(d.library, ()))) for d in data]
    train, held = _gather(data, matching)
    if calibrated and not len(held):
        raise UsageError(f"{model}: none of these images was held out of its training, by its header (--hold-out).")
    made = add_projection(model, config.out, train, held, config.seed, config.device, config.computed_in)
    if calibrated:
        add_figures(config.out, made.logits, held, matching, say)
    return made


def _places(setting: str, names: Iterable[str], matching: Matching) -> list[int]:
    """Return the places of the libraries that a setting names.

    Raises:
        UsageError: one is none of the training's.
    """
    places = {library.name.lower(): place for place, library in enumerate(matching.sources)}
    if unknown := [name for name in names if name.lower() not in places]:
        raise UsageError(f"{setting}: {unknown[0]} is none of the training's libraries.")
    return [places[name.lower()] for name in names]


def open_libraries(config: ClassifierTraining) -> list[LibraryData]:
    """Return the data sets of a training, each split into what teaches and what is held out.

    Raises:
        UsageError: a name of what is to be held out is found nowhere, or everything of a set would be held out.
        DataError: a data set is incomplete.
    """
    names = {library.name.lower(): library.name for library in libraries_of(config.libraries)}
    sets = [(name, path, open_dataset(path)) for name, path in config.libraries]
    check_hold_out(config.hold_out, [image for _, _, images in sets for image in images])
    opened = []
    for name, path, images in sets:
        train, held = split_groups(images, config.hold_out)
        opened.append(LibraryData(names[name.lower()], path, tuple(train), tuple(held)))
    return opened


def _gather(data: Sequence[LibraryData], matching: Matching) -> tuple[PatchDataset, PatchDataset]:
    """Return the nuclei that teach, and those that are held out.

    Raises:
        DataError: labels are not the library's, or what a set holds out has no nucleus.
    """
    libraries = {library.name: library for library in matching.sources}
    train = [extract_patches(libraries[d.library], d.train, matching) for d in data]
    held = [extract_patches(libraries[d.library], d.held, matching) for d in data]
    for d, samples in zip(data, held, strict=True):
        if d.held and not len(samples):
            raise DataError(NOTHING_HELD_OUT.format(path=d.path))
    return PatchDataset.concatenate(train), PatchDataset.concatenate(held)


@dataclass
class _EarlyStopping:
    """The loss on what is held out, over the training; ``state`` goes into checkpoints."""

    best: float = float("inf")
    best_step: int = 0
    stale: int = 0
    state: dict[str, torch.Tensor] | None = None

    def update(self, loss: float, step: int, model: Classifier, config: ClassifierTraining) -> None:
        """Take in the loss after ``step`` steps."""
        self.stale = 0 if loss < self.best * (1 - config.tolerance) else self.stale + 1
        if loss < self.best:
            self.best, self.best_step = loss, step
            if config.keep == "best":
                self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def converged(self, config: ClassifierTraining) -> bool:
        """Tell whether training shall end."""
        return config.stop == "converged" and self.stale >= config.patience


def fit(
    config: ClassifierTraining,
    samples: PatchDataset,
    held: PatchDataset,
    outputs: LabelSpace,
    say: Callable[[str], None],
    factors: Mapping[int, float] | None = None,
    exchanged: frozenset[int] = frozenset(),
) -> tuple[dict[str, torch.Tensor], int]:
    """Train a network on gathered samples, with a checkpoint beside ``config.out``.

    Args:
        config: what to do; its libraries are not read.
        samples, held: what teaches, and what the loss is looked at on where ``config`` asks for it.
        outputs: the columns of ``samples.targets``.
        say: receives progress messages, a line each.
        factors: how much more often than ``config.balance`` says a library, by its place, is drawn.
        exchanged: places of the libraries of which every sample is given another one's look.

    Returns:
        The averaged model's tensors, and after how many steps they were taken.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        device = torch.device(config.device)
        model = new_model(config, outputs, say).to(device)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimization = trainer.Optimization(
            model, config.learning_rate, WEIGHT_DECAY, config.steps, config.averaged_from
        )
        columns = ["total", *(library.name for library in outputs.libraries), "held_out"]
        trainer_loop = trainer.Trainer(
            "classifier", config.out, config.settings(), optimization.parts, config.steps, columns, say
        )
        early_stopping = _EarlyStopping(**trainer_loop.kept.get("watch", {}))
        sampler = LibrarySampler(config, samples, factors or {})
        pixels = SamplePixels(samples, config.context, device)
        if pixels.fit_on_gpu():
            pixels.keep()
        teachers = (
            Teachers(config.distil, outputs, config.device, config.computed_in, config.distil_turns)
            if config.distil
            else None
        )
        watched = held.select(np.random.default_rng(0).permutation(len(held))[:WATCHED])
        step = trainer_loop.start
        with trainer_loop:
            while step < config.steps and not early_stopping.converged(config):
                loss = _step(model, optimization.optimizer, config, pixels, sampler, outputs, teachers, exchanged, step)
                optimization.advance(step)
                total, parts_of = float(loss.total.detach()), loss.per_library.tolist()
                step += 1
                held_loss = ""
                if config.watched and (step % config.check_every == 0 or step == config.steps):
                    loss_held = _held_loss(optimization.average, watched, config, outputs)
                    early_stopping.update(loss_held, step, optimization.average, config)
                    held_loss = f"{early_stopping.best:.4f}" if early_stopping.stale == 0 else ""
                cells = [f"{total:.4f}", *(f"{part:.4f}" for part in parts_of), held_loss]
                ended = step == config.steps or early_stopping.converged(config)
                trainer_loop.log_step(step - 1, cells, f"loss {total:.3f}", ended, {"watch": vars(early_stopping)})
        if step < config.steps:
            say(f"converged after {step} of at most {config.steps} steps")
        if config.steps:
            trainer.plot_losses(trainer_loop.log, config.out.with_suffix(".losses.png"))
    if config.keep == "best" and early_stopping.state is not None:
        return early_stopping.state, early_stopping.best_step
    return optimization.average.state_dict(), step


def _held_loss(model: Classifier, held: PatchDataset, config: ClassifierTraining, outputs: LabelSpace) -> float:
    """Return the loss on held-out nuclei, at the model's own size."""
    logits = torch.from_numpy(predict_logits(model, held, config.device, config.computed_in))
    return float(LOSSES[config.loss](logits, torch.from_numpy(held.targets), outputs).total)


def _step(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    config: ClassifierTraining,
    pixels: SamplePixels,
    sampler: LibrarySampler,
    outputs: LabelSpace,
    teachers: Teachers | None,
    exchanged: frozenset[int],
    step: int,
) -> JointLoss:
    """Return one step; all its random numbers follow from the seed and the step, so that a resumed training repeats
    them.
    """
    model.train()
    device = torch.device(config.device)
    seed = int(np.random.SeedSequence((config.seed, step)).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(seed)  # dropout; the caller forked the global state
    generator = torch.Generator().manual_seed(seed)
    chosen = sampler(step, generator)
    shown, plain = _views(config, pixels, exchanged, chosen, step, generator)
    views = [view for view in shown if view is not None]
    targets = torch.from_numpy(pixels.samples.targets[chosen]).to(device)
    told = None if teachers is None else within_groups(teachers(*plain), targets, teachers.known, outputs)
    mixed = [(1.0, torch.arange(len(chosen), device=device))]
    if config.mixup:
        # One share for the batch; every patch is mixed with another one of it.
        share = float(np.random.default_rng(seed).beta(config.mixup, config.mixup))
        partner = torch.randperm(len(chosen), generator=generator).to(device)
        views = [share * view + (1 - share) * view[partner] for view in views]
        mixed = [(share, mixed[0][1]), (1 - share, partner)]
    cast = autocast_type(config.computed_in)
    with torch.autocast(device.type, cast or torch.bfloat16, enabled=cast is not None):
        logits = model(*(view.contiguous(memory_format=torch.channels_last) for view in views)).float()
    total, per_library = logits.new_zeros(()), logits.new_zeros(len(outputs.libraries))
    for share, rows in mixed:
        loss = LOSSES[config.loss](logits, targets[rows], outputs, SMOOTHING)
        total, per_library = total + share * loss.total, per_library + share * loss.per_library
        if told is not None and teachers is not None:
            soft = distillation_loss(logits, told[rows], teachers.known, outputs, config.distil_temperature)
            total = total + config.distil_weight * share * soft
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return JointLoss(total, per_library)


def _views(
    config: ClassifierTraining,
    pixels: SamplePixels,
    exchanged: frozenset[int],
    chosen: npt.NDArray[np.int64],
    step: int,
    generator: torch.Generator,
) -> tuple[Views, Views]:
    """Return what the network and its teachers see of a batch: patches, and contexts for one that looks at them too.

    Args:
        config: of the training.
        pixels: of its samples.
        exchanged: places of the libraries of which every sample is given another one's look.
        chosen: places of the batch's samples.
        step: its number.
        generator: of the random changes.
    """
    patches, *contexts = pixels(chosen)
    if not contexts:
        return augment(patches, PATCH_PX, config.size_px(step), generator)
    always = torch.from_numpy(np.isin(pixels.samples.library[chosen], list(exchanged)))
    colours, sharpness = (
        torch.where(always, 1.0, share) for share in (config.colour_exchange, config.sharpness_exchange)
    )
    return augment_views(patches, contexts[0], config.context_dropout, colours, sharpness, generator)


def _counts(samples: PatchDataset, place: int, labels: tuple[str, ...]) -> dict[str, int]:
    mine = samples.label[samples.library == place]
    numbers = np.bincount(mine[mine >= 0], minlength=len(labels))
    return {label: int(n) for label, n in zip(labels, numbers, strict=True) if n}


def _header(
    config: ClassifierTraining,
    data: list[LibraryData],
    train: PatchDataset,
    held: PatchDataset,
    outputs: LabelSpace,
    matching: Matching,
    steps: int,
) -> ModelHeader:
    taught = matching.taught(train.targets)
    entries = []
    for place, library in enumerate(matching.sources):
        mine = [d for d in data if d.library == library.name]
        columns = outputs.slices.get(library.name)
        entries.append(
            {
                "name": library.name,
                "licence": library.licence,
                "citation": library.citation,
                "images": sum(len(d.train) for d in mine),
                "nuclei": _counts(train, place, library.labels),
                "taught": {} if columns is None else dict(zip(library.labels, map(int, taught[columns]), strict=True)),
                "held_out": sorted({image.group for d in mine for image in d.held}),
                "held_out_nuclei": _counts(held, place, library.labels),
            }
        )
    licences = {library.licence for place, library in enumerate(matching.sources) if (train.library == place).any()}
    others = (*config.start_from, *config.distil, *((config.complete,) if config.complete is not None else ()))
    earlier = earlier_models(others)
    return ModelHeader(
        kind="classifier",
        name=config.out.stem,
        architecture=architecture(config)
        | {"steps": steps, "batch_size": config.batch_size, "match": config.match}
        | ({"started_from": ", ".join(path.stem for path in config.start_from)} if config.start_from else {})
        | ({"distilled_from": ", ".join(path.stem for path in config.distil)} if config.distil else {})
        | ({"completed_by": config.complete.stem} if config.complete is not None else {}),
        mpp=MPP,
        mean=MEAN,
        std=STD,
        outputs=outputs.to_dict(),
        data=entries,
        licence=all_licences(licences, earlier),
        made_from=earlier,
        date=datetime.date.today().isoformat(),
        nucpipe_version=__version__,
    )


def architecture(config: ClassifierTraining) -> dict[str, Any]:
    """Return the fields of a model's header that say what network a training makes."""
    made = {"type": "joint", "backbone": config.backbone, "window_px": PATCH_PX}
    if not config.context:
        return made | {"size_px": config.sizes[-1][1]} | ({"strides": list(config.strides)} if config.strides else {})
    context = {"backbone": config.backbone, "mpp": CONTEXT_W * MPP, "size_px": CONTEXT_PX}
    return made | {
        "type": TWO_VIEWS,
        "size_px": SIZE_PX,
        "stem_px": STEM_PX,
        "strides": list(config.patch_strides),
        "context": context | {"dropout": config.context_dropout},
    }
