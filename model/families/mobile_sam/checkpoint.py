"""Keys of the published checkpoint of MobileSAM, which also holds the classifier of the pretrained TinyViT."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from maskmill.model.families.mobile_sam.config import MobileSamConfig

UNUSED_KEYS = ("image_encoder.norm_head.", "image_encoder.head.")


def recognises(keys: Collection[str]) -> bool:
    """Whether these are keys of MobileSAM."""
    return any(key.startswith("image_encoder.patch_embed.seq.") for key in keys)


def variant_of(state: Mapping[str, Tensor], variants: Sequence[MobileSamConfig]) -> str | None:
    """The variant with the widths of the image encoder in a state dict, or None."""
    widths = [len(state[key]) for i in range(4) if (key := f"image_encoder.layers.{i}.blocks.0.mlp.fc2.bias") in state]
    for config in variants:
        if widths == [stage.width for stage in config.stages if stage.heads]:
            return config.name
    return None
