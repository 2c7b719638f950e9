"""Corrections of labels on a slide, and what they teach of all its nuclei."""
