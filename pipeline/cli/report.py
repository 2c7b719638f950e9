"""``nucpipe report``."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import filtered


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML file to write.  [default: report.html in RESULT]")
@click.option("--slide", type=click.Path(path_type=Path), help="Where the slide lies, if it has moved since the run.")
@click.option("--primary", metavar="LIBRARY", help="The library that is shown first.  [default: the run's]")
@filtered
def report(
    result: Path,
    out: Path | None,
    slide: Path | None,
    primary: str | None,
    min_area: float | None,
    min_detection: float | None,
) -> None:
    """Write report.html for one result or a folder of them.

    RESULT is a slide's folder, or a folder of many slides' results. The report is one file to read, print and pass on.
    """
    from pipeline.export.report.write import report_batch, report_slide
    from pipeline.result import is_result, open_result, open_results

    if result.is_dir() and not is_result(result):
        results = [one.filtered(min_area, min_detection) for one in open_results(result)]
        path = report_batch(results, out or result / "report.html", primary)
    else:
        path = report_slide(open_result(result).filtered(min_area, min_detection), out, primary, slide)
    click.echo(f"report -> {path}")
