"""Slow or optional packages, imported with care."""
