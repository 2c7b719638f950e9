"""Published sets of annotated nuclei, each read from its owner's own layout, all with one face.

Segmentation takes the instance maps, the classifier the points with labels; a format is read in one place.
"""

from nucpipe.datasets.base import AnnotatedImage, Annotation, choose_images, open_dataset, split_groups

__all__ = ["AnnotatedImage", "Annotation", "choose_images", "open_dataset", "split_groups"]
