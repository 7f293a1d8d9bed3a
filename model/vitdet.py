"""The parts of a ViTDet image encoder that several families share: transformer blocks and the neck.

Shapes: B images, V windows (or whole images for global attention), Y X grid in cells, L = Y*X, C channels, U heads,
D features per head.
Source: Li et al. 2022 (ViTDet); `modeling/image_encoder.py` of segment-anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.layers import LayerNorm2d, MLPBlock


@dataclass(frozen=True, kw_only=True)
class VitDetConfig(NetworkConfig):
    """Dimensions of a network with a ViTDet image encoder."""

    # Width, blocks and heads; which blocks attend globally, the rest in windows.
    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    global_attention_blocks: tuple[int, ...]
    window_size: int = 14
    encoder_mlp_ratio: int = 4
    relative_positions: bool = True


def make_blocks(config: VitDetConfig) -> nn.ModuleList:
    """The transformer blocks of an encoder; each maps (B, Y, X, C) to (B, Y, X, C)."""
    return nn.ModuleList(
        Block(config, window_size=0 if i in config.global_attention_blocks else config.window_size)
        for i in range(config.encoder_depth)
    )


def make_neck(width: int, embed_dim: int) -> nn.Sequential:
    """The layers from the blocks' output (B, C, Y, X) to the image embedding (B, C, Y, X) with its channels."""
    return nn.Sequential(
        nn.Conv2d(width, embed_dim, kernel_size=1, bias=False),
        LayerNorm2d(embed_dim),
        nn.Conv2d(embed_dim, embed_dim, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(embed_dim),
    )


class Block(nn.Module):
    """A transformer block that attends inside windows, or over the whole grid when `window_size` is 0."""

    def __init__(self, config: VitDetConfig, window_size: int) -> None:
        super().__init__()
        width = config.encoder_width
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(config, grid_size=window_size or config.grid_size)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLPBlock(width, width * config.encoder_mlp_ratio, F.gelu)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        x_BYXC = x_BYXC + self._attend(self.norm1(x_BYXC))
        return x_BYXC + self.mlp(self.norm2(x_BYXC))

    def _attend(self, x_BYXC: Tensor) -> Tensor:
        if self.window_size == 0:
            return self.attn(x_BYXC)
        windows = split_windows(x_BYXC, self.window_size)
        return join_windows(self.attn(windows), self.window_size, grid=x_BYXC.shape[1:3])


class Attention(nn.Module):
    """Multi-head self-attention over a grid, with decomposed relative positions."""

    def __init__(self, config: VitDetConfig, grid_size: int) -> None:
        super().__init__()
        width = config.encoder_width
        self.heads = config.encoder_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_positions = config.relative_positions
        if config.relative_positions:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid_size - 1, width // self.heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid_size - 1, width // self.heads))

    def forward(self, x_VYXC: Tensor) -> Tensor:
        V, Y, X, C = x_VYXC.shape
        qkv_VL3UD = self.qkv(x_VYXC).reshape(V, Y * X, 3, self.heads, C // self.heads)
        q_VULD, k_VULD, v_VULD = qkv_VL3UD.permute(2, 0, 3, 1, 4)
        bias_VULL = self._position_bias(q_VULD, Y, X) if self.relative_positions else None
        x_VULD = F.scaled_dot_product_attention(q_VULD, k_VULD, v_VULD, attn_mask=bias_VULL)
        return self.proj(x_VULD.transpose(1, 2).reshape(V, Y, X, C))

    def _position_bias(self, q_VULD: Tensor, Y: int, X: int) -> Tensor:
        """The bias (V, U, L, L) of attention scores: a term for the row distance plus one for the column distance."""
        V, U, L, D = q_VULD.shape
        q_VUYXD = q_VULD.reshape(V, U, Y, X, D)
        rows_YYD = self.rel_pos_h[relative_distances(Y, q_VULD.device)]
        columns_XXD = self.rel_pos_w[relative_distances(X, q_VULD.device)]
        by_row_VUYXY = torch.einsum("vuyxd,ykd->vuyxk", q_VUYXD, rows_YYD)
        by_column_VUYXX = torch.einsum("vuyxd,xkd->vuyxk", q_VUYXD, columns_XXD)
        return (by_row_VUYXY[..., :, None] + by_column_VUYXX[..., None, :]).reshape(V, U, L, L)


def relative_distances(size: int, device: torch.device) -> Tensor:
    """(size, size) indices into a table of 2 * size - 1 relative positions: query i minus key j."""
    position = torch.arange(size, device=device)
    return position[:, None] - position[None, :] + size - 1


def split_windows(x_BYXC: Tensor, size: int) -> Tensor:
    """Splits a grid into windows (V, size, size, C), zero-padded at the right and bottom."""
    B, Y, X, C = x_BYXC.shape
    if Y % size or X % size:  # `pad` copies in any case
        x_BYXC = F.pad(x_BYXC, (0, 0, 0, -X % size, 0, -Y % size))
    rows, columns = x_BYXC.shape[1] // size, x_BYXC.shape[2] // size
    x = x_BYXC.reshape(B, rows, size, columns, size, C)
    return x.transpose(2, 3).reshape(B * rows * columns, size, size, C)


def join_windows(windows: Tensor, size: int, grid: torch.Size) -> Tensor:
    """The inverse of `split_windows` for a grid of (Y, X) cells."""
    Y, X = grid
    rows, columns = -(-Y // size), -(-X // size)
    x = windows.reshape(-1, rows, columns, size, size, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, rows * size, columns * size, windows.shape[-1])[:, :Y, :X]


# Keys of the image encoder in Hugging Face's layout, see `Family.hugging_face_keys`.
HUGGING_FACE_KEYS = (
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.", "image_encoder."),
)


def variant_of(state: Mapping[str, Tensor], variants: Sequence[VitDetConfig]) -> str | None:
    """The variant with the width and depth of the image encoder in a state dict, or None."""
    pos_embed = state.get("image_encoder.pos_embed")
    depth = len({key.split(".")[2] for key in state if key.startswith("image_encoder.blocks.")})
    for config in variants:
        if pos_embed is not None and (config.encoder_width, config.encoder_depth) == (pos_embed.shape[-1], depth):
            return config.name
    return None
