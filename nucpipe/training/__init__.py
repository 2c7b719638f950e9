"""What both trainings share: the loop, augmentation, pretrained weights."""
