"""``nucpipe view``."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from nucpipe.counts import counted
from nucpipe.errors import UsageError
from pipeline.cli.options import filtered, regions_option, slide_option

PORT = 8401


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@slide_option
@click.option("--primary", metavar="LIBRARY", help="Whose labels are shown first.  [default: as in the run]")
@regions_option(", of one slide: shown, and to choose the nuclei of one of them.")
@filtered()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="Port to serve at; any free one where it is taken.",
)
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def view(
    result: Path,
    slide: Path | None,
    primary: str | None,
    regions: Path | None,
    min_area: float | None,
    min_detection: float | None,
    port: int,
    no_browser: bool,
) -> None:
    """Show finished results in the browser.

    RESULT is a slide's folder, which is shown with its nuclei on it, or a folder of many, which are listed. The pages
    are served on this machine alone, and need no internet. Ctrl-C ends it.
    """
    from pipeline.web.server import LOOPBACK, address, listen, serve
    from pipeline.web.viewer.app import viewer_app
    from pipeline.web.viewer.folder import folder_app, slides_in
    from pipeline.web.viewer.open import open_viewed

    found = slides_in(result)
    if len(found.results) > 1:
        for option, given in (("--slide", slide), ("--regions", regions)):
            if given is not None:
                raise UsageError(f"{option} is of one slide; {result} holds {len(found.results)}, name one of them.")
        app = folder_app(found, lambda path: open_viewed(path, None, primary, min_area, min_detection))
        what, note = f"{result}: {len(found.results):,} slides", ""
    else:
        viewed = open_viewed(found.results[0], slide, primary, min_area, min_detection, regions)
        app = viewer_app(viewed)
        what, note = f"{viewed.result.name}: {counted(len(viewed.nuclei), 'nucleus', 'nuclei')}", viewed.note
    listener = listen(LOOPBACK, port, or_next=True)
    url = address(listener)

    def begun() -> None:
        click.echo(f"{what} at {url}  (Ctrl-C ends it)")
        if note:
            click.echo(f"Without the slide: {note}", err=True)
        if not no_browser:
            webbrowser.open(url)

    serve(app, listener, begun)
