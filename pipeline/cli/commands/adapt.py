"""``nucpipe adapt`` and ``nucpipe corrections``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nucpipe.counts import counted
from nucpipe.errors import OutputError, UsageError
from pipeline.batch.lock import Lock, held, waiting_for

if TYPE_CHECKING:
    from pipeline.adaptation.adapt import Changed, Learnt
    from pipeline.result import Result


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "others",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="Apply what the corrections of RESULT teach to this result too, as of the same patient; repeat it.",
)
@click.option("--even-worse", is_flag=True, help="Write labels, too, that cross-validation finds worse than before.")
@click.option("--undo", is_flag=True, help="Remove the adapted labels of RESULT (and of --to) again.")
def adapt(result: Path, others: tuple[Path, ...], even_worse: bool, undo: bool) -> None:
    """Label all nuclei of a slide anew, after its corrections.

    RESULT is a slide's folder with a corrections.csv, from nucpipe view or nucpipe corrections import. The adapted
    labels stand beside the base labels, in columns such as PanNuke_adapted; nucpipe export and report take them with
    --adapted. Accuracy is measured on corrections that are left out, place by place. A library that no
    correction speaks of keeps its labels, and so does one that becomes worse, and then one that cannot be measured.
    """
    from pipeline.adaptation.adapt import check_alike
    from pipeline.result import open_result
    from pipeline.store.adapted import remove_adapted, remove_adapted_report

    source = open_result(result)
    targets = [open_result(other) for other in others]
    places = [one.store.path.resolve() for one in (source, *targets)]
    if len(set(places)) < len(places):
        raise UsageError(f"--to {others[-1]}: expected other results than {result}, and each once.")
    with ExitStack() as locks:
        for one in (source, *targets):
            locks.enter_context(_locked(one.folder))
        if undo:
            for one in (source, *targets):
                there = remove_adapted(one.store.path)
                report = " and their report" if remove_adapted_report(one.folder) else ""
                click.echo(f"{one.name}: {f'adapted labels{report} removed' if there else 'has no adapted labels'}")
            return
        for target in targets:
            check_alike(source.store, target.store)
        _adapt(source, targets, even_worse)


def _locked(folder: Path) -> AbstractContextManager[object]:
    """Hold the lock of a slide's results, which runs hold, too."""
    lock = Lock(folder)
    if not lock.acquire():
        raise OutputError(
            f"{folder}: {lock.holder() or 'another process'} is at work on it; give the command again when that ends."
        )
    return held(lock)


def _adapt(source: Result, targets: Sequence[Result], even_worse: bool) -> None:
    from pipeline.adaptation.adapt import learn, write

    learnt = learn(source)
    _say_learnt(source.name, learnt)
    left_out = [] if even_worse else [*learnt.worse, *learnt.untrusted]
    if left_out:
        unmeasured = f"; and, too few to measure: {', '.join(learnt.untrusted)}" if learnt.untrusted else ""
        click.echo(
            f"Worse than before, so left as they are: {', '.join(learnt.worse)}{unmeasured} "
            "(--even-worse writes them all the same)."
        )
    if not set(learnt.adaptation.libraries) - set(left_out) and not len(learnt.clicks.no_nuclei):
        raise UsageError(f"{source.name}: nothing became better, so nothing is written; correct more nuclei.")
    _say_changed(source.name, len(source), write(source, learnt, left_out))
    if targets:
        click.echo(
            "To other slides: corrections hold for their own slide, and were no help on slides of other patients when "
            "that was measured; often they harmed. Look at the result before you use it."
        )
    for target in targets:
        _say_changed(target.name, len(target), write(target, learnt, left_out, source))


def _say_learnt(name: str, learnt: Learnt) -> None:
    clicks = learnt.clicks
    none = counted(len(clicks.no_nuclei), "said to be no nucleus", "said to be no nuclei")
    no_nuclei = f", {none}" if len(clicks.no_nuclei) else ""
    click.echo(f"{name}: {counted(len(clicks), 'corrected nucleus', 'corrected nuclei')}{no_nuclei}")
    if clicks.lost:
        click.echo(f"  {clicks.lost} corrections lie where this result has no nucleus; they are not used")
    for contradiction in clicks.contradictions:
        click.echo(f"  contradiction, not used: {contradiction}")
    for label, count in clicks.untaught:
        click.echo(
            f"  {label}: given {count} times, but this classifier was never taught it; nucpipe train can teach it"
        )
    for library, model in learnt.adaptation.libraries.items():
        measured = learnt.accuracy.get(library)
        how = "too few to measure"
        if measured is not None:
            plain, balanced = (f"{before:.3f} -> {after:.3f}" for before, after in (measured.plain, measured.balanced))
            how = f"accuracy {plain}, balanced {balanced} on {measured.nuclei} corrected nuclei left out in turn"
        click.echo(f"  {library}: {model.nuclei} corrected nuclei speak of it; {how}")
    if learnt.errors_alone:
        click.echo(
            f"  No correction confirms a label of {', '.join(learnt.errors_alone)}: accuracy, before and after, is "
            "that of errors alone and no estimate for the slide; confirm labels that are right, too, in nucpipe view"
        )


def _say_changed(name: str, nuclei: int, changed: Changed) -> None:
    parts = [f"{library} {count:,}" for library, count in changed.labels.items()]
    click.echo(f"{name}: other labels than before, of {nuclei:,} nuclei: {', '.join(parts) or 'none'}")


@click.group()
def corrections() -> None:
    """Take over corrections that were made elsewhere."""


@corrections.command(name="import")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--library", metavar="LIBRARY", help="Whose labels the classes in a GeoJSON are.  [default: the run's primary]"
)
def import_corrections(file: Path, result: Path, library: str | None) -> None:
    """Add corrections of a slide from a file.

    FILE is a GeoJSON that QuPath exported after classes of nuclei were changed there (nuclei keep their ids; those
    whose class is as nucpipe gave it say nothing), or another person's corrections.csv. They are added to
    corrections.csv in RESULT; what contradicts what is there is listed, kept, and not used until it is settled.
    """
    from pipeline.adaptation.corrections import (
        CORRECTIONS,
        CORRECTIONS_LOCK,
        at_one_place,
        contradictions,
        locate,
        merged,
        read_corrections,
        spelled,
        write_corrections,
    )
    from pipeline.adaptation.qupath import corrections_from_geojson
    from pipeline.result import open_result

    opened = open_result(result)
    target, store = opened.folder / CORRECTIONS, opened.store
    if not file.is_file():
        raise UsageError(f"{file}: no such file; expected a GeoJSON of QuPath, or a corrections.csv.")
    if file.suffix.lower() == ".csv":
        new = spelled(read_corrections(file), store.info.outputs, file)
    else:
        new = corrections_from_geojson(file, store, library or opened.primary)
    if lost := int((locate(new, store) < 0).sum()):
        click.echo(f"  {lost} of {len(new)} corrections lie where this result has no nucleus; they are kept, not used")
    with waiting_for(Lock(opened.folder, CORRECTIONS_LOCK)):
        before = merged(spelled(read_corrections(target), store.info.outputs, target), [])
        after = merged(before, new)
        write_corrections(target, after)
    click.echo(f"{counted(len(after) - len(before), 'correction')} added, {len(after)} in {target}")
    for contradiction in contradictions(at_one_place(after, locate(after, store))):
        click.echo(f"  contradiction, not used: {contradiction}")
