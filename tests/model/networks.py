"""Small networks with weights that make comparisons mean something, and the same ones in `transformers`."""

from __future__ import annotations

import math
import re

import torch
import transformers
from torch import nn

from model.config import SamConfig
from model.sam import Sam

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


@torch.no_grad()
def randomise(network: nn.Module, seed: int = 0) -> None:
    """Gives every weight a size at which it changes the result, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        if "position" in name:  # the frequencies of the encoding
            value = noise
        elif re.search(r"pos_|_embed(dings\.\d)?\.weight|point_embed|(iou_token|mask_tokens)\.", name):
            value = 0.5 * noise
        elif weight.ndim >= 2:
            value = noise / math.sqrt(weight[0].numel())
        elif name.endswith("weight"):
            value = 1 + 0.1 * noise
        else:
            value = 0.1 * noise
        weight.copy_(value)


def random_sam(config: SamConfig, seed: int = 0) -> Sam:
    """Our network with random weights."""
    sam = Sam(config).eval()
    randomise(sam, seed)
    return sam


def random_hugging_face(config: SamConfig, seed: int = 0) -> transformers.SamModel:
    """The network of `config` in `transformers`, with random weights."""
    network = transformers.SamModel(
        transformers.SamConfig(
            vision_config={
                "hidden_size": config.encoder_width,
                "output_channels": config.embed_dim,
                "num_hidden_layers": config.encoder_depth,
                "num_attention_heads": config.encoder_heads,
                "image_size": config.image_size,
                "patch_size": config.patch_size,
                "window_size": config.window_size,
                "global_attn_indexes": list(config.global_attention_blocks),
                "mlp_ratio": float(config.encoder_mlp_ratio),
                "mlp_dim": config.encoder_mlp_ratio * config.encoder_width,
                "use_rel_pos": config.relative_positions,
                "num_pos_feats": config.embed_dim // 2,
            },
            prompt_encoder_config={
                "hidden_size": config.embed_dim,
                "image_size": config.image_size,
                "patch_size": config.patch_size,
                "mask_input_channels": config.mask_prompt_channels,
            },
            mask_decoder_config={
                "hidden_size": config.embed_dim,
                "num_hidden_layers": config.decoder_depth,
                "num_attention_heads": config.decoder_heads,
                "mlp_dim": config.decoder_mlp_dim,
                "attention_downsample_rate": config.decoder_attention_downsample,
                "num_multimask_outputs": config.multimask_outputs,
                "iou_head_hidden_dim": config.iou_head_width,
                # Its default is not that of the published network, 1e-5.
                "layer_norm_eps": 1e-5,
            },
        )
    ).eval()
    randomise(network, seed)
    return network
