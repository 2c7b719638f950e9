"""Training of a segmentor on outlined nuclei."""
