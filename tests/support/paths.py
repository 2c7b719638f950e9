"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared"
"""Annotated images and slides that lie beside the checkout; tests that need them skip where they are absent."""
