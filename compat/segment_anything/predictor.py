"""`SamPredictor`: set an image once, then prompt it many times.

Shapes: B prompts, P points per prompt, C masks per prompt, H W image side in pixels, h w side of the resized image or
of low-resolution logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmill.compat.segment_anything.modeling import Sam
from maskmill.compat.segment_anything.utils.transforms import ResizeLongestSide
from maskmill.model.embedding import ImageEmbedding


class SamPredictor:
    """Predicts masks for prompts on the image that `set_image` encoded."""

    original_size: tuple[int, ...]  # image size (H, W)
    input_size: tuple[int, ...]  # size (h, w) of the resized image without padding

    def __init__(self, sam_model: Sam) -> None:
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.config.image_size)
        self.reset_image()

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Encodes an image (H, W, 3) uint8. Raises AssertionError if `image_format` is not RGB or BGR."""
        if image_format not in ("RGB", "BGR"):
            raise AssertionError(f"image_format must be in ['RGB', 'BGR'], is {image_format}.")
        if image_format != self.model.image_format:
            image = image[..., ::-1]
        resized_hw3 = torch.as_tensor(self.transform.apply_image(image), device=self.device)
        self.set_torch_image(resized_hw3.permute(2, 0, 1).contiguous()[None], image.shape[:2])

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encodes an image (1, 3, h, w) that `transform` has resized to the size of the model input.

        `original_image_size` is (H, W) before resizing. Raises AssertionError for another shape.
        """
        S, shape = self.transform.target_length, transformed_image.shape
        if len(shape) != 4 or shape[1] != 3 or max(shape[2:]) != S:
            raise AssertionError(f"set_torch_image input must be BCHW with long side {S}.")
        self.reset_image()
        self.original_size = original_image_size
        self.input_size = tuple(shape[-2:])
        self._embedding = self.model.for_inference().encode_images(self.model.preprocess(transformed_image))
        self.is_image_set = True

    def predict(
        self,
        point_coords: NDArray[np.floating] | None = None,
        point_labels: NDArray[np.integer] | None = None,
        box: NDArray[np.floating] | None = None,
        mask_input: NDArray[np.float32] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray, NDArray[np.float32], NDArray[np.float32]]:
        """Predicts the masks of one prompt. Coordinates are pixels of the image.

        Args:
            point_coords: (P, 2) x, y.
            point_labels: (P,) 1 foreground, 0 background.
            box: (4,) x0, y0, x1, y1.
            mask_input: (1, h, w) low-resolution logits of an earlier call.
            multimask_output: return three masks instead of one.
            return_logits: return masks as logits instead of booleans.

        Returns:
            masks (C, H, W), predicted IoUs (C,) and low-resolution logits (C, h, w).

        Raises:
            RuntimeError: no image is set.
            AssertionError: points without labels.
        """
        self._require_image("before mask prediction")
        points_1P2 = labels_1P = boxes_14 = masks_11hw = None
        if point_coords is not None:
            if point_labels is None:
                raise AssertionError("point_labels must be supplied if point_coords is supplied.")
            point_coords = self.transform.apply_coords(point_coords, self.original_size)
            points_1P2 = self._tensor(point_coords, torch.float)
            labels_1P = self._tensor(point_labels, torch.int)
        if box is not None:
            boxes_14 = self._tensor(self.transform.apply_boxes(box, self.original_size), torch.float)
        if mask_input is not None:
            masks_11hw = self._tensor(mask_input, torch.float)
        masks_1CHW, ious_1C, logits_1Chw = self.predict_torch(
            points_1P2, labels_1P, boxes_14, masks_11hw, multimask_output, return_logits
        )
        return masks_1CHW[0].cpu().numpy(), ious_1C[0].cpu().numpy(), logits_1Chw[0].cpu().numpy()

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`predict` for B prompts: points (B, P, 2), labels (B, P), boxes (B, 4) and masks (B, 1, h, w).

        Points and boxes are in coordinates of the model input: convert them with `transform`. Returns masks
        (B, C, H, W), predicted IoUs (B, C) and low-resolution logits (B, C, h, w).
        """
        self._require_image("before mask prediction")
        logits_BChw, ious_BC = self.model.decode(
            self._embedding, point_coords, point_labels, boxes, mask_input, multimask_output
        )
        masks_BCHW = self.model.postprocess_masks(logits_BChw, self.input_size, self.original_size)
        return masks_BCHW if return_logits else masks_BCHW > self.model.mask_threshold, ious_BC, logits_BChw

    def get_image_embedding(self) -> Tensor:
        """The embedding of the image, (1, channels, rows, columns). Raises RuntimeError if no image is set."""
        self._require_image("to generate an embedding")
        return self._embedding.grid_BCYX

    @property
    def features(self) -> Tensor | None:
        """The embedding of the image, or None. Can be set to a stored embedding."""
        return self._embedding.grid_BCYX if self.is_image_set else None

    @features.setter
    def features(self, grid_BCYX: Tensor) -> None:
        self._embedding = ImageEmbedding(grid_BCYX)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    def reset_image(self) -> None:
        """Discards the embedding of the image."""
        self.is_image_set = False
        self._embedding = ImageEmbedding(torch.empty(0))

    def _require_image(self, purpose: str) -> None:
        if not self.is_image_set:
            raise RuntimeError(f"An image must be set with .set_image(...) {purpose}.")

    def _tensor(self, array: NDArray | Sequence[float], dtype: torch.dtype) -> Tensor:
        """The array as a tensor (1, ...) on the device of the model."""
        return torch.as_tensor(array, dtype=dtype, device=self.device)[None]
