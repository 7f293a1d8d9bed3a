"""Mask scores computed from full-resolution logits, as a reference for `filters.mask_measure`.

Shapes: N masks, H W pixels.
"""

from __future__ import annotations

from torch import Tensor

MASK_THRESHOLD = 0.0  # a pixel belongs to a mask where its logit is above this


def stability_score(logits_NHW: Tensor, offset: float) -> Tensor:
    """IoU (N,) float32 between the masks at a threshold `offset` above and `offset` below `MASK_THRESHOLD`.

    The higher mask lies inside the lower one, so the IoU is the ratio of their areas. NaN where both are
    empty: no threshold keeps such a mask.
    Source: Kirillov et al. 2023, Appendix B; `calculate_stability_score` of segment-anything.
    """
    above_N = count_pixels(logits_NHW > MASK_THRESHOLD + offset)
    below_N = count_pixels(logits_NHW > MASK_THRESHOLD - offset)
    return above_N / below_N


def count_pixels(masks_NHW: Tensor) -> Tensor:
    """Areas (N,) int64 in pixels of boolean masks."""
    return masks_NHW.sum((1, 2))
