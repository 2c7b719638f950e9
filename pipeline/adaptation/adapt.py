"""``nucpipe adapt``: from the corrections beside a result to a second set of labels in its store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nucpipe.errors import UsageError
from pipeline.adaptation.clicks import Clicks, clicks_of
from pipeline.adaptation.corrections import CORRECTIONS, now, read_corrections, spelled
from pipeline.adaptation.model import Adaptation, LibraryModel, confirmed, features_of, fit, standard_of
from pipeline.adaptation.validation import Accuracy, cross_validate
from pipeline.result import Result
from pipeline.store.adapted import write_adapted
from pipeline.store.reader import Store

BATCH = 65536


@dataclass(frozen=True)
class Learnt:
    """What the corrections of one result taught.

    Attributes:
        clicks: what they say.
        adaptation: what they teach.
        accuracy: by library, on corrections that were left out; None where they are too few to tell.
    """

    clicks: Clicks
    adaptation: Adaptation
    accuracy: dict[str, Accuracy | None]

    @property
    def worse(self) -> list[str]:
        """The libraries whose labels became worse."""
        return [name for name, one in self.accuracy.items() if one is not None and one.worse]

    @property
    def untrusted(self) -> list[str]:
        """The libraries that cannot be measured, where those that can became worse: they were taught by the same
        corrections.
        """
        return [name for name, one in self.accuracy.items() if one is None] if self.worse else []

    @property
    def errors_alone(self) -> list[str]:
        """The libraries of which every measured correction says that the label was wrong."""
        return [name for name, one in self.accuracy.items() if one is not None and not one.plain[0]]


@dataclass(frozen=True)
class Changed:
    """How many nuclei of a result have another label than before, by library, and how many are no nuclei."""

    labels: dict[str, int]
    no_nuclei: int


def learn(result: Result) -> Learnt:
    """Return what the corrections beside a result teach of its nuclei.

    Raises:
        UsageError: there are no corrections, or none of them speaks of a nucleus of this result.
        DataError: the corrections cannot be read, or name labels that there are not.
    """
    path, store = result.folder / CORRECTIONS, result.store.base()
    corrections = spelled(read_corrections(path), store.info.outputs, path)
    if not corrections:
        raise UsageError(f"{path}: there are no corrections; make some in nucpipe view, or import them.")
    clicks = clicks_of(corrections, store)
    if not len(clicks) and not len(clicks.no_nuclei):
        raise UsageError(
            f"{path}: none of its {len(corrections)} corrections can be used: {clicks.lost} lie where this result has "
            f"no nucleus, {len(clicks.contradictions)} nuclei have contradicting ones."
        )
    return learn_from(clicks, store)


def learn_from(clicks: Clicks, store: Store) -> Learnt:
    """Return what corrected nuclei of a store teach."""
    outputs = store.info.outputs
    of_all, features_of_all = store.probabilities, features_of(store)
    standard = standard_of(features_of_all, of_all, outputs)
    base, features = of_all[clicks.rows], features_of_all[clicks.rows]
    adaptation = fit(base, features, clicks.teaches, outputs, standard)
    accuracy = cross_validate(base, features, clicks.teaches, clicks.points_l0, outputs, standard)
    return Learnt(clicks, adaptation, accuracy)


def write(result: Result, learnt: Learnt, left_out: list[str], source: Result | None = None) -> Changed:
    """Write the adapted labels of a result.

    Args:
        result: whose nuclei get labels.
        learnt: from :func:`learn`.
        left_out: libraries that keep their base labels.
        source: the result whose corrections these are, where it is another one.

    Raises:
        UsageError: ``source`` is of another classifier, or only one of the two stores features.
        OutputError: they cannot be written.
    """
    store, outputs = result.store.base(), result.store.info.outputs
    if source is not None:
        check_alike(source.store, store)
    models = {name: model for name, model in learnt.adaptation.libraries.items() if name not in left_out}
    adaptation = Adaptation(models, learnt.adaptation.mean, learnt.adaptation.deviation)
    own = source is None
    kept = np.concatenate(
        [np.arange(part.start, part.stop) for name, part in outputs.slices.items() if name in models]
        or [np.zeros(0, np.int64)]
    )
    allowed = np.zeros_like(learnt.clicks.allowed)
    allowed[:, kept] = learnt.clicks.allowed[:, kept]
    changed = dict.fromkeys(models, 0)
    features = features_of(store)

    def parts() -> Iterator[npt.NDArray[np.float32]]:
        start = 0
        for part in store.batches(BATCH):
            base = part.probabilities
            adapted = adaptation.apply(base, features[start : start + len(part)])
            if own:
                first, last = np.searchsorted(learnt.clicks.rows, (start, start + len(part)))
                here = learnt.clicks.rows[first:last] - start
                adapted[here] = confirmed(adapted[here], allowed[first:last], outputs)
            before, after = outputs.best(base), outputs.best(adapted)
            for name in changed:
                changed[name] += int((before[name] != after[name]).sum())
            start += len(part)
            yield adapted

    no_nuclei = learnt.clicks.no_nuclei if own else np.zeros(0, np.int64)
    write_adapted(store, list(models), parts(), no_nuclei, _made_from(learnt, models, source or result, own))
    return Changed(changed, len(no_nuclei))


def _made_from(learnt: Learnt, models: dict[str, LibraryModel], source: Result, own: bool) -> dict[str, object]:
    return {
        "corrections_of": source.name,
        "same_slide": own,
        "corrected_nuclei": len(learnt.clicks),
        "no_nuclei": len(learnt.clicks.no_nuclei) if own else 0,
        "features": "stored" if source.store.info.features else "base log odds",
        "when": now(),
        "libraries": {
            name: {"corrected_nuclei": model.nuclei, "accuracy": _facts(learnt.accuracy.get(name))}
            for name, model in models.items()
        },
    }


def _facts(accuracy: Accuracy | None) -> dict[str, object] | None:
    if accuracy is None:
        return None
    return {"nuclei": accuracy.nuclei, "plain": list(accuracy.plain), "balanced": list(accuracy.balanced)}


def check_alike(source: Store, other: Store) -> None:
    """See that what the corrections of one store teach holds for another.

    Raises:
        UsageError: they are of different classifiers, or only one of them has features.
    """
    ours, theirs = (store.info.models.get("classifier", {}) for store in (source, other))
    if ours != theirs or source.info.outputs.columns != other.info.outputs.columns:
        raise UsageError(
            f"{other.info.slide_name}: labelled by {theirs.get('name', 'another classifier')}, but the corrections are "
            f"of nuclei that {ours.get('name', 'another one')} labelled; run both slides with the same classifier file."
        )
    if source.info.features != other.info.features:
        raise UsageError(f"{other.info.slide_name}: only one of the two results stores features; run both alike.")
