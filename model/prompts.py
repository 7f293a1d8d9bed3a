"""Selects the outputs of the mask decoder that answer a prompt.

The decoder computes M masks per prompt. Output 0 is the single mask, for unambiguous prompts (a box, several clicks).
The other R = M - 1 outputs are the ambiguity masks, for a single click, which can mean a whole object, a part or a
subpart.

Source: Kirillov et al. 2023, Appendix A, "Making the model ambiguity-aware".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SINGLE_MASK = 0
AMBIGUITY_MASKS = slice(1, None)


def choose(outputs: int | slice, predicted_iou_NM: Tensor) -> Tensor:
    """A boolean (N, M) for `Network.decode_masks`, true for `outputs`: SINGLE_MASK or AMBIGUITY_MASKS."""
    keep_NM = torch.zeros_like(predicted_iou_NM, dtype=torch.bool)
    keep_NM[:, outputs] = True
    return keep_NM


def among_all(keep_NR: Tensor) -> Tensor:
    """Extends a boolean (N, R) over the ambiguity masks to all outputs (N, M), for `Network.decode_masks`."""
    return F.pad(keep_NR, (1, 0))


def best_ambiguity_mask(predicted_iou_NM: Tensor) -> Tensor:
    """The index in M (N,) int64 of the ambiguity mask with the highest predicted IoU."""
    return 1 + predicted_iou_NM[:, AMBIGUITY_MASKS].argmax(dim=1)


def is_stable(logits_Khw: Tensor) -> Tensor:
    """Whether a single mask (K,) hardly changes if the threshold does. If not, SAM 2 takes the best ambiguity mask.

    Source: `_dynamic_multimask_via_stability` of sam2.
    """
    above_K, below_K = ((logits_Khw > offset).sum(dim=(1, 2)) for offset in (0.05, -0.05))
    return (below_K == 0) | (above_K / below_K >= 0.98)
