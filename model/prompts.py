"""Which outputs of the mask decoder answer a prompt.

The decoder computes M masks for each prompt. Output 0 is the single mask, for prompts with one meaning (a box, several
clicks). The others are the ambiguity masks: the answers to a lone click, which can mean a part, an object or a whole.
Source: Kirillov et al. 2023, Appendix A, "Making the model ambiguity-aware".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SINGLE_MASK = 0
AMBIGUITY_MASKS = slice(1, None)


def choose(outputs: int | slice, predicted_iou_NM: Tensor) -> Tensor:
    """A boolean (N, M) for `Sam.decode_masks`: true for SINGLE_MASK or AMBIGUITY_MASKS of all N prompts."""
    keep_NM = torch.zeros_like(predicted_iou_NM, dtype=torch.bool)
    keep_NM[:, outputs] = True
    return keep_NM


def among_all(keep_NR: Tensor) -> Tensor:
    """A boolean (N, M) for `Sam.decode_masks` from one (N, M - 1) over the ambiguity masks."""
    return F.pad(keep_NR, (1, 0))


def best_ambiguity_mask(predicted_iou_NM: Tensor) -> Tensor:
    """The output (N,) int64 with the highest predicted IoU, by index in M, of the ambiguity masks."""
    return 1 + predicted_iou_NM[:, AMBIGUITY_MASKS].argmax(dim=1)
