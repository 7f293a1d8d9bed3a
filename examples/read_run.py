"""The output of `maskmill generate`, read and drawn: python examples/read_run.py out/"""

import sys

import numpy as np
import pyarrow.compute as pc
from PIL import Image

import maskmill

run = maskmill.open_run(sys.argv[1])  # a folder or s3://bucket/prefix
print(f"{len(run)} images, {run.masks.count_rows()} masks")

# Two pyarrow data sets: only the columns and rows that are asked for are read.
sure = run.masks.to_table(columns=["image_id", "area"], filter=pc.field("predicted_iou") > 0.7)
print(f"{len(sure)} masks with a predicted IoU above 0.7")

image = max(run.values(), key=len)
print(f"{image.image_id} has most: {len(image)}")
overlay = np.zeros((image.height, image.width, 3), np.uint8)
colours = np.random.default_rng(0).integers(64, 256, (len(image), 3))
for row in image.area.argsort()[::-1]:
    overlay[image.decode(row)] = colours[row]
Image.fromarray(overlay).save("run.png")
