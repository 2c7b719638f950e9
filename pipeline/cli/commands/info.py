"""``nucpipe info`` and ``nucpipe models``: what a slide and what the bundled models are."""

from __future__ import annotations

from pathlib import Path

import click

from nucpipe.backends.model_file import read_header
from nucpipe.errors import UsageError
from pipeline.cli.options import mpp_option


@click.command()
@click.argument("slide", type=click.Path(path_type=Path))
@mpp_option
def info(slide: Path, mpp: float | None) -> None:
    """Say what a slide is: size, pixel size, levels, reader."""
    from pipeline.slide.base import describe
    from pipeline.slide.open import open_slide

    if not slide.exists():
        raise UsageError(f"{slide}: no such slide.")
    with open_slide(slide, mpp) as opened:
        for key, value in describe(opened).items():
            click.echo(f"{key:<20} {value}")


@click.command()
@click.argument("asked", metavar="[NAME|PATH]...", nargs=-1)
def models(asked: tuple[str, ...]) -> None:
    """List bundled and published models, or describe files."""
    from pipeline.inference.models import describe_models, published_models
    from segmentation.nuclei import NucleusFilter

    bundled = {path.stem: (path, header) for path, header in describe_models()}
    published = {name: f"trained on {taught}; {place}" for name, taught, place in published_models()}
    for name in asked or (*bundled, *published):
        if name in published:
            click.echo(f"{name:<25} segmentor  0.25 µm  HoVer-Net as published, {published[name]}")
            continue
        path, header = bundled.get(name) or (Path(name), read_header(Path(name)))
        click.echo(
            f"{path.stem:<25} {header.kind:<11} {header.mpp} µm  {header.date}  {path.stat().st_size / 1e6:.1f} MB"
        )
        if header.min_area_um2 or header.min_detection_p:
            click.echo(f"{'':<25} keeps nuclei of {NucleusFilter(header.min_area_um2, header.min_detection_p)}")
        for model in header.made_from:
            click.echo(f"{'':<25} made from {model['name']}")
        for data in (one for one in header.all_data if one["images"]):
            click.echo(f"{'':<25} trained on {data['name']} ({data['images']} images)")
        if asked:
            click.echo(f"{'':<25} licences: {header.licence or 'none stated'}")
