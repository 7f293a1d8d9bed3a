"""The released implementation, `segment_anything`, around the weights of one of our networks."""

from __future__ import annotations

from functools import partial

import torch

from model.sam import Sam
from tests import torchvision_stub  # noqa: F401 (makes segment_anything importable)

# isort: split
from segment_anything import SamPredictor, modeling, sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide

__all__ = ["ResizeLongestSide", "SamPredictor", "released_sam", "sam_model_registry"]


def released_sam(sam: Sam) -> modeling.Sam:
    """The released network with the dimensions and the weights of `sam`."""
    config = sam.config
    network = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.encoder_width,
            depth=config.encoder_depth,
            num_heads=config.encoder_heads,
            mlp_ratio=config.encoder_mlp_ratio,
            out_chans=config.embed_dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType] (as its own builder does)
            use_rel_pos=config.relative_positions,
            window_size=config.window_size,
            global_attn_indexes=config.global_attention_blocks,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=config.embed_dim,
            image_embedding_size=(config.grid_size, config.grid_size),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_prompt_channels,
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=config.embed_dim,
            transformer=modeling.TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.embed_dim,
                num_heads=config.decoder_heads,
                mlp_dim=config.decoder_mlp_dim,
                attention_downsample_rate=config.decoder_attention_downsample,
            ),
            num_multimask_outputs=config.multimask_outputs,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_width,
        ),
    )
    network.load_state_dict(sam.state_dict())
    return network.eval()
