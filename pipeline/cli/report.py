"""``nucpipe report``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML file to write.  [default: report.html in RESULT]")
@click.option("--slide", type=click.Path(path_type=Path), help="Where the slide lies, if it has moved since the run.")
@click.option("--primary", metavar="LIBRARY", help="The library that is shown first.  [default: the run's]")
def report(result: Path, primary: str | None, slide: Path | None, out: Path | None) -> None:
    """Write report.html for one result or a folder of them.

    RESULT is a slide's folder, or a folder of many slides' results. The report is one file to read, print and pass on.
    """
    from pipeline.export.report.write import report_batch, report_slide
    from pipeline.result import is_result, open_result, open_results

    if result.is_dir() and not is_result(result):
        path = report_batch(open_results(result), out or result / "report.html", primary)
    else:
        path = report_slide(open_result(result), out, primary, slide)
    click.echo(f"report -> {path}")
