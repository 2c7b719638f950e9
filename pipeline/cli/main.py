"""The command line. Heavy packages are imported where they are used: ``nucpipe --help`` answers at once."""

from __future__ import annotations

import os
import signal
from typing import Any

import click

from nucpipe._version import __version__
from nucpipe.cache import keep_libraries_in_cache
from nucpipe.errors import NucpipeError
from pipeline.cli.commands import (
    adapt,
    classify,
    doctor,
    evaluate,
    export,
    info,
    libraries,
    measure,
    report,
    run,
    serve,
    train,
    view,
)
from pipeline.cli.stopping import Terminated, stop_on_signals

GO_ON = ("run", "demo", "train")
"""Commands that keep what is done when they are stopped."""


class OneLineErrors(click.Group):
    """Turns the errors that a user can act on into one line and their exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which they were added; click would sort them."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except NucpipeError as error:
            click.echo(f"nucpipe: {error}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.filename is None:  # a pipe that was closed, which click ends quietly; or nothing to name
                raise
            why = error.strerror or type(error).__name__
            click.echo(f"nucpipe: {error.filename}: cannot be read or written ({why}); give another place.", err=True)
            ctx.exit(1)
        except KeyboardInterrupt as error:
            goes_on = ctx.invoked_subcommand in GO_ON
            then = "the same command goes on where it stopped" if goes_on else "the same command starts again"
            terminated = isinstance(error, Terminated)
            click.echo(f"nucpipe: stopped{' by SIGTERM' if terminated else ''}; {then}.", err=True)
            ctx.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="nucpipe")
def main() -> None:
    """Find, outline and name every nucleus of H&E slides, in the words of five published label systems.

    A first look: nucpipe demo --out results
    """
    # OpenMP's threads shall sleep when they have nothing to do; it reads this once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_libraries_in_cache()


COMMANDS = (
    run.run,
    run.demo,
    view.view,
    report.report,
    export.export,
    measure.measure,
    adapt.corrections,
    adapt.adapt,
    classify.classify,
    serve.serve,
    train.train,
    evaluate.evaluate,
    info.info,
    info.models,
    libraries.libraries,
    doctor.doctor,
)
"""In the order in which a newcomer needs them, which ``--help`` keeps."""
for command in COMMANDS:
    main.add_command(command)


def main_process() -> None:
    """Run the command line as a process of its own, which signals end in order."""
    stop_on_signals()
    main(prog_name="nucpipe")
