"""Parts of both trainings: the loop, augmentation, pretrained weights."""
