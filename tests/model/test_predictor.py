"""The predictor equals the released one, and refuses prompts that make no sense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from maskmill.model.errors import PromptError
from maskmill.model.predictor import EncodedImage, encode_image
from testing.networks import SMALL_CONFIGS, random_network
from testing.oracles import SamPredictor, published_sam

# Attention inside the decoder at full width, as the embedded model has it.
SAM = random_network(replace(SMALL_CONFIGS["grid7"], decoder_attention_downsample=1))
HEIGHT, WIDTH = 75, 160
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
POINTS, LABELS = np.array([[100.5, 30], [20, 60.25]]), np.array([1, 0])
BOX = np.array([10, 5, 130, 70.5])
MASK = np.random.default_rng(1).normal(0, 4, (28, 28)).astype(np.float32)


@pytest.fixture(scope="module")
def image() -> EncodedImage:
    return encode_image(SAM, PIXELS)


@pytest.fixture(scope="module")
def released() -> SamPredictor:
    predictor = SamPredictor(published_sam(SAM))
    predictor.set_image(PIXELS)
    return predictor


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(
    "prompt",
    [
        {"points": POINTS[:1], "labels": LABELS[:1]},
        {"points": POINTS, "labels": LABELS},
        {"box": BOX},
        {"mask_input": MASK},
        {"points": POINTS, "labels": LABELS, "box": BOX, "mask_input": MASK},
    ],
    ids=lambda prompt: "+".join(prompt),
)
def test_predict_equals_released_predictor(
    prompt: dict[str, Any], multimask: bool, image: EncodedImage, released: SamPredictor
) -> None:
    ours = image.predict(**prompt, multimask=multimask)
    upscaled, ious, logits = released.predict(
        point_coords=prompt.get("points"),
        point_labels=prompt.get("labels"),
        box=prompt.get("box"),
        mask_input=prompt["mask_input"][None] if "mask_input" in prompt else None,
        multimask_output=multimask,
        return_logits=True,
    )
    assert ours.masks.shape == (3 if multimask else 1, HEIGHT, WIDTH)
    np.testing.assert_allclose(ours.logits, logits, atol=1e-5)
    np.testing.assert_allclose(ours.scores, ious, atol=1e-5)
    clear = np.abs(upscaled) > 1e-4  # elsewhere the sign is a matter of rounding
    assert clear.mean() > 0.99
    assert (ours.masks == (upscaled > 0))[clear].all()


def test_predict_refines_when_given_its_own_logits(image: EncodedImage) -> None:
    first = image.predict(points=POINTS, labels=LABELS)
    second = image.predict(points=POINTS, labels=LABELS, mask_input=first.logits[0], multimask=False)
    assert second.masks.shape == (1, HEIGHT, WIDTH)
    assert not np.allclose(second.logits, image.predict(points=POINTS, labels=LABELS, multimask=False).logits)


def test_points_are_foreground_when_labels_are_left_out(image: EncodedImage) -> None:
    assumed, stated = image.predict(points=POINTS), image.predict(points=POINTS, labels=[1, 1])
    np.testing.assert_array_equal(assumed.logits, stated.logits)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "no prompt"),
        ({"labels": [1]}, "labels without points"),
        ({"points": [10, 20]}, r"points has the shape \(2,\); it must be \(N, 2\)"),
        ({"points": np.zeros((0, 2))}, r"points has the shape \(0, 2\)"),
        ({"points": [[1, 2]], "labels": [1, 0]}, r"labels has the shape \(2,\); it must be \(1,\)"),
        ({"points": [[1, 2]], "labels": [2]}, "neither 1"),
        ({"points": [[1, float("nan")]]}, "not finite"),
        ({"points": [[1, 2], [3]]}, "points must be numbers"),
        ({"points": 5}, r"points has the shape \(\)"),
        ({"box": [[0, 0, 1, 1]]}, r"box has the shape \(1, 4\)"),
        ({"box": [30, 0, 10, 20]}, "x0 <= x1"),
        ({"mask_input": np.zeros((1, 28, 28))}, r"mask_input has the shape \(1, 28, 28\); it must be \(28, 28\)"),
    ],
)
def test_predict_refuses_impossible_prompts(prompt: dict[str, Any], message: str, image: EncodedImage) -> None:
    with pytest.raises(PromptError, match=message):
        image.predict(**prompt)


@pytest.mark.parametrize("pixels", [PIXELS[..., 0], PIXELS.astype(np.float32), PIXELS[..., [0, 1, 2, 0]], PIXELS[:0]])
def test_encode_image_refuses_what_is_not_an_rgb_image(pixels: Any) -> None:
    with pytest.raises(PromptError, match="must be uint8"):
        encode_image(SAM, pixels)
