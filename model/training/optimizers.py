"""Which optimizer takes which weights: Muon the matrices inside transformer blocks, AdamW all others."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


def make_optimizers(module: nn.Module, weight_decay: float) -> list[Optimizer]:
    """Muon and AdamW for all parameters of a module around a Sam. Learning rates are set later, the same for both.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 for the scale at which it takes AdamW's learning rates.
    """
    matrices = [p for name, p in module.named_parameters() if p.ndim == 2 and _inside_a_transformer(name)]
    taken = {id(p) for p in matrices}
    others = [p for p in module.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [
        Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(groups, betas=(0.9, 0.98)),
    ]


def _inside_a_transformer(name: str) -> bool:
    return "image_encoder.blocks." in name or "mask_decoder.transformer." in name
