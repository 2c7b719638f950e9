"""Errors of the libraries that read slides, for a message of one line."""


def cause(error: BaseException) -> str:
    """Return the first line of what a library says; in words where it says nothing or a bare key or number."""
    lines = str(error).strip().splitlines()
    if isinstance(error, LookupError) or not lines:  # the text of a LookupError is the key that was looked up
        return f"no {error} in it" if isinstance(error, KeyError) else "data is missing from it"
    return lines[0].rstrip(".")
