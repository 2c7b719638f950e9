"""Errors of the libraries that read slides, for a message of one line."""


def cause(error: BaseException) -> str:
    """The first line of what a library says, or else the kind of its error."""
    lines = str(error).strip().splitlines()
    # The text of these is a bare key or number.
    bare = isinstance(error, LookupError)
    return lines[0].rstrip(".") if lines and not bare else type(error).__name__
