"""``nucpipe doctor``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pipeline.cli.doctor_checks import examine

COLOURS = {"ok": "green", "note": "blue", "warning": "yellow", "FAILED": "red"}


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(), show_default="this folder", help="Where results shall go."
)
def doctor(out: Path) -> None:
    """Check the installation, device, readers, models and disk.

    Exit status: 0 if nucpipe can work, 1 if something failed.
    """
    failed = warned = 0
    for finding in examine(out):
        failed += finding.verdict == "FAILED"
        warned += finding.verdict == "warning"
        verdict = click.style(f"{finding.verdict:<8}", fg=COLOURS[finding.verdict])
        click.echo(f"{verdict} {finding.subject:<18} {finding.says}")
    if failed:
        click.echo(f"{failed} failed; the lines above say what to do, and docs/troubleshooting.md says more.")
        sys.exit(1)
    click.echo("nucpipe can work here." + (f" {warned} warning(s) above." if warned else ""))
