"""Optimizers: Muon for the matrices inside transformer blocks, AdamW for all other parameters."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

# Factor on the learning rate of the pretrained trunk.
TRUNK_RATE = 0.3


def make_optimizers(module: nn.Module, weight_decay: float) -> list[Optimizer]:
    """Creates Muon and AdamW for all parameters of a module that contains a Sam.

    The trainer sets the learning rate of each parameter group at every step: the learning rate of the step times the
    `share` of the group.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 for the update scale that lets Muon use AdamW's learning rates.
    """
    matrices = [p for name, p in module.named_parameters() if p.ndim == 2 and _inside_a_transformer(name)]
    taken = {id(p) for p in matrices}
    others = [(name, p) for name, p in module.named_parameters() if id(p) not in taken]
    trunk = [p for name, p in others if ".trunk." in name]
    rest = [p for name, p in others if ".trunk." not in name]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay, "share": 1.0},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "share": 1.0},
        {"params": trunk, "weight_decay": 0.0, "share": TRUNK_RATE},
    ]
    groups = [group for group in groups if group["params"]]
    return [
        Muon([{"params": matrices, "share": 1.0}], weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(groups, betas=(0.9, 0.98)),
    ]


def _inside_a_transformer(name: str) -> bool:
    return "image_encoder.blocks." in name or "mask_decoder.transformer." in name
