"""Figures of a classifier on annotated nuclei."""
