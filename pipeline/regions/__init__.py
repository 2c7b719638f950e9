"""Tissue, and the regions that a slide is cut into."""
