"""A program written for segment_anything, after one changed line: python examples/from_segment_anything.py"""

import numpy as np
import skimage.data

# Was: from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from maskmill.compat.segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

image = skimage.data.chelsea()
sam = sam_model_registry["mini"]()  # maskmill's embedded model; or ["vit_b"](checkpoint="sam_vit_b_01ec64.pth")
sam.to(device="cpu")

mask_generator = SamAutomaticMaskGenerator(sam, points_per_side=16, pred_iou_thresh=0.5, stability_score_thresh=0.5)
masks = mask_generator.generate(image)
print(len(masks), "masks with", ", ".join(masks[0]))

predictor = SamPredictor(sam)
predictor.set_image(image)
masks, scores, logits = predictor.predict(point_coords=np.array([[220, 120]]), point_labels=np.array([1]))
print("predicted IoU of the candidates:", scores.round(2))
