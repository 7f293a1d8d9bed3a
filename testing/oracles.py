"""The segment_anything network, predictor and generator with our weights, as a reference for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

import testing.torchvision_stub  # noqa: F401

# isort: split
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything import modeling as published
from segment_anything.utils import amg
from segment_anything.utils.transforms import ResizeLongestSide

from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.network import Network
from maskmill.pipeline.config import GeneratorConfig
from testing.colour_sam import CONFIG, ColourSam, predicted_iou, similarity

__all__ = [
    "ResizeLongestSide",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "published_colour_sam",
    "published_generator",
    "published_sam",
    "published_views",
    "sam_model_registry",
]


def published_sam(sam: Network) -> published.Sam:
    """segment_anything's own network with our weights; our encoder where it has no counterpart."""
    config = sam.config
    if not isinstance(config, SamConfig):
        image_encoder = _OurEncoder(sam)
    else:
        image_encoder = published.ImageEncoderViT(
            depth=config.encoder_depth,
            embed_dim=config.encoder_width,
            img_size=config.image_size,
            mlp_ratio=config.encoder_mlp_ratio,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
            num_heads=config.encoder_heads,
            patch_size=config.patch_size,
            qkv_bias=True,
            use_rel_pos=config.relative_positions,
            global_attn_indexes=config.global_attention_blocks,
            window_size=config.window_size,
            out_chans=config.embed_dim,
        )
    oracle = published.Sam(
        image_encoder=image_encoder,  # pyright: ignore[reportArgumentType]
        prompt_encoder=published.PromptEncoder(
            embed_dim=config.embed_dim,
            image_embedding_size=(config.grid_size, config.grid_size),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_prompt_channels,
        ),
        mask_decoder=published.MaskDecoder(
            num_multimask_outputs=config.multimask_outputs,
            transformer=published.TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.embed_dim,
                mlp_dim=config.decoder_mlp_dim,
                num_heads=config.decoder_heads,
                attention_downsample_rate=config.decoder_attention_downsample,
            ),
            transformer_dim=config.embed_dim,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_width,
        ),
        pixel_mean=list(config.pixel_mean),
        pixel_std=list(config.pixel_std),
    )
    state = sam.state_dict()
    if not isinstance(config, SamConfig):
        state = {key: value for key, value in state.items() if not key.startswith("image_encoder.")}
        state |= {f"image_encoder.encoder.{key}": value for key, value in sam.image_encoder.state_dict().items()}
    if isinstance(image_encoder, _OurEncoder) and config.high_resolution_skips:
        oracle.mask_decoder.output_upscaling = _SkippingUpscaler(image_encoder, *oracle.mask_decoder.output_upscaling)
    oracle.load_state_dict(state)
    return oracle.eval()


class _OurEncoder(nn.Module):
    """Our image encoder as segment_anything expects one: it gives the published embedding and keeps the skips."""

    def __init__(self, sam: Network) -> None:
        super().__init__()
        self.img_size = sam.config.image_size
        self.encoder = sam.image_encoder
        self.skips: tuple[Tensor, ...] = ()

    def forward(self, images_B3SS: Tensor) -> Tensor:
        embedding = self.encoder(images_B3SS)
        self.skips = embedding.skips
        return embedding.grid_BCYX


class _SkippingUpscaler(nn.Sequential):
    """The published upscaler, to which the skips of the image encoded last are added where SAM 2 adds them."""

    def __init__(self, encoder: _OurEncoder, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self._encoder = (encoder,)  # not as a part of this module

    def forward(self, input: Tensor) -> Tensor:
        (encoder,) = self._encoder
        x = self[0](input) + encoder.skips[0]
        x = self[2](self[1](x))
        return self[4](self[3](x) + encoder.skips[1])


def published_generator(
    sam: nn.Module, config: GeneratorConfig, factory: Callable[..., Any] = SamAutomaticMaskGenerator
) -> Any:
    """segment_anything's generator with our arguments, which gives COCO run lengths. It has no `sa1b` additions."""
    assert config.max_coverage is None
    assert not config.drop_small_masks
    return factory(
        sam,
        points_per_side=config.points_per_side,
        points_per_batch=config.points_per_batch or 64,
        pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh,
        stability_score_offset=config.stability_score_offset,
        box_nms_thresh=config.box_nms_thresh,
        crop_n_layers=config.crop_n_layers,
        crop_nms_thresh=config.crop_nms_thresh,
        crop_overlap_ratio=config.crop_overlap_ratio,
        crop_n_points_downscale_factor=config.crop_n_points_downscale_factor,
        point_grids=None if config.point_grids is None else list(config.point_grids),
        min_mask_region_area=config.min_mask_region_area,
        output_mode="coco_rle",
    )


def published_views(height: int, width: int, config: GeneratorConfig) -> tuple[list[list[int]], list[np.ndarray]]:
    """Crop boxes (XYXY) of an image, and the points (P, 2) in pixels of each crop."""
    assert config.points_per_side is not None
    boxes, layers = amg.generate_crop_boxes((height, width), config.crop_n_layers, config.crop_overlap_ratio)
    grids = amg.build_all_layer_point_grids(
        config.points_per_side, config.crop_n_layers, config.crop_n_points_downscale_factor
    )
    sides = [np.array([x1 - x0, y1 - y0]) for x0, y0, x1, y1 in boxes]
    return boxes, [grids[layer] * side for layer, side in zip(layers, sides, strict=True)]


def published_colour_sam() -> published.Sam:
    """`ColourSam` behind segment_anything's interface."""
    sam = published.Sam(_Encoder(), _PromptEncoder(), _MaskDecoder())  # pyright: ignore[reportArgumentType]
    return sam.eval()


class _Encoder(nn.Module):
    img_size = CONFIG.image_size

    def forward(self, images_B3SS: Tensor) -> Tensor:
        return ColourSam().encode_images(images_B3SS).grid_BCYX


class _PromptEncoder(nn.Module):
    def forward(self, points: tuple[Tensor, Tensor], boxes: None, masks: None) -> tuple[Tensor, None]:
        return points[0][:, 0], None

    def get_dense_pe(self) -> None:
        return None


class _MaskDecoder(nn.Module):
    def forward(self, image_embeddings: Tensor, sparse_prompt_embeddings: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        logits_NMhw = similarity(image_embeddings, sparse_prompt_embeddings)
        return logits_NMhw[:, 1:], predicted_iou(logits_NMhw)[:, 1:]
