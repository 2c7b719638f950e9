"""The errors that nucpipe raises on purpose: each message is one line that a user can act on."""


class NucpipeError(Exception):
    """Something a user can mend. The message says what was expected, what came and what to do.

    The command line prints it as one line, without a traceback, and ends with ``exit_code``.
    """

    exit_code = 1


class UsageError(NucpipeError):
    """The command itself is wrong (an unknown name, an option out of range); nothing was started."""

    exit_code = 2


class SlideError(NucpipeError):
    """One slide cannot be read or processed; other slides of the batch can."""


class ModelError(NucpipeError):
    """A model file is missing, broken, or not of the kind that was asked for."""


class DataError(NucpipeError):
    """An annotated data set is incomplete or not in its published layout."""


class OutputError(NucpipeError):
    """Results cannot be written, or already exist."""
