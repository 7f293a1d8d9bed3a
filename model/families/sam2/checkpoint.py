"""Key names of SAM 2's published checkpoints: the official layout and Hugging Face's.

Files also hold weights for videos (memory, object pointers), which no image needs.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maskmill.model.families.family import KeyPattern
from maskmill.model.families.sam2.config import VARIANTS

# Beginnings of keys of weights for videos, in both layouts.
VIDEO_KEYS = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    # official
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
    # Hugging Face
    "memory_temporal_positional_encoding",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "occlusion_spatial_embedding_parameter",
    "object_pointer_proj.",
    "temporal_positional_encoding_projection_layer.",
)

OFFICIAL_KEYS: tuple[KeyPattern, ...] = (
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.(conv_s\d)\.", r"image_encoder.\1."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^no_mem_embed$", "image_encoder.no_mem_embed"),
    (r"\.mlp\.layers\.0\.", ".mlp.lin1."),
    (r"\.mlp\.layers\.1\.", ".mlp.lin2."),
)

HUGGING_FACE_KEYS: tuple[KeyPattern, ...] = (
    (r"^no_memory_embedding$", "image_encoder.no_mem_embed"),
    (r"^vision_encoder\.backbone\.patch_embed\.projection\.", "image_encoder.trunk.patch_embed.proj."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^mask_decoder\.(conv_s\d)\.", r"image_encoder.\1."),
    (r"\.mlp\.proj_in\.", ".mlp.lin1."),
    (r"\.mlp\.proj_out\.", ".mlp.lin2."),
    (r"\.o_proj\.", ".out_proj."),
)


def variant_of(state: Mapping[str, Tensor]) -> str | None:
    """The variant with the encoder width and number of blocks of these tensors, or None."""
    stem = state.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = len({key.split(".")[3] for key in state if key.startswith("image_encoder.trunk.blocks.")})
    for config in VARIANTS:
        if stem is not None and (len(stem), blocks) == (config.encoder_width, sum(config.stage_blocks)):
            return config.name
    return None
