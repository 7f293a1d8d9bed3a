"""Interactive use: encode an image once, then prompt it many times.

Shapes: H W image in pixels, P points, M masks, h w low-resolution logits.
Source: `predictor.py` of segment-anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.errors import PromptError
from maskmill.model.frame import Frame
from maskmill.model.network import Network
from maskmill.model.preprocess import preprocess
from maskmill.model.prompts import AMBIGUITY_MASKS, choose


@dataclass(frozen=True)
class Prediction:
    """The M masks of one prompt: the single mask, or the three candidates of an ambiguous prompt."""

    masks: NDArray[np.bool_]  # (M, H, W)
    scores: NDArray[np.float32]  # (M,) predicted IoU; can exceed 1
    logits: NDArray[np.float32]  # (M, h, w) low-resolution logits; pass logits[i] as `mask_input` to refine mask i


@dataclass(frozen=True)
class EncodedImage:
    """An image and its embedding. Created by `encode_image`."""

    network: Network
    embedding: ImageEmbedding
    frame: Frame

    @torch.inference_mode()
    def predict(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask: bool = True,
    ) -> Prediction:
        """The masks of one prompt: points, a box, the logits of an earlier mask, or any combination.

        Args:
            points: (P, 2) x, y in pixels of the image.
            labels: (P,) 1 foreground, 0 background. Default: all foreground.
            box: (4,) x0, y0, x1, y1 in pixels of the image.
            mask_input: (h, w) logits of an earlier prediction: `prediction.logits[i]`.
            multimask: return three masks, for ambiguous prompts such as one click; otherwise one mask.

        Raises:
            PromptError: there is no prompt, or an argument has the wrong shape or invalid values.
        """
        prompt = self._prompt_tensors(points, labels, box, mask_input)
        decoded = self.network.decode_prompts(self.embedding, **prompt)
        if multimask:
            keep_1M = choose(AMBIGUITY_MASKS, decoded.predicted_iou_NM)
            logits_Mhw, iou_M = self.network.decode_masks(decoded, keep_1M), decoded.predicted_iou_NM[keep_1M]
        else:
            everything_1 = torch.ones(1, dtype=torch.bool, device=self.network.device)
            logits_Mhw, iou_M = self.network.decode_single_masks(decoded, everything_1)
        limit = self.network.config.logit_limit
        masks_MHW = self.frame.to_image_logits(logits_Mhw) > 0
        return Prediction(
            masks=masks_MHW.cpu().numpy(),
            scores=iou_M.cpu().numpy(),
            logits=logits_Mhw.clamp(-limit, limit).cpu().numpy(),
        )

    def _prompt_tensors(
        self, points: ArrayLike | None, labels: ArrayLike | None, box: ArrayLike | None, mask_input: ArrayLike | None
    ) -> dict[str, Tensor]:
        """Validates the prompt. Returns it as arguments of `Network.decode_prompts`."""
        tensors: dict[str, Tensor] = {}
        if points is not None:
            points_P2 = _array("points", points, (-1, 2))
            count = len(points_P2)
            labels_P = np.ones(count) if labels is None else _array("labels", labels, (count,))
            if not np.isin(labels_P, (0, 1)).all():
                raise PromptError("a label is neither 1 (foreground) nor 0 (background)")
            tensors["points_NP2"] = self._to_input(points_P2)
            tensors["labels_NP"] = self._tensor(labels_P)
        elif labels is not None:
            raise PromptError("there are labels without points; give both")
        if box is not None:
            corners_22 = _array("box", box, (4,)).reshape(2, 2)
            if (corners_22[0] > corners_22[1]).any():
                raise PromptError("the corners of the box are swapped; give x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
            tensors["boxes_N4"] = self._to_input(corners_22).flatten(1)
        if mask_input is not None:
            side = self.network.config.mask_size
            tensors["masks_N1hw"] = self._tensor(_array("mask_input", mask_input, (side, side)))[:, None]
        if not tensors:
            raise PromptError("there is no prompt; give points, a box or mask_input")
        return tensors

    def _to_input(self, xy_P2: NDArray[np.float64]) -> Tensor:
        """Returns (1, P, 2) in input pixels. Scales in float64, as published."""
        return self._tensor(self.frame.to_input(torch.from_numpy(xy_P2)).numpy())

    def _tensor(self, array: NDArray[np.float64]) -> Tensor:
        """Returns (1, ...) float32 on the device of the network."""
        return torch.from_numpy(array)[None].to(self.network.device, torch.float32)


@torch.inference_mode()
def encode_image(network: Network, pixels_HW3: NDArray[np.uint8]) -> EncodedImage:
    """Encodes an RGB image, (H, W, 3) uint8. Raises PromptError for any other array."""
    check_pixels(pixels_HW3)
    embedding = network.encode_images(preprocess(pixels_HW3, network.config)[None].to(network.device))
    return EncodedImage(network, embedding, network.config.frame(*pixels_HW3.shape[:2]))


def check_pixels(pixels: NDArray[Any]) -> None:
    """Raises PromptError unless the array is an RGB image, (H, W, 3) uint8. The message says how to convert it."""
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0:
        return
    if pixels.dtype != np.uint8:
        remedy = "convert it; values from 0 to 1 with (image * 255).astype(numpy.uint8)"
    elif pixels.ndim == 2:
        remedy = "repeat grey values with numpy.stack([image] * 3, axis=-1)"
    elif pixels.ndim == 3 and pixels.shape[2] == 4:
        remedy = "drop the alpha channel with image[..., :3]"
    else:
        remedy = "give one image, with its channels last"
    raise PromptError(
        f"the image is {pixels.dtype} {pixels.shape}; it must be uint8 (height, width, 3), RGB, not empty: {remedy}"
    )


def _array(name: str, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """`value` as finite float64 of `shape`; -1 in `shape` matches any positive length."""
    wanted = f"({', '.join('N' if n == -1 else str(n) for n in shape)}{',' * (len(shape) == 1)})"
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} must be numbers of shape {wanted}: {error}") from error
    fits = array.ndim == len(shape) and all(
        n == m or (m == -1 and n > 0) for n, m in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise PromptError(f"{name} has the shape {array.shape}; it must be {wanted}")
    if not np.isfinite(array).all():
        raise PromptError(f"{name} holds numbers that are not finite")
    return array
