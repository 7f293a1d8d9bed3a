"""The image encoder: a ViTDet backbone, the neck that makes the image embedding, and finer features beside it.

Shapes: B images, V windows (or whole images for global attention), S input side in pixels, Y X grid in cells, L = Y*X,
C channels, U heads, D features per head.
Source: Li et al. 2022 (ViTDet); `modeling/image_encoder.py` of segment-anything. The skips are those of SAM 2
(Ravi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.config import SamConfig
from maskmill.model.layers import LayerNorm2d, MLPBlock


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """The embeddings of B images.

    `grid_BCYX` is the published embedding. `skips` are features of 2 and 4 times its resolution for the mask upscaler,
    (B, C/4, 2Y, 2X) and (B, C/8, 4Y, 4X); empty for variants without skips.
    """

    grid_BCYX: Tensor
    skips: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.grid_BCYX)

    def __getitem__(self, images: slice | Tensor) -> ImageEmbedding:
        return self.map(lambda x: x[images])

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageEmbedding:
        """Applies a function to each tensor."""
        return ImageEmbedding(function(self.grid_BCYX), tuple(function(skip) for skip in self.skips))


class ImageEncoder(nn.Module):
    """Normalised, padded images (B, 3, S, S) to their embeddings, with Y = X = S / patch."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        # `segment_anything` reads this attribute from any encoder.
        self.img_size = config.image_size
        self.patch_embed = PatchEmbed(config) if config.stem == "patch" else ConvStem(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size, config.grid_size, config.encoder_width))
        self.blocks = make_blocks(config)
        self.neck = make_neck(config)
        self.skips = nn.ModuleList()
        if config.high_resolution_skips:
            for halving in (1, 2):
                in_width, out_width = config.encoder_width >> halving, config.embed_dim >> (halving + 1)
                self.skips.append(nn.Conv2d(in_width, out_width, kernel_size=3, padding=1))

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        x_BYXC, finer = self.patch_embed(images_B3SS)
        x_BYXC = x_BYXC + self.pos_embed
        for block in self.blocks:
            x_BYXC = block(x_BYXC)
        # `finer` may go further than there are skips.
        skips = tuple(skip(features) for skip, features in zip(self.skips, finer, strict=False))
        return ImageEmbedding(self.neck(x_BYXC.permute(0, 3, 1, 2)), skips)


def make_blocks(config: SamConfig) -> nn.ModuleList:
    """The transformer blocks of an encoder; each maps (B, Y, X, C) to (B, Y, X, C)."""
    return nn.ModuleList(
        Block(config, window_size=0 if i in config.global_attention_blocks else config.window_size)
        for i in range(config.encoder_depth)
    )


def make_neck(config: SamConfig) -> nn.Sequential:
    """The layers from the blocks' output (B, C, Y, X) to the image embedding (B, C, Y, X) with its channels."""
    return nn.Sequential(
        nn.Conv2d(config.encoder_width, config.embed_dim, kernel_size=1, bias=False),
        LayerNorm2d(config.embed_dim),
        nn.Conv2d(config.embed_dim, config.embed_dim, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(config.embed_dim),
    )


class PatchEmbed(nn.Module):
    """The published stem: one convolution as large as its stride. There are no finer features."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.encoder_width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images_B3SS: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.proj(images_B3SS).permute(0, 2, 3, 1), []


class ConvStem(nn.Module):
    """Strided 3x3 convolutions, each halving the side and doubling the channels, down to the patch size.

    Also gives the features on the way, (B, C/2, 2Y, 2X), (B, C/4, 4Y, 4X) and so on.
    Source: Xiao et al. 2021, "Early convolutions help transformers see better".
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        halvings = config.patch_size.bit_length() - 1
        widths = [3] + [config.encoder_width >> (halvings - 1 - i) for i in range(halvings)]
        self.layers = nn.Sequential()
        for in_width, out_width in pairwise(widths):
            self.layers.append(nn.Conv2d(in_width, out_width, kernel_size=3, stride=2, padding=1))
            self.layers.append(LayerNorm2d(out_width))
            self.layers.append(nn.GELU())
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ConvBlock(width) for _ in range(blocks)))
            for width, blocks in zip(widths[1:], config.stem_blocks, strict=False)
        )
        self.proj = nn.Conv2d(config.encoder_width, config.encoder_width, kernel_size=1)

    def forward(self, images_B3SS: Tensor) -> tuple[Tensor, list[Tensor]]:
        halved, x_BCYX = [], images_B3SS
        for layer in self.layers:
            x_BCYX = layer(x_BCYX)
            if isinstance(layer, nn.GELU):
                if len(halved) < len(self.blocks):
                    x_BCYX = self.blocks[len(halved)](x_BCYX)
                halved.append(x_BCYX)
        return self.proj(x_BCYX).permute(0, 2, 3, 1), halved[-2::-1]


class ConvBlock(nn.Module):
    """Two 3x3 convolutions beside a connection that skips them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return x_BCYX + self.conv2(F.gelu(self.conv1(self.norm(x_BCYX))))


class Block(nn.Module):
    """A transformer block that attends inside windows, or over the whole grid when `window_size` is 0."""

    def __init__(self, config: SamConfig, window_size: int) -> None:
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

    def __init__(self, config: SamConfig, grid_size: int) -> None:
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
