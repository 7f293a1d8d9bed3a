"""The image encoder of SAM 2: a Hiera backbone in four stages, and a neck for the image embedding and the skips.

Each stage halves the grid of the stage before and doubles its channels. The first stage has cells of 4 x 4 pixels, the
third has those of the embedding.

Shapes: B images, V windows (or whole images for global attention), S input side in pixels, Y X grid of a stage or
window in cells, L = Y*X, C channels, U heads, D features per head.
Source: Ryali et al. 2023 (Hiera); Ravi et al. 2024 (SAM 2); `modeling/backbones` of sam2.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.sam2.config import Sam2Config
from maskmill.model.layers import MLPBlock
from maskmill.model.vitdet import join_windows, split_windows

STEM_STRIDE = 4  # pixels per cell of the first stage


class Sam2Encoder(nn.Module):
    """Normalised images (B, 3, S, S) to their embeddings. S is a multiple of 32."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.trunk: nn.Module = Hiera(config)
        self.neck = Neck(config)
        # The published code keeps these three outside its image encoder.
        self.conv_s0 = nn.Conv2d(config.embed_dim, config.embed_dim // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(config.embed_dim, config.embed_dim // 4, kernel_size=1)
        # Marks an image without earlier frames of a video.
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, config.embed_dim))

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        quarter_BCYX, half_BCYX, grid_BCYX = self.neck(self.trunk(images_B3SS))
        grid_BCYX = grid_BCYX + self.no_mem_embed.view(1, -1, 1, 1)
        return ImageEmbedding(grid_BCYX, (self.conv_s1(half_BCYX), self.conv_s0(quarter_BCYX)))


class Hiera(nn.Module):
    """The backbone: images (B, 3, S, S) to the outputs (B, Y, X, C) of its four stages."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        width, side = config.encoder_width, config.position_size
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, width, side, side))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, width, *[config.window_sizes[0]] * 2))
        self.blocks = make_blocks(config)
        self.last_blocks = [sum(config.stage_blocks[: i + 1]) - 1 for i in range(4)]
        self.grid_size = config.image_size // STEM_STRIDE

    def forward(self, images_B3SS: Tensor) -> list[Tensor]:
        x_BYXC = self.patch_embed(images_B3SS) + self.positions()
        stages = []
        for i, block in enumerate(self.blocks):
            x_BYXC = block(x_BYXC)
            if i in self.last_blocks:
                stages.append(x_BYXC)
        return stages

    def positions(self) -> Tensor:
        """The position embedding (1, Y, X, C): an embedding of the whole grid plus one that repeats in each window."""
        by_image_1CYX = F.interpolate(self.pos_embed, size=(self.grid_size, self.grid_size), mode="bicubic")
        repeats = self.grid_size // self.pos_embed_window.shape[-1]
        return (by_image_1CYX + self.pos_embed_window.tile(repeats, repeats)).permute(0, 2, 3, 1)


def make_blocks(config: Sam2Config) -> nn.ModuleList:
    """The blocks of all stages. The first block of a stage pools the grid of the stage before, and has its windows."""
    blocks = nn.ModuleList()
    for stage, depth in enumerate(config.stage_blocks):
        for i in range(depth):
            starts_stage = i == 0 and stage > 0
            window_size = config.window_sizes[stage - starts_stage]
            blocks.append(
                Block(
                    in_width=config.encoder_width << (stage - starts_stage),
                    width=config.encoder_width << stage,
                    heads=config.encoder_heads << stage,
                    mlp_ratio=config.encoder_mlp_ratio,
                    window_size=0 if len(blocks) in config.global_attention_blocks else window_size,
                )
            )
    return blocks


class PatchEmbed(nn.Module):
    """A strided convolution with overlapping patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=7, stride=STEM_STRIDE, padding=3)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Returns (B, Y, X, C)."""
        return self.proj(images_B3SS).permute(0, 2, 3, 1)


class Block(nn.Module):
    """A transformer block that attends inside windows, or over the whole grid when `window_size` is 0.

    If it widens its input, it also halves the grid: 2 x 2 queries are pooled to one.
    """

    def __init__(self, in_width: int, width: int, heads: int, mlp_ratio: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.pools = in_width != width
        self.norm1 = nn.LayerNorm(in_width, eps=1e-6)
        self.attn = Attention(in_width, width, heads, self.pools)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLPBlock(width, width * mlp_ratio, F.gelu)
        if self.pools:
            self.proj = nn.Linear(in_width, width)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        normed_BYXC = self.norm1(x_BYXC)
        if self.pools:
            x_BYXC = pool(self.proj(normed_BYXC))
        x_BYXC = x_BYXC + self._attend(normed_BYXC, grid=x_BYXC.shape[1:3])
        return x_BYXC + self.mlp(self.norm2(x_BYXC))

    def _attend(self, x_BYXC: Tensor, grid: torch.Size) -> Tensor:
        if self.window_size == 0:
            return self.attn(x_BYXC)
        windows = self.attn(split_windows(x_BYXC, self.window_size))
        return join_windows(windows, windows.shape[1], grid)


class Attention(nn.Module):
    """Multi-head self-attention over a grid."""

    def __init__(self, in_width: int, width: int, heads: int, pools: bool) -> None:
        super().__init__()
        self.heads, self.pools = heads, pools
        self.qkv = nn.Linear(in_width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_VYXC: Tensor) -> Tensor:
        q_VYXC, k_VYXC, v_VYXC = self.qkv(x_VYXC).chunk(3, dim=-1)
        if self.pools:
            q_VYXC = pool(q_VYXC)
        q_VULD, k_VULD, v_VULD = (
            x.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q_VYXC, k_VYXC, v_VYXC)
        )
        x_VULD = F.scaled_dot_product_attention(q_VULD, k_VULD, v_VULD)
        return self.proj(x_VULD.transpose(1, 2).reshape(q_VYXC.shape))


def pool(x_BYXC: Tensor) -> Tensor:
    """The maximum of each 2 x 2 cells."""
    return F.max_pool2d(x_BYXC.permute(0, 3, 1, 2), kernel_size=2).permute(0, 2, 3, 1)


class Neck(nn.Module):
    """A feature pyramid: projects the stages to C channels, and adds the last stage to the third.

    Returns features (B, C, Y, X) of the first three stages.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.convs = nn.ModuleList()  # coarsest stage first
        for stage in (3, 2, 1, 0):
            conv = nn.Conv2d(config.encoder_width << stage, config.embed_dim, kernel_size=1)
            self.convs.append(nn.Sequential(OrderedDict(conv=conv)))

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        coarse, grid, half, quarter = (
            conv(stage_BYXC.permute(0, 3, 1, 2)) for conv, stage_BYXC in zip(self.convs, reversed(stages), strict=True)
        )
        return quarter, half, grid + F.interpolate(coarse, scale_factor=2, mode="nearest")
