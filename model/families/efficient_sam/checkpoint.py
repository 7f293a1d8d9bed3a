"""Keys of the published checkpoints of EfficientSAM that differ from ours, which are those of the shared parts."""

from __future__ import annotations

from collections.abc import Collection

from maskmill.model.families.family import KeyPattern

_HEADS = r"mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head)"
OFFICIAL_KEYS: tuple[KeyPattern, ...] = (
    (r"^(image_encoder\.blocks\.\d+\.mlp)\.fc(\d)\.", r"\1.lin\2."),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embedding."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.0\.0\.", r"\1.lin1."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.fc\.", r"\1.lin2."),
    (r"^mask_decoder\.final_output_upscaling_layers\.0\.(\d)\.", r"mask_decoder.output_upscaling.\1."),
    (r"^mask_decoder\.final_output_upscaling_layers\.1\.0\.", "mask_decoder.output_upscaling.3."),
    # Every head has three linear layers.
    (rf"^({_HEADS})\.layers\.(\d)\.0\.", r"\1.layers.\2."),
    (rf"^({_HEADS})\.fc\.", r"\1.layers.2."),
)


def recognises(keys: Collection[str]) -> bool:
    """Whether these are keys of EfficientSAM."""
    return any(key.startswith(("prompt_encoder.invalid_points.", "prompt_encoder.bbox_")) for key in keys)
