"""``nucpipe view``."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from pipeline.cli.options import filtered

PORT = 8401


@click.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--slide",
    type=click.Path(path_type=Path),
    help="Where the slide is now.  [default: where the run found it]",
)
@click.option("--primary", metavar="LIBRARY", help="Whose labels are shown first.  [default: as in the run]")
@filtered
@click.option(
    "--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="Any free one where that is taken."
)
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def view(
    result: Path,
    slide: Path | None,
    primary: str | None,
    min_area: float | None,
    min_detection: float | None,
    port: int,
    no_browser: bool,
) -> None:
    """Show a finished result in the browser.

    RESULT is a slide's folder; the slide is shown with its nuclei on it. The page is served on this machine alone, and
    needs no internet. Ctrl-C ends it.
    """
    from pipeline.web.server import LOOPBACK, address, listen, serve
    from pipeline.web.viewer.app import viewer_app
    from pipeline.web.viewer.open import open_viewed

    viewed = open_viewed(result, slide, primary, min_area, min_detection)
    listener = listen(LOOPBACK, port, or_next=True)
    url = address(listener)

    def begun() -> None:
        click.echo(f"{viewed.result.name}: {len(viewed.nuclei):,} nuclei at {url}  (Ctrl-C ends it)")
        if viewed.note:
            click.echo(f"Without the slide: {viewed.note}", err=True)
        if not no_browser:
            webbrowser.open(url)

    serve(viewer_app(viewed), listener, begun)
