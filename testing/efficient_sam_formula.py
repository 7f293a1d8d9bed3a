"""EfficientSAM as functions of its published weights, in float64: an independent reference for tests.

Shapes: B images, N prompts, T tokens, L image tokens, C channels, U heads, D features per head, S input side in pixels,
Y X embedding grid, M masks, h w = 4Y 4X mask logits.
Source: Xiong et al. 2023; the modules of https://github.com/yformer/EfficientSAM, by the names of their weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.model.families.efficient_sam.config import EfficientSamConfig


class EfficientSamFormula:
    """The functions of a state dict with the published keys."""

    def __init__(self, state: Mapping[str, Tensor], encoder_heads: int, decoder_heads: int, image_size: int) -> None:
        self._state = {key: tensor.double() for key, tensor in state.items()}
        self._encoder_heads, self._decoder_heads, self._image_size = encoder_heads, decoder_heads, image_size

    def encode(self, images_B3SS: Tensor) -> Tensor:
        """Embeddings (B, C, Y, X) of normalised images."""
        patch = self._state["image_encoder.patch_embed.proj.weight"]
        x_BCYX = F.conv2d(
            images_B3SS.double(), patch, self._state["image_encoder.patch_embed.proj.bias"], stride=patch.shape[-1]
        )
        table_1LC = self._state["image_encoder.pos_embed"][:, 1:]  # without the class token
        side = math.isqrt(table_1LC.shape[1])
        table_1Cyx = table_1LC.transpose(1, 2).reshape(1, -1, side, side)
        x_BCYX = x_BCYX + F.interpolate(table_1Cyx, x_BCYX.shape[-2:], mode="bicubic", align_corners=False)
        x_BLC = x_BCYX.flatten(2).transpose(1, 2)
        for i in range(self._count("image_encoder.blocks.")):
            name = f"image_encoder.blocks.{i}"
            q, k, v = self._linear(f"{name}.attn.qkv", self._norm(f"{name}.norm1", x_BLC, 1e-6)).chunk(3, dim=-1)
            x_BLC = x_BLC + self._linear(f"{name}.attn.proj", self._attend(q, k, v, self._encoder_heads))
            hidden = F.gelu(self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.norm2", x_BLC, 1e-6)))
            x_BLC = x_BLC + self._linear(f"{name}.mlp.fc2", hidden)
        x_BCYX = x_BLC.transpose(1, 2).reshape(x_BCYX.shape)
        for conv, norm in ((0, 1), (2, 3)):
            kernel = self._state[f"image_encoder.neck.{conv}.weight"]
            x_BCYX = F.conv2d(x_BCYX, kernel, padding=kernel.shape[-1] // 2)
            x_BCYX = self._norm(f"image_encoder.neck.{norm}", x_BCYX.movedim(1, -1), 1e-6).movedim(-1, 1)
        return x_BCYX

    def decode(self, embedding_1CYX: Tensor, points_NT2: Tensor, labels_NT: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, M, h, w) and predicted IoUs (N, M). Labels: -1 padding, 0 and 1 points, 2 and 3 box corners."""
        _, C, Y, X = embedding_1CYX.shape
        tokens_NTC = self._positions((points_NT2.double() + 0.5) / self._image_size)
        for label, name in (
            (-1, "invalid_points"),
            (1, "point_embeddings"),
            (2, "bbox_top_left_embeddings"),
            (3, "bbox_bottom_right_embeddings"),
        ):
            tokens_NTC[labels_NT == label] += self._state[f"prompt_encoder.{name}.weight"]
        outputs = [self._state[f"mask_decoder.{name}.weight"] for name in ("iou_token", "mask_tokens")]
        N, M = len(tokens_NTC), len(outputs[1])
        prompts_NTC = torch.cat([torch.cat(outputs).expand(N, -1, -1), tokens_NTC], dim=1)
        rows, columns = torch.meshgrid(torch.arange(Y) + 0.5, torch.arange(X) + 0.5, indexing="ij")
        positions_1LC = self._positions(torch.stack([columns / X, rows / Y], dim=-1).double()).reshape(1, Y * X, C)
        x_NTC, image_NLC = prompts_NTC, embedding_1CYX.flatten(2).transpose(1, 2).expand(N, -1, -1)
        for i in range(self._count("mask_decoder.transformer.layers.")):
            name = f"mask_decoder.transformer.layers.{i}"
            if i > 0:
                x_NTC = x_NTC + prompts_NTC
            x_NTC = self._norm(f"{name}.norm1", x_NTC + self._cross(f"{name}.self_attn", x_NTC, x_NTC, x_NTC))
            query, key = x_NTC + prompts_NTC, image_NLC + positions_1LC
            x_NTC = self._norm(
                f"{name}.norm2", x_NTC + self._cross(f"{name}.cross_attn_token_to_image", query, key, image_NLC)
            )
            x_NTC = self._norm(f"{name}.norm3", x_NTC + self._mlp(f"{name}.mlp", x_NTC))
            query, key = image_NLC + positions_1LC, x_NTC + prompts_NTC
            image_NLC = self._norm(
                f"{name}.norm4", image_NLC + self._cross(f"{name}.cross_attn_image_to_token", query, key, x_NTC)
            )
        name = "mask_decoder.transformer.final_attn_token_to_image"
        attended = self._cross(name, x_NTC + prompts_NTC, image_NLC + positions_1LC, image_NLC)
        x_NTC = self._norm("mask_decoder.transformer.norm_final_attn", x_NTC + attended)
        image_NCYX = image_NLC.transpose(1, 2).reshape(N, C, Y, X)
        name = "mask_decoder.final_output_upscaling_layers"
        half = self._upscale(f"{name}.0.0", image_NCYX)
        half = F.group_norm(half, 1, self._state[f"{name}.0.1.weight"], self._state[f"{name}.0.1.bias"], 1e-5)
        full_NChw = F.gelu(self._upscale(f"{name}.1.0", F.gelu(half)))
        weights_NMC = torch.stack(
            [self._mlp(f"mask_decoder.output_hypernetworks_mlps.{m}", x_NTC[:, 1 + m]) for m in range(M)], dim=1
        )
        logits_NMhw = torch.einsum("nmc,nchw->nmhw", weights_NMC, full_NChw)
        return logits_NMhw, self._mlp("mask_decoder.iou_prediction_head", x_NTC[:, 0])

    def _count(self, prefix: str) -> int:
        return len({key.removeprefix(prefix).split(".")[0] for key in self._state if key.startswith(prefix)})

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._state[f"{name}.weight"].T + self._state[f"{name}.bias"]

    def _norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        x = (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True, correction=0) + eps).sqrt()
        return x * self._state[f"{name}.weight"] + self._state[f"{name}.bias"]

    def _attend(self, q_NTC: Tensor, k_NLC: Tensor, v_NLC: Tensor, heads: int) -> Tensor:
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q_NTC, k_NLC, v_NLC))
        score = torch.einsum("ntud,nlud->nutl", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("nutl,nlud->ntud", score.softmax(dim=-1), v).flatten(2)

    def _cross(self, name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (self._linear(f"{name}.{x}_proj", y) for x, y in (("q", query), ("k", key), ("v", value)))
        return self._linear(f"{name}.out_proj", self._attend(q, k, v, self._decoder_heads))

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        for i in range(self._count(f"{name}.layers.")):
            x = F.gelu(self._linear(f"{name}.layers.{i}.0", x))
        return self._linear(f"{name}.fc", x)

    def _upscale(self, name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self._state[f"{name}.weight"], self._state[f"{name}.bias"], stride=2)

    def _positions(self, xy: Tensor) -> Tensor:
        matrix = self._state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        phase = 2 * math.pi * (2 * xy - 1) @ matrix
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


def published_shapes(config: EfficientSamConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights of a published checkpoint, by key."""
    width, dim, mlp_dim = config.encoder_width, config.embed_dim, config.decoder_mlp_dim
    masks, patch, head_dim = config.multimask_outputs + 1, config.patch_size, config.iou_head_width
    shapes: dict[str, tuple[int, ...]] = {
        "image_encoder.pos_embed": (1, 1 + config.position_size**2, width),
        "image_encoder.neck.0.weight": (dim, width, 1, 1),
        "image_encoder.neck.2.weight": (dim, dim, 3, 3),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, dim // 2),
        "mask_decoder.iou_token.weight": (1, dim),
        "mask_decoder.mask_tokens.weight": (masks, dim),
    }
    for name in ("invalid_points", "point_embeddings", "bbox_top_left_embeddings", "bbox_bottom_right_embeddings"):
        shapes[f"prompt_encoder.{name}.weight"] = (1, dim)

    def layer(name: str, bias: int, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight or (bias,)
        shapes[f"{name}.bias"] = (bias,)

    def attention(name: str, inner: int) -> None:
        for part in ("q_proj", "k_proj", "v_proj"):
            layer(f"{name}.{part}", inner, inner, dim)
        layer(f"{name}.out_proj", dim, dim, inner)

    layer("image_encoder.patch_embed.proj", width, width, 3, patch, patch)
    for i in range(config.encoder_depth):
        name = f"image_encoder.blocks.{i}"
        layer(f"{name}.norm1", width)
        layer(f"{name}.norm2", width)
        layer(f"{name}.attn.qkv", 3 * width, 3 * width, width)
        layer(f"{name}.attn.proj", width, width, width)
        layer(f"{name}.mlp.fc1", 4 * width, 4 * width, width)
        layer(f"{name}.mlp.fc2", width, width, 4 * width)
    layer("image_encoder.neck.1", dim)
    layer("image_encoder.neck.3", dim)
    inner = dim // config.decoder_attention_downsample
    for i in range(config.decoder_depth):
        name = f"mask_decoder.transformer.layers.{i}"
        attention(f"{name}.self_attn", dim)
        attention(f"{name}.cross_attn_token_to_image", inner)
        attention(f"{name}.cross_attn_image_to_token", inner)
        for norm in range(1, 5):
            layer(f"{name}.norm{norm}", dim)
        layer(f"{name}.mlp.layers.0.0", mlp_dim, mlp_dim, dim)
        layer(f"{name}.mlp.fc", dim, dim, mlp_dim)
    attention("mask_decoder.transformer.final_attn_token_to_image", inner)
    layer("mask_decoder.transformer.norm_final_attn", dim)
    name = "mask_decoder.final_output_upscaling_layers"
    layer(f"{name}.0.0", dim // 4, dim, dim // 4, 2, 2)
    layer(f"{name}.0.1", dim // 4)
    layer(f"{name}.1.0", dim // 8, dim // 4, dim // 8, 2, 2)
    for name, hidden, out in (
        *((f"mask_decoder.output_hypernetworks_mlps.{m}", dim, dim // 8) for m in range(masks)),
        ("mask_decoder.iou_prediction_head", head_dim, masks),
    ):
        layer(f"{name}.layers.0.0", hidden, hidden, dim)
        layer(f"{name}.layers.1.0", hidden, hidden, hidden)
        layer(f"{name}.fc", out, out, hidden)
    return shapes


def random_state(config: EfficientSamConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights with the published keys, each of a size at which it changes the result."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in published_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if "gaussian_matrix" in name:
            state[name] = noise
        elif "token" in name.split(".")[1] or "pos_embed" in name or name.startswith("prompt_encoder."):
            state[name] = 0.5 * noise
        elif len(shape) > 1:
            state[name] = noise / math.sqrt(noise[0].numel())
        else:
            state[name] = 0.1 * noise + name.endswith("weight")
    return state
