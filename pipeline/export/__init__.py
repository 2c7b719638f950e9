"""Exports of a finished store."""
