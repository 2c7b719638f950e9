"""Training of the compact HoVer-Net from data with outlined nuclei."""

from __future__ import annotations

import dataclasses
import datetime
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from nucpipe._version import __version__
from nucpipe.backends.device import autocast_type, training_precision
from nucpipe.backends.model_file import ModelHeader, save_model
from nucpipe.backends.network_checks import check_encoder
from nucpipe.datasets import AnnotatedImage
from nucpipe.datasets.base import licence_of
from nucpipe.errors import DataError, NucpipeError, UsageError
from nucpipe.training import trainer
from nucpipe.training.augmentation import jitter_focus, jitter_stain
from nucpipe.training.depthwise import use_fast_depthwise
from nucpipe.training.lineage import all_licences, earlier_models
from nucpipe.training.pretrained import starting_weights
from segmentation.dataset import TILE_PX, TileBatch, TileDataset, read_labelled
from segmentation.hovernet.network import WIDTHS, HoVerNet, read_hovernet, widen
from segmentation.hovernet.spec import INPUT_MPP
from segmentation.nuclei import NucleusFilter
from segmentation.registry import default_filter, load_detector
from segmentation.training.dry_run import look_at_data
from segmentation.training.losses import hovernet_loss
from segmentation.training.model_card import model_card
from segmentation.training.points import PointOutliner

WEIGHT_DECAY = 1e-4
LOSSES = ("total", "cross_entropy", "dice", "mse", "gradient_mse")
BATCH_SIZES = {"hovernet": 16, "maskrcnn": 4, "fasterrcnn": 4}
"""Architectures that can be trained, each with the tiles of its batch by default."""


@dataclass(frozen=True)
class SegmentorTraining:
    """Settings of a training.

    Attributes:
        data: folders of outlined nuclei, in any layout that ``nucpipe.datasets`` reads; with ``start_from`` also of
            points, at which the (first) model that the training starts from outlines nuclei.
        out: the model file to write; checkpoint, losses and model card stand beside it.
        hold_out: names of images or groups kept for validation.
        steps: number of batches.
        batch_size: tiles a batch, at 0.25 um; 0: 16 of 256x256 px for a HoVer-Net, 4 of 320x320 px for the others.
        learning_rate: the largest, of AdamW.
        seed: of the random numbers.
        device: a torch device.
        precision: ``auto``, ``fp32`` or ``bf16``; auto takes bfloat16 where the device is fast in it.
        architecture: ``hovernet``, or ``maskrcnn`` or ``fasterrcnn`` of torchvision.
        encoder: timm name.
        widths: channels of the compact HoVer-Net's decoder at strides 8, 4 and 2; None: those of ``start_from``, or
            else ``segmentation.hovernet.network.WIDTHS``.
        start_from: a model file whose weights the training starts from, instead of ImageNet's, or several of the same
            layers, whose mean is taken; of the same encoder, and
            with a decoder that is nowhere wider.
        licence: of the data, for the model card; "": what the ``library.toml`` of each set states.
    """

    data: tuple[Path, ...]
    out: Path
    hold_out: tuple[str, ...] = ()
    steps: int = 4300
    batch_size: int = 0
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"
    precision: str = "auto"
    architecture: str = "hovernet"
    encoder: str = "tf_efficientnet_lite0"
    widths: tuple[int, int, int] | None = None
    start_from: tuple[Path, ...] = ()
    licence: str = ""

    def __post_init__(self) -> None:
        if self.architecture not in BATCH_SIZES:
            raise UsageError(f"--architecture {self.architecture}: expected {', '.join(BATCH_SIZES)}.")
        if not self.batch_size:
            object.__setattr__(self, "batch_size", BATCH_SIZES[self.architecture])
        trainer.check_settings(self.steps, self.batch_size, self.learning_rate, self.seed)
        if self.start_from and self.architecture != "hovernet":
            raise UsageError(f"--start-from: only a hovernet starts from a model; {self.architecture} starts anew.")

        if self.widths is not None and (len(self.widths) != 3 or min(self.widths) < 1):
            raise UsageError(f"--widths {','.join(map(str, self.widths))}: expected three numbers from 1 on.")
        if self.widths is not None and self.architecture != "hovernet":
            raise UsageError(f"--widths: only a hovernet has them, {self.architecture} has none.")

    def settings(self) -> dict[str, Any]:
        """Return what a checkpoint must have been made with to be resumed."""
        names = ("hold_out", "steps", "batch_size", "learning_rate", "seed", "encoder", "widths")
        settings: dict[str, Any] = {"data": [str(p) for p in self.data], "precision": self.computed_in}
        settings["start_from"] = [str(path) for path in self.start_from]
        if self.architecture != "hovernet":
            settings["architecture"] = self.architecture
        return settings | {n: getattr(self, n) for n in names}

    @property
    def takes_points(self) -> bool:
        """Whether points are enough: a model outlines the nuclei there."""
        return bool(self.start_from)

    @property
    def computed_in(self) -> str:
        """The precision of the convolutions: ``fp32`` or ``bf16``."""
        return training_precision(self.precision, self.device)


def train_segmentor(config: SegmentorTraining, say: Callable[[str], None] = print) -> ModelHeader:
    """Train, evaluate on what was held out, and write the model.

    Every image and label is read before the first step, held out or not. A checkpoint is kept beside ``config.out``;
    the same call resumes from it and ends with the same model.

    Raises:
        UsageError: a name of what is to be held out is found nowhere, or everything would be held out.
        DataError: a data set is incomplete, has no outlines, or the checkpoint has other settings.
    """
    from segmentation.evaluation.evaluate import evaluate_segmentor
    from segmentation.evaluation.scores import figure_lines

    sets, problems = look_at_data(config.data, config.hold_out, say, config.takes_points)
    if problems:
        more = f" --check names all {len(problems)} problems." if len(problems) > 1 else ""
        raise type(problems[0])(f"{problems[0]}{more}")
    train = [images for images, _ in sets.values()]
    held = {
        path.name: outlined
        for path, (_, held) in sets.items()
        if (outlined := [image for image in held if image.outlined])
    }
    say(f"training on {sum(map(len, train))} images, {sum(map(len, held.values()))} held out")
    if not held:
        say("no image with outlines is held out: the model will not be measured")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    model = _fit(config, train, say)
    header = _header(config, sets, model)
    save_model(config.out, header, model.state_dict())
    figures = evaluate_segmentor(load_detector(config.out, config.device), held)
    header = dataclasses.replace(header, figures=figures)
    save_model(config.out, header, model.state_dict())
    config.out.with_suffix(".md").write_text(model_card(header), encoding="utf-8")
    for name, values in figures.items():
        for line in figure_lines(name, values):
            say(line)
    say(f"wrote {config.out}")
    return header


def check_training(config: SegmentorTraining, say: Callable[[str], None] = print) -> int:
    """Read every image and label of a training, and make its network, without training it.

    Args:
        config: the training.
        say: told images, groups and nuclei of each set and split, and each problem with its file, a line each.

    Returns:
        The number of problems.
    """
    _, problems = look_at_data(config.data, config.hold_out, say, config.takes_points)
    try:
        _new_network(config, say)
    except NucpipeError as error:
        problems.append(error)
    for problem in problems:
        say(f"problem: {problem}")
    say(f"{len(problems)} problems" if problems else "no problems")
    return len(problems)


class TrainingTask(Protocol):
    """Steps of a training that differ between architectures."""

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses."""

    def batch(self, step: int) -> Any:
        """Return the batch of that step; it depends on the step alone."""

    def step(self, model: Any, optimizer: torch.optim.Optimizer, batch: Any, seed: int) -> dict[str, float]:
        """Learn from a batch; the losses by name."""


class HoVerNetTask:
    """The compact HoVer-Net's."""

    losses = LOSSES

    def __init__(self, config: SegmentorTraining, sets: list[list[AnnotatedImage]]) -> None:
        self.config = config
        # Without a model to start from there are no points (`look_at_data` refuses them).
        read = PointOutliner(config.start_from[0], config.device) if config.start_from else read_labelled
        self.source = TileDataset(sets, config.seed, config.batch_size, read)

    def batch(self, step: int) -> TileBatch:  # noqa: D102
        return self.source.batch(step)

    def step(  # noqa: D102
        self, model: HoVerNet, optimizer: torch.optim.Optimizer, batch: TileBatch, seed: int
    ) -> dict[str, float]:
        return _step(
            model, optimizer, batch, seed, torch.device(self.config.device), autocast_type(self.config.computed_in)
        )


def _training_task(config: SegmentorTraining, sets: list[list[AnnotatedImage]]) -> TrainingTask:
    if config.architecture == "hovernet":
        return HoVerNetTask(config, sets)
    from segmentation.rcnn.training import RCNNTask

    return RCNNTask(config.architecture, sets, config.seed, config.batch_size, config.device)


def _new_network(config: SegmentorTraining, say: Callable[[str], None]) -> nn.Module:
    """Return the network that a training starts from.

    Raises:
        UsageError: the encoder is none of timm's, or does not fit.
        DataError: ``config.start_from`` does not fit.
        ModelError: it is no such model.
    """
    if config.architecture == "hovernet":
        model: nn.Module = _new_hovernet(config, say)
    else:
        from segmentation.rcnn.training import new_rcnn

        model = new_rcnn(config.architecture, config.encoder, say)
    use_fast_depthwise(model)
    return model


def _fit(config: SegmentorTraining, sets: list[list[AnnotatedImage]], say: Callable[[str], None]) -> nn.Module:
    torch.manual_seed(config.seed)
    device = torch.device(config.device)
    trained = _training_task(config, sets)
    model = _new_network(config, say)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged_from = round(config.steps * (1 - trainer.AVERAGED_SHARE))
    optimization = trainer.Optimization(model, config.learning_rate, WEIGHT_DECAY, config.steps, averaged_from)
    trainer_loop = trainer.Trainer(
        "segmentor", config.out, config.settings(), optimization.parts, config.steps, trained.losses, say
    )
    with trainer_loop, _batches(trained.batch, trainer_loop.start, config.steps) as batches:
        for step, batch in batches:
            losses = trained.step(model, optimization.optimizer, batch, config.seed + step)
            optimization.advance(step)
            cells = [f"{losses[name]:.4f}" for name in trained.losses]
            text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            trainer_loop.log_step(step, cells, text, step + 1 == config.steps)
    average: nn.Module = optimization.average
    return average


def _new_hovernet(config: SegmentorTraining, say: Callable[[str], None]) -> HoVerNet:
    check_encoder("--encoder", config.encoder, lambda: HoVerNet(config.encoder, WIDTHS), (1, 3, TILE_PX, TILE_PX))
    if config.start_from:
        start = _start(config)
        widths = config.widths or start.widths
        model = HoVerNet(config.encoder, widths, start.hidden)
        try:
            widen(start, model)
        except ValueError as error:
            raise DataError(
                f"--start-from {config.start_from[0]}: its decoder is wider than --widths "
                f"{','.join(map(str, widths))} ({error})."
            ) from error
        return model
    model = HoVerNet(config.encoder, config.widths or WIDTHS)
    model.encoder.load_state_dict(starting_weights(config.encoder, say), strict=False)
    return model


def _start(config: SegmentorTraining) -> HoVerNet:
    """Return the network of ``start_from``, or the mean of several."""
    networks = []
    for path in config.start_from:
        network, header = read_hovernet(path)
        if (encoder := header.architecture["encoder"]) != config.encoder:
            raise DataError(f"--start-from {path}: its encoder is {encoder}, not {config.encoder}.")
        networks.append(network)
    try:
        networks[0].load_state_dict(trainer.mean_weights(networks))
    except ValueError as error:
        raise DataError(f"--start-from {', '.join(map(str, config.start_from))}: {error}.") from error
    return networks[0]


def _step(
    model: HoVerNet,
    optimizer: torch.optim.Optimizer,
    batch: TileBatch,
    seed: int,
    device: torch.device,
    precision: torch.dtype | None,
) -> dict[str, float]:
    model.train()
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(batch.pixels).to(device).permute(0, 3, 1, 2).float()
    pixels = jitter_focus(jitter_stain(pixels, generator), generator, max_sigma_px=0.8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
        maps = model(pixels)
    truth = (
        torch.from_numpy(part).to(device).float() for part in (batch.nuclear, batch.hv, batch.between, batch.known)
    )
    losses = hovernet_loss(maps.float(), *truth)
    optimizer.zero_grad(set_to_none=True)
    losses["total"].backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return {name: float(losses[name].detach()) for name in LOSSES}


@contextmanager
def _batches(make_batch: Callable[[int], Any], start: int, steps: int) -> Iterator[Iterator[tuple[int, Any]]]:
    """Batches made in a thread beside the network (cv2 and numpy release the interpreter's lock)."""
    ready: queue.Queue[Any] = queue.Queue(3)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for step in range(start, steps):
                if stop.is_set():
                    return
                put(make_batch(step))
        except BaseException as error:
            put(error)

    def take() -> Iterator[tuple[int, Any]]:
        for step in range(start, steps):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield step, item

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        thread.join()


def _kept(paths: Sequence[Path]) -> NucleusFilter:
    """Return the nuclei that a model keeps which starts from others: all that one of these keeps."""
    filters = [default_filter(path) for path in paths]
    return NucleusFilter(
        min((one.min_area_um2 for one in filters), default=0.0),
        min((one.min_detection_p for one in filters), default=0.0),
    )


def _header(
    config: SegmentorTraining, sets: dict[Path, tuple[list[AnnotatedImage], list[AnnotatedImage]]], model: nn.Module
) -> ModelHeader:
    licences = {path: config.licence or licence_of(path) for path in sets}
    data = [
        {
            "name": path.name,
            "images": len(train),
            "held_out": sorted({image.group for image in held}),
            "held_out_images": len(held),
            **({} if any(image.outlined for image in train) else {"points": True}),
            **({"licence": licences[path]} if licences[path] else {}),
        }
        for path, (train, held) in sets.items()
    ]
    earlier, kept = earlier_models(config.start_from), _kept(config.start_from)
    started = {"started_from": ", ".join(path.stem for path in config.start_from)} if config.start_from else {}
    # Both networks normalise by themselves; the header says how.
    shape: dict[str, Any] = {}
    if isinstance(model, HoVerNet):
        half = (0.5, 0.5, 0.5)
        mpp, mean, std, shape = INPUT_MPP, half, half, {"widths": list(model.widths), "hidden": model.hidden}
    else:
        from segmentation.rcnn import detector

        mpp, mean, std = detector.INPUT_MPP, detector.MEAN, detector.STD
    return ModelHeader(
        kind="segmentor",
        name=config.out.stem,
        architecture={"type": config.architecture, "encoder": config.encoder, **shape, **started},
        mpp=mpp,
        mean=mean,
        std=std,
        data=data,
        min_area_um2=kept.min_area_um2,
        min_detection_p=kept.min_detection_p,
        licence=all_licences((of or f"{path.name}: none stated" for path, of in licences.items()), earlier),
        made_from=earlier,
        date=datetime.date.today().isoformat(),
        nucpipe_version=__version__,
    )
