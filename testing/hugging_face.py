"""Builds `transformers.SamModel` networks with our configurations, as an independent reference implementation."""

from __future__ import annotations

import transformers

from maskmill.model.families.sam1.config import SamConfig
from testing.networks import randomise


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
