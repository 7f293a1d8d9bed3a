"""NetworkConfig: the dimensions that all families share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from maskmill.model.frame import Frame

Activation = Literal["relu", "gelu"]
UpscalingNorm = Literal["cell", "image"]


@dataclass(frozen=True)
class NetworkConfig:
    """Dimensions of one variant. The defaults are those of Segment Anything.

    The config of each family (`model/families/`) adds the dimensions of its image encoder.
    Source: Kirillov et al. 2023, Appendix A; `build_sam.py` of segment-anything.
    """

    name: str
    family: str  # key of `families.FAMILIES`
    # Input side in pixels, pixels per embedding cell, channels of the embedding.
    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 256
    mask_prompt_channels: int = 16
    # Mask decoder.
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    decoder_attention_downsample: int = 2
    multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_width: int = 256
    # Whether the mask upscaler gets features of two and four times the resolution from the encoder, as in SAM 2.
    high_resolution_skips: bool = False
    # What else SAM 2 does differently. Whether an image is stretched to the whole square input, instead of padded;
    square_input: bool = False
    # whether a token for the presence of an object precedes the others;
    object_score: bool = False
    # whether predicted IoUs are limited to 0..1;
    sigmoid_iou: bool = False
    # whether prompts with a box get the padding point, too;
    pads_boxes: bool = False
    # whether the best ambiguity mask replaces a single mask with low stability;
    dynamic_multimask: bool = False
    # limit of the logits of a mask that becomes a prompt.
    logit_limit: float = math.inf
    # What EfficientSAM does differently. The activation in the heads and in the MLP of tokens;
    decoder_activation: Activation = "relu"
    # whether the positions of prompts stay in the tokens after self-attention, which then is residual in all blocks;
    keeps_positions: bool = False
    # whether the mask upscaler normalises the channels of each cell or the whole image.
    upscaling_norm: UpscalingNorm = "cell"
    # Whether automatic generation takes one mask from each point, the ambiguity mask with the highest predicted IoU.
    best_candidate_only: bool = False
    takes_masks: bool = True  # as prompts
    # Normalisation, in 0..255 RGB.
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    # The generator preset with thresholds for the scores of this model.
    default_preset: str = "official"

    @property
    def grid_size(self) -> int:
        """Side of the embedding, in cells."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits, in logit pixels: four per embedding cell."""
        return 4 * self.grid_size

    def frame(self, height: int, width: int) -> Frame:
        """How an image of `height` x `width` pixels becomes the input of the network."""
        return Frame(height, width, self.image_size, self.square_input)
