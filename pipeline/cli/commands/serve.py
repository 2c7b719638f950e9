"""``nucpipe serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from classifier.spec import BATCH_SIZE, GPU_BATCH_SIZE
from nucpipe.errors import UsageError
from nucpipe.optional.extras import install_command
from pipeline.cli.options import DEFAULT, classifier_option, device_option, precision_option, segmentor_option
from pipeline.web.service.config import ServeConfig

PORT = 8402
TOKEN_VARIABLE = "NUCPIPE_TOKEN"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all networks.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on; 0 for any free one.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help=f"File with a token that clients must send. Or set {TOKEN_VARIABLE}.",
)
@segmentor_option
@classifier_option
@click.option(
    "--primary",
    metavar="LIBRARY",
    default=DEFAULT.primary,
    show_default=True,
    help="Whose labels are the classes in GeoJSON.",
)
@device_option
@precision_option
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help=f"Nuclei classified at a time.  [default: {BATCH_SIZE}, on a GPU {GPU_BATCH_SIZE}]",
)
@click.option("--max-mb", type=float, default=64, show_default=True, help="Largest request, in megabytes.")
@click.option(
    "--max-pixels", type=int, default=25_000_000, show_default=True, help="Largest sum of pixels of a request's images."
)
@click.option(
    "--max-waiting", type=int, default=64, show_default=True, help="Requests that may wait; more are refused."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=120,
    show_default=True,
    help="Seconds after which a request is given up.",
)
def serve(host: str, port: int, token_file: Path | None, max_mb: float, **options: Any) -> None:
    """Answer over HTTP: image in, named nuclei out.

    A request holds an image and its pixel size; the answer holds every nucleus with a label of each library. Only this
    machine is answered unless --host says otherwise; then set a token. Needs the optional part [serve].
    """
    try:
        from pipeline.web.service.app import service_app
        from pipeline.web.service.worker import warm_up
    except ModuleNotFoundError as error:
        raise UsageError(f"nucpipe serve needs {error.name}; install it with: {install_command('serve')}") from error
    from pipeline.inference.models import load_models
    from pipeline.web.server import LOOPBACK_NAMES, address, listen
    from pipeline.web.server import serve as serve_until_stopped

    local = host in LOOPBACK_NAMES
    config = ServeConfig(
        max_bytes=int(max_mb * 2**20),
        max_pixels=options["max_pixels"],
        max_waiting=options["max_waiting"],
        timeout_s=options["timeout_s"],
        token=read_token(token_file),
        local_only=local,
    )
    models = load_models(options["segmentor"], options["classifier"], options["device"], options["precision"])
    primary = models.outputs.library(options["primary"]).name
    listener = listen(host, port)
    batch_size = options["batch_size"] or models.classifier.batch_size
    warm_up(models, batch_size)
    if not local and config.token is None:
        click.echo(f"Anybody who reaches {host} may use this service; a --token-file would prevent it.", err=True)
    app = service_app(models, config, primary, batch_size)
    serve_until_stopped(app, listener, lambda: click.echo(f"nucpipe serves at {address(listener)}  (Ctrl-C ends it)"))


def read_token(path: Path | None) -> str | None:
    """Return the token, from a file or from the environment, where other users of the machine cannot read it.

    Raises:
        UsageError: the file cannot be read.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE)
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--token-file {path}: cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from error
