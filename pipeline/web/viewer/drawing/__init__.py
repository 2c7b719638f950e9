"""Layers of the viewer as transparent tiles: nuclei, heat maps, places of poor quality."""
