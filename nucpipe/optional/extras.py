"""Commands that install nucpipe's extras, for every hint."""


def install_command(extra: str | None = None) -> str:
    """Return the command that installs nucpipe, or adds one of its optional parts.

    nucpipe is on no package index, so the command is for the folder of its source; the constraints keep the versions
    that are tested.

    Args:
        extra: A name of ``[project.optional-dependencies]`` in ``pyproject.toml``; None for nucpipe itself.
    """
    target = "." if extra is None else f'".[{extra}]"'
    return f"pip install -c constraints.txt {target} (in the folder of nucpipe's source)"
