"""Builds the networks of `transformers` with our configurations, as an independent reference implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from torch import Tensor, nn

from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.families.sam2.config import Sam2Config
from maskmill.model.families.sam_hq.config import SamHqVitConfig
from maskmill.model.vitdet import VitDetConfig
from testing.networks import randomise


def random_hugging_face(config: SamConfig, seed: int = 0) -> transformers.SamModel:
    """The network of `config` in `transformers`, with random weights."""
    network = transformers.SamModel(transformers.SamConfig(**_dimensions(config))).eval()
    randomise(network, seed)
    return network


def random_hugging_face_sam2(config: Sam2Config, seed: int = 0) -> transformers.Sam2Model:
    """The network of `config` in `transformers`, with random weights."""
    widths = [config.encoder_width << stage for stage in range(4)]
    grids = [[config.image_size // stride] * 2 for stride in (4, 8, 16)]
    network = transformers.Sam2Model(
        transformers.Sam2Config(
            vision_config={
                "backbone_config": {
                    "model_type": "sam2_hiera_det_model",
                    "hidden_size": config.encoder_width,
                    "image_size": [config.image_size] * 2,
                    "window_positional_embedding_background_size": [config.position_size] * 2,
                    "blocks_per_stage": list(config.stage_blocks),
                    "embed_dim_per_stage": widths,
                    "num_attention_heads_per_stage": [config.encoder_heads << stage for stage in range(4)],
                    "window_size_per_stage": list(config.window_sizes),
                    "global_attention_blocks": list(config.global_attention_blocks),
                },
                "backbone_channel_list": widths[::-1],
                "backbone_feature_sizes": grids,
                "fpn_hidden_size": config.embed_dim,
            },
            prompt_encoder_config={"hidden_size": config.embed_dim, "image_size": config.image_size},
            mask_decoder_config={
                "hidden_size": config.embed_dim,
                "mlp_dim": config.decoder_mlp_dim,
                "iou_head_hidden_dim": config.iou_head_width,
            },
        )
    ).eval()
    randomise(network, seed)
    # Published files store the same frequencies under both names.
    network.prompt_encoder.shared_embedding = network.shared_image_embedding
    return network


def random_hugging_face_hq(config: SamHqVitConfig, seed: int = 0) -> transformers.SamHQModel:
    """The same for SAM-HQ, with an error of transformers 5.23 corrected, see `_update_image`."""
    dimensions = _dimensions(config)
    dimensions["mask_decoder_config"]["vit_dim"] = config.early_width
    network = transformers.SamHQModel(transformers.SamHQConfig(**dimensions)).eval()
    network.mask_decoder.transformer.register_forward_hook(_update_image, with_kwargs=True)
    randomise(network, seed)
    return network


def _update_image(_: nn.Module, __: tuple, arguments: dict[str, Tensor], outputs: tuple[Tensor, Tensor]) -> None:
    """Writes the updated image tokens into the input of the two-way transformer.

    The mask decoder of `SamHQModel` upscales that input, with rows and columns exchanged, and ignores the output. The
    published decoder upscales the output.
    """
    image_NCYX = arguments["image_embeddings"]
    updated_NLC = outputs[1].reshape(len(image_NCYX), -1, image_NCYX.shape[1])
    image_NCYX.copy_(updated_NLC.mT.unflatten(2, image_NCYX.shape[2:]).transpose(2, 3))


def _dimensions(config: VitDetConfig) -> dict[str, Any]:
    return {
        "vision_config": {
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
        "prompt_encoder_config": {
            "hidden_size": config.embed_dim,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "mask_input_channels": config.mask_prompt_channels,
        },
        "mask_decoder_config": {
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
    }


def prompt_arguments(prompt: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    """Prompt `i` of the arguments of `Network.decode_prompts`, as arguments of a network of `transformers`."""
    names = {
        "input_points": "points_NP2",
        "input_labels": "labels_NP",
        "input_boxes": "boxes_N4",
        "input_masks": "masks_N1hw",
    }
    return {
        name: prompt[key][i : i + 1, None] if key != "masks_N1hw" else prompt[key][i : i + 1]
        for name, key in names.items()
        if key in prompt
    }
