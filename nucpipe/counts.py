"""Numbers of things in messages."""


def counted(number: int, one: str, many: str = "") -> str:
    """Return ``1 nucleus`` or ``1,234 nuclei``; ``many`` is ``one`` with an s unless it is given."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
