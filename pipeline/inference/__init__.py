"""From the pixels of regions to labelled nuclei."""
