"""`Sam` with the published methods and weight names, and maskmill's inference.

Shapes: B prompts, P points per prompt, C masks per prompt, H W image side in pixels, S input side, h w mask side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.model import network
from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.optimize import optimize


class Sam(network.Network):
    """A float32 network on any device.

    The optimised network for inference is built at the first use, and again after `to` and `load_state_dict`. After an
    in-place change of weights, call one of these two.
    """

    mask_threshold: float = 0.0
    image_format: str = "RGB"

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self._inference: tuple[
            network.Network, ...
        ] = ()  # zero or one network; a tuple, so that torch does not register it as a submodule

    @property
    def pixel_mean(self) -> Tensor:
        """(3, 1, 1), in 0..255 RGB."""
        return torch.tensor(self.config.pixel_mean, device=self.device).view(-1, 1, 1)

    @property
    def pixel_std(self) -> Tensor:
        """(3, 1, 1), in 0..255 RGB."""
        return torch.tensor(self.config.pixel_std, device=self.device).view(-1, 1, 1)

    @torch.no_grad()
    def for_inference(self) -> network.Network:
        """The same network optimised for inference with precision exact."""
        if not self._inference:
            self._inference = (optimize(self, "exact", self.device),)
        return self._inference[0]

    @torch.no_grad()
    def forward(self, batched_input: Sequence[Mapping[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Masks of several images and their prompts, all in coordinates of the model input.

        Args:
            batched_input: per image `image` (3, h, w) and `original_size` (H, W); optionally
                `point_coords` (B, P, 2) with `point_labels` (B, P), `boxes` (B, 4) and `mask_inputs` (B, 1, h, w).
            multimask_output: return three masks per prompt instead of one.

        Returns:
            Per image `masks` (B, C, H, W) boolean, `iou_predictions` (B, C) and `low_res_logits` (B, C, h, w).
        """
        inputs = torch.stack([self.preprocess(record["image"]) for record in batched_input])
        embeddings = self.for_inference().encode_images(inputs)
        outputs = []
        for index, record in enumerate(batched_input):
            points, labels, boxes, masks = (
                record.get(name) for name in ("point_coords", "point_labels", "boxes", "mask_inputs")
            )
            logits_BChw, ious_BC = self.decode(
                embeddings[index : index + 1], points, labels, boxes, masks, multimask_output
            )
            masks_BCHW = self.postprocess_masks(logits_BChw, record["image"].shape[-2:], record["original_size"])
            masks_BCHW = masks_BCHW > self.mask_threshold
            outputs.append({"masks": masks_BCHW, "iou_predictions": ious_BC, "low_res_logits": logits_BChw})
        return outputs

    @torch.no_grad()
    def decode(
        self,
        embedding: ImageEmbedding,
        points_BP2: Tensor | None,
        labels_BP: Tensor | None,
        boxes_B4: Tensor | None,
        masks_B1hw: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, C, h, w) and predicted IoUs (B, C) of prompts in coordinates of the model input."""
        network = self.for_inference()
        decoded = network.decode_prompts(embedding, points_BP2, labels_BP, boxes_B4, masks_B1hw)
        wanted = slice(1, None) if multimask else slice(0, 1)
        ious_BC = decoded.predicted_iou_NM[:, wanted]
        keep_BM = torch.zeros_like(decoded.predicted_iou_NM, dtype=torch.bool)
        keep_BM[:, wanted] = True
        return network.decode_masks(decoded, keep_BM).unflatten(0, ious_BC.shape), ious_BC

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalises RGB pixels (..., 3, h, w) and zero-pads them right and bottom to (..., 3, S, S)."""
        S, (height, width) = self.config.image_size, x.shape[-2:]
        return F.pad((x - self.pixel_mean) / self.pixel_std, (0, S - width, 0, S - height))

    def postprocess_masks(self, masks: Tensor, input_size: Sequence[int], original_size: Sequence[int]) -> Tensor:
        """Upsamples low-resolution logits (B, C, h, w) to the image, (B, C, H, W).

        Sizes are (height, width): `input_size` of the resized image without padding, `original_size` of the image.
        """
        S = self.config.image_size
        masks = F.interpolate(masks, (S, S), mode="bilinear", align_corners=False)
        masks = masks[..., : input_size[0], : input_size[1]]
        return F.interpolate(masks, tuple(original_size), mode="bilinear", align_corners=False)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self._inference = ()
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # called by `to`, `cuda`, `cpu` ...
        self._inference = ()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inference": ()}
