"""One object by clicks and by a box: python examples/one_object.py"""

import skimage.data
from PIL import Image

import maskmill

pixels = skimage.data.coffee()
image = maskmill.encode(pixels, maskmill.load_model())  # once per image; each prompt is fast then

click = image.predict(points=[[300, 150]])  # three candidates: a click on a part may mean the whole
best = click.scores.argmax()
print("predicted IoU of the candidates:", click.scores.round(2))

refined = image.predict(
    points=[[300, 150], [50, 350]],
    labels=[1, 0],  # the second click is background
    mask_input=click.logits[best],
    multimask=False,
)
box = image.predict(box=[130, 40, 480, 340], multimask=False)
print(f"pixels: {click.masks[best].sum()} by a click, {refined.masks.sum()} by two, {box.masks.sum()} by a box")

Image.fromarray(pixels * refined.masks[0][:, :, None]).save("object.png")
