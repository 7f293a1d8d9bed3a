"""Computes the minimum multiply-accumulates of an image, and measures how many of them a device does per second.

The minimum is the least work known to produce the published result. The image encoder is counted as published, with the
padding of its attention windows (4 to 6 % of ViT-B to ViT-H). The decoder moves its image-side projections to the
tokens or, in its first block, computes them once for all prompts (`model/inference/token_side.py`). Masks are upscaled
only for prompts that pass the IoU threshold. Norms, softmax, activations and filters are not counted. The fraction of
the peak rate therefore shows how close an engine is to spending all of its time on matrix products. The factored form
of the decoder (`model/inference/low_rank.py`, embeddings of 512 cells or more in float32 on a CPU) needs about half of
this work: there the fraction can exceed 100 %.
"""

from __future__ import annotations

import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maskmill.model.config import NetworkConfig
from maskmill.model.families import FAMILIES
from maskmill.model.layers import fast_linear


def image_encoder(config: NetworkConfig) -> int:
    """Returns the multiply-accumulates of the plain image encoder for one image, as torch counts them."""
    # The flop counter knows the products of this attention kernel only.
    with (
        torch.device("meta"),
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        encoder = FAMILIES[config.family].build_encoder(config)
        encoder(torch.zeros(1, 3, config.image_size, config.image_size))
    return counter.get_total_flops() // 2


def prompt(config: NetworkConfig) -> int:
    """Returns the multiply-accumulates of one click, up to its predicted IoUs."""
    dim, cells = config.embed_dim, config.grid_size**2
    inner = dim // config.decoder_attention_downsample
    masks = config.multimask_outputs + 1
    # The object token, the IoU token, mask tokens, click and the padding point of the published prompt encoder.
    tokens = config.object_score + 1 + masks + 2
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


def masks_of_prompt(config: NetworkConfig) -> int:
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
        fast_linear(a, b)
        seconds.append(synchronized_clock(device) - start)
    return side**3 / min(seconds)


def synchronized_clock(device: torch.device) -> float:
    """Waits until the device has finished all queued work, and returns the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
