"""Slides and regions shared between the workers of a Dask cluster."""
