"""Layers of the viewer as transparent tiles: nuclei, heat maps, places out of focus."""
