"""TinyViT, the image encoder of MobileSAM: convolutional blocks, then transformer blocks that attend inside windows.

Shapes: B images, V windows, S input side in pixels, Y X a grid or window in cells, y x the next coarser grid, L = Y*X,
C channels, U heads, D features per head, E = 3*D features of a query, its key and its value.
Source: Wu et al. 2022 (TinyViT); Zhang et al. 2023 (MobileSAM); `modeling/tiny_vit_sam.py` of MobileSAM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families.mobile_sam.config import MobileSamConfig, TinyVitStage
from maskmill.model.vitdet import join_windows, make_neck, split_windows

EXPANSION = 4  # hidden channels of a block per channel


class TinyVit(nn.Module):
    """Maps normalised, padded images (B, 3, S, S) to their embeddings, with Y = X = S / 16."""

    def __init__(self, config: MobileSamConfig) -> None:
        super().__init__()
        # `segment_anything` reads this attribute from any encoder.
        self.img_size = config.image_size
        self.patch_embed = PatchEmbed(config.stages[0].width)
        self.layers = nn.ModuleList(Stage(stage) for stage in config.stages)
        # TinyViT halves the grid before every stage. MobileSAM keeps it before the last: 16 pixels per cell.
        for i in range(len(config.stages) - 1):
            width, next_width = config.stages[i].width, config.stages[i + 1].width
            is_last = i + 2 == len(config.stages)
            self.layers.get_submodule(str(i)).downsample = Downsample(width, next_width, stride=1 if is_last else 2)
        self.neck = make_neck(config.stages[-1].width, config.embed_dim)

    def forward(self, images_B3SS: Tensor) -> ImageEmbedding:
        x_BCYX = self.patch_embed(images_B3SS)
        for stage in self.layers:
            x_BCYX = stage(x_BCYX)
        return ImageEmbedding(self.neck(x_BCYX))


class ConvNorm(nn.Sequential):
    """A convolution without bias, then batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)


class PatchEmbed(nn.Module):
    """Maps images (B, 3, S, S) to (B, C, S/4, S/4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, kernel=3, stride=2),
            nn.GELU(),
            ConvNorm(width // 2, width, kernel=3, stride=2),
        )

    def forward(self, images_B3SS: Tensor) -> Tensor:
        return self.seq(images_B3SS)


class Stage(nn.Module):
    """Blocks on one grid, then the step to the next grid. The last stage has no such step."""

    downsample: Downsample | None

    def __init__(self, stage: TinyVitStage) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WindowBlock(stage) if stage.heads else ConvBlock(stage.width) for _ in range(stage.blocks)
        )
        self.downsample = None

    def forward(self, x_BCYX: Tensor) -> Tensor:
        for block in self.blocks:
            x_BCYX = block(x_BCYX)
        return x_BCYX if self.downsample is None else self.downsample(x_BCYX)


class Downsample(nn.Module):
    """Maps (B, C, Y, X) to (B, C, y, x) with the channels of the next stage: 1x1, depthwise 3x3 and 1x1 convolution."""

    def __init__(self, width: int, next_width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, next_width, kernel=1)
        self.conv2 = ConvNorm(next_width, next_width, kernel=3, stride=stride, groups=next_width)
        self.conv3 = ConvNorm(next_width, next_width, kernel=1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x_BCYX)))))


class ConvBlock(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution and 1x1 projection, with a GELU after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.conv1 = ConvNorm(width, hidden, kernel=1)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width, kernel=1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return F.gelu(x_BCYX + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x_BCYX))))))


class WindowBlock(nn.Module):
    """Transformer block: attention in windows, a depthwise convolution between the windows, and an MLP."""

    def __init__(self, stage: TinyVitStage) -> None:
        super().__init__()
        self.window_size = stage.window_size
        self.attn = WindowAttention(stage)
        self.local_conv = ConvNorm(stage.width, stage.width, kernel=3, groups=stage.width)
        self.mlp = Mlp(stage.width)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        x_BYXC = x_BCYX.permute(0, 2, 3, 1)
        # The padding at the right and bottom is normalised and attended to like the cells of the image.
        attended_VYXC = self.attn(split_windows(x_BYXC, self.window_size))
        x_BYXC = x_BYXC + join_windows(attended_VYXC, self.window_size, grid=x_BYXC.shape[1:3])
        x_BYXC = self.local_conv(x_BYXC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (x_BYXC + self.mlp(x_BYXC)).permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Layer norm and multi-head self-attention, with a bias for each distance between two cells in rows and columns."""

    def __init__(self, stage: TinyVitStage) -> None:
        super().__init__()
        self.heads = stage.heads
        self.norm = nn.LayerNorm(stage.width)
        self.qkv = nn.Linear(stage.width, 3 * stage.width)  # by head: queries, keys, values of the first, and so on
        self.proj = nn.Linear(stage.width, stage.width)
        self.attention_biases = nn.Parameter(torch.zeros(stage.heads, stage.window_size**2))

    def forward(self, x_VYXC: Tensor) -> Tensor:
        qkv_VULE = self.qkv(self.norm(x_VYXC)).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q_VULD, k_VULD, v_VULD = qkv_VULE.chunk(3, dim=-1)
        x_VULD = F.scaled_dot_product_attention(q_VULD, k_VULD, v_VULD, attn_mask=self.position_bias()[None])
        return self.proj(x_VULD.transpose(1, 2).flatten(2).view_as(x_VYXC))

    def position_bias(self) -> Tensor:
        """The bias (U, L, L) of attention scores."""
        side = round(self.attention_biases.shape[1] ** 0.5)
        position = torch.arange(side, device=self.attention_biases.device)
        distance = (position[:, None] - position).abs()
        offsets = distance[:, None, :, None] * side + distance[None, :, None, :]
        return self.attention_biases[:, offsets.flatten(2).flatten(0, 1)]


class Mlp(nn.Module):
    """Layer norm and a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x_BYXC))))
