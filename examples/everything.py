"""The masks of everything in a photograph, drawn over it: python examples/everything.py"""

import numpy as np
import skimage.data
from PIL import Image

import maskmill

pixels = skimage.data.chelsea()  # RGB, (height, width, 3) uint8; a Pillow image or a path will do as well
model = maskmill.load_model()  # or load_model("vit_b", "sam_vit_b_01ec64.pth")
masks = maskmill.generate(pixels, model, points_per_side=16)

print(f"{len(masks)} masks; the best has a predicted IoU of {masks.scores.max():.2f}")
print(f"x, y, width, height of the first: {masks.boxes[0]}")

overlay = pixels.copy()
colours = np.random.default_rng(0).integers(0, 256, (len(masks), 3))
for row in masks.area.argsort()[::-1]:  # large masks first, small ones on top
    overlay[masks.decode(row)] = colours[row]
Image.fromarray(overlay // 2 + pixels // 2).save("masks.png")
