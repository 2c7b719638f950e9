"""Draw dark ellipses, on which nucpipe runs once while an image is built: ``tile.py PNG``."""

import sys

import cv2
import numpy as np

picture = np.full((512, 512, 3), (215, 190, 235), np.uint8)
for y in range(32, 512, 64):
    for x in range(32, 512, 64):
        cv2.ellipse(picture, (x, y), (14, 10), x + y, 0, 360, (130, 40, 90), -1)
cv2.imwrite(sys.argv[1], picture)
