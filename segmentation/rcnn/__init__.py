"""Mask R-CNN and Faster R-CNN of torchvision."""
