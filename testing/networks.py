"""Small networks with fixed random weights that produce varied masks, for comparisons between implementations."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from maskmill.model.config import NetworkConfig
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.families.sam2.config import Sam2Config
from maskmill.model.network import Network

# Odd grids that no window size divides; depths, heads and widths unlike the published ones.
SMALL_CONFIGS = {
    "grid7": SamConfig(
        "grid7",
        encoder_width=48,
        encoder_depth=3,
        encoder_heads=3,
        global_attention_blocks=(1,),
        window_size=3,
        image_size=112,
        embed_dim=32,
        mask_prompt_channels=24,
        decoder_heads=4,
        decoder_mlp_dim=40,
        iou_head_width=24,
    ),
    "grid5": SamConfig(
        "grid5",
        encoder_width=32,
        encoder_depth=2,
        encoder_heads=4,
        global_attention_blocks=(),
        window_size=4,
        encoder_mlp_ratio=2,
        image_size=40,
        patch_size=8,
        embed_dim=48,
        decoder_depth=3,
        decoder_heads=3,
        decoder_mlp_dim=64,
        multimask_outputs=4,
    ),
    "grid9_without_relative_positions": SamConfig(
        "grid9",
        encoder_width=24,
        encoder_depth=4,
        encoder_heads=2,
        global_attention_blocks=(0, 3),
        window_size=5,
        relative_positions=False,
        image_size=144,
        embed_dim=16,
        decoder_depth=1,
        decoder_heads=2,
        decoder_mlp_dim=32,
        iou_head_width=16,
    ),
}

# The published dimensions of the decoder, which sam2 cannot change. Grids that the windows of the third stage do not
# divide.
SMALL_SAM2_CONFIGS = {
    "grid6": Sam2Config(
        "grid6",
        encoder_width=24,
        encoder_heads=2,
        stage_blocks=(1, 2, 3, 1),
        global_attention_blocks=(4,),
        position_size=5,
        image_size=96,
    ),
    "grid10": Sam2Config(
        "grid10",
        encoder_width=16,
        encoder_heads=1,
        stage_blocks=(2, 1, 2, 2),
        global_attention_blocks=(),
        window_sizes=(8, 4, 6, 4),
        position_size=7,
        image_size=160,
    ),
}


@torch.no_grad()
def randomise(network: nn.Module, seed: int = 0) -> None:
    """Gives every weight a size at which it changes the result, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        if not weight.is_floating_point():  # the number of batches that batch normalisation has seen
            continue
        if "position" in name:  # the frequencies of the encoding
            value = noise
        elif name.endswith("running_var"):
            value = torch.exp(0.2 * noise)
        elif re.search(r"pos_|attention_biases|_embed(dings\.\d)?\.weight|point_embed|(iou_token|mask_tokens)\.", name):
            value = 0.5 * noise
        elif weight.ndim >= 2:
            value = noise / math.sqrt(weight[0].numel())
        elif name.endswith("weight"):
            value = 1 + 0.1 * noise
        else:
            value = 0.1 * noise
        weight.copy_(value)


def random_network(config: NetworkConfig, seed: int = 0) -> Network:
    """Our network with random weights."""
    network = Network(config).eval()
    randomise(network, seed)
    return network
