"""The kinds of R-CNN that are trained and run."""

RCNN_TYPES = ("maskrcnn", "fasterrcnn")
