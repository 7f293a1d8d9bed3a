"""Computes the minimum multiply-accumulates of an image, and measures how many of them a device does per second.

The minimum is the least work known to produce the published result. Padding in attention windows is not projected. The
decoder moves its image-side projections to the tokens or, in its first block, computes them once for all prompts
(`model/token_side.py`). Masks are upscaled only for prompts that pass the IoU threshold.
Norms, softmax, activations and filters are not counted. The fraction of the peak rate therefore shows how close an
engine is to spending all of its time on matrix products.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from maskmill.model.config import SamConfig
from maskmill.model.lite_encoder import LiteEncoder


def image_encoder(config: SamConfig) -> int:
    """Returns the multiply-accumulates of the image encoder for one image."""
    width, cells = config.encoder_width, config.grid_size**2
    total = _stem(config)
    for block in range(config.encoder_depth):
        side = config.grid_size if block in config.global_attention_blocks else config.window_size
        total += cells * (4 + 2 * config.encoder_mlp_ratio) * width**2  # qkv, output projection, MLP
        total += cells * 2 * side**2 * width  # attention scores, and scores times values
        if config.relative_positions:
            total += cells * 2 * side * width  # products of each query with one vector per row and per column
    return total + cells * (width + 9 * config.embed_dim) * config.embed_dim  # the neck


def _stem(config: SamConfig) -> int:
    width, cells = config.encoder_width, config.grid_size**2
    if config.trunk:
        return _lite_convolutions(config)
    if config.stem == "patch":
        return cells * 3 * config.patch_size**2 * width
    halvings = int(math.log2(config.patch_size))
    widths = [3, *(width >> (halvings - 1 - i) for i in range(halvings))]
    total = cells * width**2
    for i in range(halvings):
        total += (config.image_size >> (i + 1)) ** 2 * 9 * widths[i] * widths[i + 1]
    for i, blocks in enumerate(config.stem_blocks):
        total += blocks * (config.image_size >> (i + 1)) ** 2 * 2 * 9 * widths[i + 1] ** 2
    if config.high_resolution_skips:
        for halving in (1, 2):
            total += (cells << 2 * halving) * 9 * (width >> halving) * (config.embed_dim >> (halving + 1))
    return total


def _lite_convolutions(config: SamConfig) -> int:
    """Returns the multiply-accumulates of all convolutions of a `LiteEncoder` outside its neck."""
    total = 0

    def count(convolution: nn.Module, _: object, made_BCHW: Tensor) -> None:
        nonlocal total
        assert isinstance(convolution, nn.Conv2d)
        total += made_BCHW[0, 0].numel() * convolution.weight.numel()

    with torch.device("meta"):
        encoder = LiteEncoder(config)
        for name, module in encoder.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("neck."):
                module.register_forward_hook(count)
        encoder(torch.zeros(1, 3, config.image_size, config.image_size))
    return total


def prompt(config: SamConfig) -> int:
    """Returns the multiply-accumulates of one click, up to its predicted IoUs."""
    dim, cells = config.embed_dim, config.grid_size**2
    inner = dim // config.decoder_attention_downsample
    masks = config.multimask_outputs + 1
    tokens = 1 + masks + 2  # IoU token, mask tokens, click and the padding point of the published prompt encoder
    rows = tokens * config.decoder_heads  # token vectors of one cross-attention, each as long as an image token
    # Four projections of the tokens, including folded image-side projections; attention scores; scores times values.
    cross_attention = 4 * tokens * dim * inner + 2 * rows * cells * dim
    # In the first block, all prompts share the image tokens, so their three projections are computed once.
    saved = 3 * (tokens * dim * inner + rows * cells * dim - tokens * cells * inner)
    self_attention = 4 * tokens * dim**2 + 2 * tokens**2 * dim
    mlp = 2 * tokens * dim * config.decoder_mlp_dim
    iou_head = config.iou_head_width * (dim + (config.iou_head_depth - 2) * config.iou_head_width + masks)
    block = self_attention + 2 * cross_attention + mlp
    return config.decoder_depth * block - saved + cross_attention + iou_head


def masks_of_prompt(config: SamConfig) -> int:
    """Returns the multiply-accumulates of the masks of one click that passes the IoU threshold."""
    dim, cells = config.embed_dim, config.grid_size**2
    masks = config.multimask_outputs + 1
    upscaling = cells * dim**2 + 4 * cells * (dim // 4) * 4 * (dim // 8)
    hypernetworks = masks * (2 * dim**2 + dim * (dim // 8))
    return upscaling + hypernetworks + masks * 16 * cells * (dim // 8)


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the multiply-accumulates per second of a large matrix product, as the best of five runs."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = synchronized_clock(device)
        torch.mm(a, b)
        seconds.append(synchronized_clock(device) - start)
    return side**3 / min(seconds)


def synchronized_clock(device: torch.device) -> float:
    """Waits until the device has finished all queued work, and returns the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
