"""``nucpipe libraries``: the label systems, and which label teaches which."""

from __future__ import annotations

from pathlib import Path

import click

from nucpipe.backends.model_file import read_header
from pipeline.cli.options import DEFAULT, library_option


@click.command()
@click.option(
    "--match",
    type=click.Choice(["own", "exact", "similar", "table"]),
    default="table",
    show_default=True,
    help="Which label teaches other libraries: none, one of equal text, of similar text, by the label table.",
)
@click.option("--similarity", type=float, default=0.8, show_default=True, help="Ratio above which texts are similar.")
@click.option(
    "--match-table", type=click.Path(path_type=Path), metavar="TOML", help="Another label table than nucpipe's."
)
@library_option(required=False)
def libraries(data: tuple[tuple[str, Path], ...], match: str, similarity: float, match_table: Path | None) -> None:
    """List the libraries' labels, and which teaches which.

    Each label is listed with its short form, and with why it teaches another library's.
    """
    from classifier.decision_rule import short_form
    from classifier.labels.label_mapping import make_matching
    from classifier.labels.libraries import LabelSpace, libraries_of
    from classifier.spec import unmeasured
    from pipeline.inference.models import find_model

    known = libraries_of(data)
    matching = make_matching(known, match, similarity, match_table)
    header = read_header(find_model("classifier", DEFAULT.classifier))
    outputs = LabelSpace.from_dict(header.outputs)
    untrained = {column for column, trained in zip(outputs.columns, outputs.trained, strict=True) if not trained}
    elsewhere = unmeasured(header)
    for library in known:
        click.echo(f"{library.name}  {library.mpp} µm, {library.licence}")
        for number, label in enumerate(library.labels):
            pairs = [p for p in matching.pairs if (p.source, p.label) == (library.name, label)]
            notes = [f"teaches {p.library} {' or '.join(p.taught)} ({p.why})" for p in pairs]
            if (library.name, label) in untrained:
                notes.append("untrained in the bundled model, never predicted by it")
            short = "" if library.partial else short_form(library.name, number)
            click.echo(f"  {short:<12} {label:<22} {'; '.join(notes)}".rstrip())
        for grouping, groups in library.groups.items():
            for group, labels in groups.items():
                click.echo(f"  {grouping:<12} {group:<22} = {', '.join(labels)}")
        if library.partial:
            click.echo("  It is partial: its labels only teach other libraries' and are no outputs of a classifier.")
        if library.name in elsewhere:
            click.echo(
                f"  The bundled model learnt {library.name}'s labels from other libraries only; how well they hold on "
                f"{library.name}'s own images was not measured."
            )
