"""Keys of the published checkpoints of SAM-HQ, in the official layout and in Hugging Face's."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from maskmill.model import vitdet
from maskmill.model.families.family import KeyPattern
from maskmill.model.families.mobile_sam import checkpoint as mobile_sam
from maskmill.model.families.sam_hq.config import VARIANTS, SamHqTinyVitConfig, SamHqVitConfig

HUGGING_FACE_KEYS: tuple[KeyPattern, ...] = (
    *vitdet.HUGGING_FACE_KEYS,
    (r"^mask_decoder\.hq_token\.", "mask_decoder.hf_token."),
    (r"^mask_decoder\.hq_mask_mlp\.layers\.0\.", "mask_decoder.hf_mlp.layers.1."),
    (r"^mask_decoder\.hq_mask_mlp\.proj_in\.", "mask_decoder.hf_mlp.layers.0."),
    (r"^mask_decoder\.hq_mask_mlp\.proj_out\.", "mask_decoder.hf_mlp.layers.2."),
    *(
        (rf"^mask_decoder\.{theirs}_{layer}\.", f"mask_decoder.{ours}.{index}.")
        for theirs, ours in (
            ("compress_vit", "compress_vit_feat"),
            ("encoder", "embedding_encoder"),
            ("mask", "embedding_maskfeature"),
        )
        for layer, index in (("conv1", 0), ("norm", 1), ("conv2", 3))
    ),
)
_PARTS = (
    "hf_token.",
    "hf_mlp.",
    "compress_vit_",
    "embedding_encoder.",
    "embedding_maskfeature.",
    "hq_token.",
    "hq_mask_mlp.",
)


def recognises(keys: Collection[str]) -> bool:
    """Whether these are keys of SAM-HQ, in any layout."""
    return any(key.startswith(tuple(f"mask_decoder.{part}" for part in _PARTS)) for key in keys)


def variant_of(state: Mapping[str, Tensor]) -> str | None:
    """The variant with the image encoder of these tensors, or None."""
    vit = [config for config in VARIANTS if isinstance(config, SamHqVitConfig)]
    tiny = [config for config in VARIANTS if isinstance(config, SamHqTinyVitConfig)]
    return vitdet.variant_of(state, vit) or mobile_sam.variant_of(state, tiny)
