"""Family, the interface of a kind of promptable segmenter: all that differs from the other kinds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.inference.fast_decoder import FastMaskDecoder
from maskmill.model.mask_decoder import MaskDecoder
from maskmill.model.prompt_encoder import PromptEncoder

# A pattern for a key of another layout, and the replacement that gives our key.
KeyPattern = tuple[str, str]


@dataclass(frozen=True)
class Family:
    """Networks that differ only in their dimensions, and how their checkpoints are read.

    The functions take the config or the encoder of this family only, hence the type Any.
    """

    title: str
    source: str  # where the networks and their checkpoints are published
    terms: str  # of the published weights
    variants: tuple[NetworkConfig, ...]
    checkpoints: Mapping[str, str]  # variant -> name of its published file
    # The image encoder, a module from images (B, 3, S, S) to an ImageEmbedding.
    build_encoder: Callable[[Any], nn.Module]
    # Replaces the layers of an encoder by their inference form, in place. Matrix products then run in the given dtype.
    # Raises TypeError for a layer of an unknown class.
    speed_up: Callable[[Any, torch.dtype], None]
    # Whether a file with these keys, in any layout, belongs to the family.
    recognises: Callable[[Collection[str]], bool]
    # The variant of a state dict with our keys, by its shapes; None if it is none of `variants`.
    variant_of: Callable[[Mapping[str, Tensor]], str | None]
    # For the keys of a published layout that differ from ours, applied in order.
    hugging_face_keys: tuple[KeyPattern, ...] = ()
    official_keys: tuple[KeyPattern, ...] = ()
    # How the keys begin of published weights that are not part of our networks, in any layout. They are ignored.
    unused_keys: tuple[str, ...] = ()
    # Whether `maskmill train` trains it. The trainer pads images, and resizes the position table of the encoder.
    trainable: bool = False
    # A module with the interface of `PromptEncoder`.
    build_prompt_encoder: Callable[[Any], Any] = PromptEncoder
    # The mask decoder, and its form for inference with image tokens in the given dtype.
    build_decoder: Callable[[Any], MaskDecoder] = MaskDecoder
    fast_decoder: Callable[[Any, Any, torch.dtype], FastMaskDecoder] = FastMaskDecoder
