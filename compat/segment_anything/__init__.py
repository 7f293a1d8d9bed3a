"""The interface of segment_anything 1.0: the same names, arguments, results and exceptions, but faster.

    from maskmill.compat.segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

Differences: checkpoints can have any layout that maskmill reads, and raise CheckpointError; an image without masks
gives an empty list; `sam.image_encoder`, `prompt_encoder` and `mask_decoder` have weights with the published names, but
other methods.
"""

from maskmill.compat.segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
from maskmill.compat.segment_anything.build_sam import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    sam_model_registry,
)
from maskmill.compat.segment_anything.predictor import SamPredictor

__all__ = [
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "sam_model_registry",
]
