"""``nucpipe`` and ``python -m nucpipe``."""

import signal


def start() -> None:
    """Run the command line as a process of its own."""
    # While the command line is loaded, Ctrl-C just ends the process.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline.cli.main import main_process

    main_process()


if __name__ == "__main__":
    start()
