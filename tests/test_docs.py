"""The documents tell the truth: messages that are explained exist, options that are named do, links lead somewhere."""

from __future__ import annotations

import re

import click
import pytest

from pipeline.cli.main import main
from tests.support.paths import ROOT

PAGES = [
    "README",
    "docs/install",
    "docs/first-slide",
    "docs/adapt",
    "docs/labels",
    "docs/service",
    "docs/speed",
    "docs/troubleshooting",
]
PACKAGES = ("pipeline", "segmentation", "classifier", "nucpipe")
SOURCES = "\n".join(path.read_text("utf-8") for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    # Messages are broken over lines and filled in: compare what stands between the parts that vary.
    code = re.sub(r'"\s*\n?\s*f?"', "", SOURCES)
    headings = re.findall(r"^##+ `(.+)`", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert len(headings) > 20
    for heading in headings:
        for part in (part.strip(" '()") for part in heading.split("…")):
            assert part in code, f"no message has '{part}' (of '{heading}')"


@pytest.mark.parametrize("name", PAGES)
def test_links_and_commands_exist(name: str) -> None:
    page = ROOT / f"{name}.md"
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in (line.split("#")[0] for line in lines if line.startswith("nucpipe ")):
        known: click.Command = main
        words = line.split()[1:]
        while isinstance(known, click.Group) and words and not words[0].startswith("-"):
            assert words[0] in known.commands, line
            known = known.commands[words.pop(0)]
        options = {option for parameter in known.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options |= {"-h", "--help"}
        for word in words:
            if word.startswith("-"):
                assert word.split("=")[0] in options, line
