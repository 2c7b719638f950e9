"""Errors of the libraries that read slides, for a message of one line."""


def cause(error: BaseException) -> str:
    """The first line of what a library says, or else the kind of its error."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
