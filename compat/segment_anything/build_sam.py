"""The published builders and registry, and a builder of the embedded model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from maskmill.compat.segment_anything.modeling import Sam
from maskmill.model.checkpoint import EMBEDDED_WEIGHTS, read_checkpoint
from maskmill.model.checkpoint import build_network as load_weights
from maskmill.model.families import VARIANTS

Checkpoint = str | os.PathLike[str] | None


def build_sam_vit_h(checkpoint: Checkpoint = None) -> Sam:
    """ViT-H with the weights of a file, or with random weights. Raises CheckpointError if the file does not fit."""
    return _build("vit_h", checkpoint)


def build_sam_vit_l(checkpoint: Checkpoint = None) -> Sam:
    """ViT-L, like `build_sam_vit_h`."""
    return _build("vit_l", checkpoint)


def build_sam_vit_b(checkpoint: Checkpoint = None) -> Sam:
    """ViT-B, like `build_sam_vit_h`."""
    return _build("vit_b", checkpoint)


def build_sam_mini(checkpoint: Checkpoint = None) -> Sam:
    """The small model of maskmill, by default with its embedded weights."""
    return _build("mini", checkpoint or EMBEDDED_WEIGHTS)


build_sam = build_sam_vit_h

sam_model_registry: dict[str, Callable[..., Sam]] = {
    "default": build_sam,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "mini": build_sam_mini,
}


def _build(variant: str, checkpoint: Checkpoint) -> Sam:
    config = VARIANTS[variant]
    if checkpoint is None:
        return Sam(config).eval()
    with torch.device("meta"):
        sam = Sam(config)
    sam.load_state_dict(load_weights(config, read_checkpoint(Path(checkpoint))).state_dict(), assign=True)
    return sam.eval()
