"""Figures of a segmentor on outlined nuclei."""
