"""``nucpipe report``."""

from __future__ import annotations

from pathlib import Path

import click

from nucpipe.errors import UsageError
from pipeline.cli.options import adapted_option, filtered, regions_option, slide_option


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="HTML file to write.  [default: report.html in RESULT, or report-adapted.html]",
)
@slide_option
@click.option("--primary", metavar="LIBRARY", help="The library that is shown first.  [default: the run's]")
@regions_option(", of one slide, to tell of each by itself.")
@adapted_option
@filtered()
def report(
    result: Path,
    out: Path | None,
    slide: Path | None,
    primary: str | None,
    regions: Path | None,
    min_area: float | None,
    min_detection: float | None,
    adapted: bool,
) -> None:
    """Write report.html for one result or a folder of them.

    RESULT is a slide's folder, or a folder of many slides' results. The report is one file to read, print and pass on.
    """
    from pipeline.export.report.write import report_batch, report_slide
    from pipeline.result import Result, is_result, open_result, open_results
    from pipeline.store.run_record import ADAPTED_REPORT, REPORT

    # The run's own report stays.
    name = ADAPTED_REPORT if adapted else REPORT

    def kept(one: Result) -> Result:
        return (one.adapted() if adapted else one).filtered(min_area, min_detection)

    if result.is_dir() and not is_result(result):
        if regions is not None:
            raise UsageError("--regions are those of one slide; report on the slides one by one.")
        results = [kept(one) for one in open_results(result)]
        path = report_batch(results, out or result / name, primary)
    else:
        one = kept(open_result(result))
        path = report_slide(one, out or one.folder / name, primary, slide, regions)
    click.echo(f"report -> {path}")
