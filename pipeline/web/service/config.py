"""Configuration of ``nucpipe serve``."""

from __future__ import annotations

from dataclasses import dataclass

from nucpipe.errors import UsageError


@dataclass(frozen=True)
class ServeConfig:
    """The limits of a service, and who may use it.

    Attributes:
        max_bytes: of a request.
        max_pixels: of a request's images together, as they are sent or as they are read (at 0.25 or 0.5 µm),
            whichever is more.
        max_crops: images of single nuclei in a request.
        max_waiting: requests that wait for the models; more are turned away.
        timeout_s: seconds from a request to its answer.
        token: what clients must send as ``Authorization: Bearer TOKEN``; None: nothing.
        local_only: only requests to this machine's own names are answered.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 25_000_000
    max_crops: int = 1000
    max_waiting: int = 64
    timeout_s: float = 120.0
    token: str | None = None
    local_only: bool = True

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            UsageError: one is too small, or the token cannot stand in a header.
        """
        for name in ("max_bytes", "max_pixels", "max_crops", "max_waiting", "timeout_s"):
            if getattr(self, name) <= 0:
                raise UsageError(f"--{name.replace('_', '-').removesuffix('-s')}: expected more than 0.")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UsageError("the token must be of printable ASCII characters, and not empty.")
