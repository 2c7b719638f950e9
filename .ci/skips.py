"""Fail if a test was skipped that should have run here: ``skips.py JUNIT_XML``."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"

# The reasons for which a test may be skipped, and whether they can be true on this machine.
ALLOWED = {
    r"is absent$|is not at hand$": not SHARED.is_dir(),  # annotated images and slides beside the checkout
    r"^no chromium with chromedriver": not (shutil.which("chromium") and shutil.which("chromedriver")),
    r"^there is no groovy": shutil.which("groovy") is None,
    r"^only root may mount": os.geteuid() != 0,
    r"^mounting a file system is not allowed": True,  # in most containers
    r"^only glibc keeps": platform.libc_ver()[0] != "glibc",
    r"^OpenVINO is for x86": platform.machine() not in ("x86_64", "AMD64"),
    r"^hadolint is only there for x86 Linux": (sys.platform, platform.machine()) != ("linux", "x86_64"),
    r"^whether there is a GPU": Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists(),
}


def main(path: str) -> int:
    """Print the tests that were skipped; return 1 if one should have run, or if none ran at all."""
    cases = list(ET.parse(path).iter("testcase"))
    refused = 0
    for case in cases:
        for skipped in case.iter("skipped"):
            reason = skipped.get("message", "")
            allowed = any(holds and re.search(pattern, reason) for pattern, holds in ALLOWED.items())
            refused += not allowed
            print(f"{'skipped' if allowed else 'SHOULD RUN'}: {case.get('classname')}::{case.get('name')}: {reason}")
    print(f"{len(cases)} tests, {refused} of them skipped for no good reason")
    return 1 if refused or not cases else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
