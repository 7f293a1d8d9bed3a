"""The generator with a network of every family: its masks are those that the predictor gives at the same points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskmill.filters import rle
from maskmill.model.optimize import optimize
from maskmill.model.predictor import encode_image
from testing.networks import random_network
from tests.model.families.test_checkpoints import SMALL
from tests.pipeline.test_golden import PHOTOGRAPHS, generate
from tests.pipeline.test_golden_mobile_sam import every_mask, sharpened


@pytest.mark.parametrize("family", SMALL)
def test_masks_are_those_of_the_predictor(family):
    network = optimize(sharpened(random_network(SMALL[family])), "exact", "cpu")
    config, pixels = replace(every_mask("official"), points_per_side=2), PHOTOGRAPHS["small"]()
    masks = generate(network, config, pixels)
    assert len(masks) == 4 * (1 if family == "sam_hq" else network.config.multimask_outputs)
    encoded = encode_image(network, pixels)
    for row in range(len(masks)):
        prediction = encoded.predict([masks.points[row]])
        same = np.isclose(prediction.scores, masks.predicted_iou[row], atol=1e-4)
        assert same.sum() == 1
        mask_HW = rle.decode(masks.rle_counts[row], masks.height, masks.width)
        assert (prediction.masks[same.argmax()] == mask_HW).mean() > 0.999
