"""The options of ``nucpipe run`` and the fields of RunConfig are the same settings with the same defaults."""

from dataclasses import fields

from pipeline.cli.commands.run import run
from pipeline.config import RunConfig

BATCH = {"slides", "out", "max_failures", "dry_run", "cluster"}
"""Of the command, not of a slide."""
NEGATED = {"no_geojson": "geojson", "no_features": "features"}


def test_every_setting_is_an_option_with_the_same_default() -> None:
    given = run.make_context("run", ["slide.svs", "--out", "results"]).params
    options = {NEGATED.get(name, name): value for name, value in given.items() if name not in BATCH}
    for name in NEGATED.values():
        options[name] = not options[name]
    assert options == {field.name: field.default for field in fields(RunConfig)}
