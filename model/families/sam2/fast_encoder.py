"""The Hiera blocks of SAM 2's image encoder for inference: the same function in less time and memory.

Windows are padded after the projection to queries, keys and values, as in `model.inference.fast_vitdet`: the biases of
keys and values are left out there, and the value bias is added to the output as a constant.

Shapes: B images, V windows (or whole images for global attention), Y X grid of a stage or window in cells, C channels,
U heads, L = Y*X, D features per head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.families.sam2.encoder import Attention, Block, Hiera, Sam2Encoder, pool
from maskmill.model.inference.fast_vitdet import MOST_FUSED_KEYS, attend_in_blocks, fold_biases
from maskmill.model.layers import convert_products, fast_linear, fast_mlp, is_float32_on_cpu, require_class
from maskmill.model.threads import all_cores
from maskmill.model.vitdet import join_windows, split_windows

# Cells of a tile of windows that one core computes: enough rows for products.
TILE_CELLS = 512
# With fewer tiles per core some cores would be idle at the end: torch then splits each operation over all cores.
TILES_PER_CORE = 2


def speed_up(encoder: Sam2Encoder, dtype: torch.dtype) -> None:
    """Replaces the backbone of an encoder by its inference form, in place. Parameters keep their names.

    Matrix multiplications and convolutions run in `dtype`, norms and residual sums in float32. Raises TypeError if a
    block is not exactly a `Block`.
    """
    trunk = encoder.trunk
    assert isinstance(trunk, Hiera)
    for name, block in trunk.blocks.named_children():
        require_class(f"image_encoder.trunk.blocks.{name}", block, Block)
    encoder.trunk = FastHiera(trunk, dtype)
    convert_products(encoder, dtype)


class FastHiera(nn.Module):
    """`Hiera` for inference. Shares its submodules."""

    _positions_1YXC: Tensor

    def __init__(self, trunk: Hiera, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch_embed, self.last_blocks = trunk.patch_embed, trunk.last_blocks
        self.pos_embed, self.pos_embed_window = trunk.pos_embed, trunk.pos_embed_window
        self.blocks = nn.ModuleList(FastBlock(cast(Block, block), dtype) for block in trunk.blocks)
        self.register_buffer("_positions_1YXC", trunk.positions().detach().contiguous(), persistent=False)

    def forward(self, images_B3SS: Tensor) -> list[Tensor]:
        x_BYXC = self.patch_embed(images_B3SS).contiguous() + self._positions_1YXC
        stages = []
        for i, block in enumerate(self.blocks):
            x_BYXC = block(x_BYXC)
            if i in self.last_blocks:
                stages.append(x_BYXC)
        return stages


class FastBlock(nn.Module):
    """`Block` for inference. Shares its submodules."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = FastAttention(block.attn, block.window_size, dtype)
        self.pools = block.pools
        if block.pools:
            self.proj = block.proj

    def forward(self, x_BYXC: Tensor) -> Tensor:
        return self._forward(x_BYXC) if self.pools else _in_tiles(self._forward, x_BYXC, self.attn.window_size)

    def _forward(self, x_BYXC: Tensor) -> Tensor:
        normed_BYXC = self.norm1(x_BYXC).to(self._dtype)
        if self.pools:
            x_BYXC = pool(fast_linear(normed_BYXC, self.proj.weight, self.proj.bias)).float()
        x_BYXC = x_BYXC + self.attn(normed_BYXC)
        return x_BYXC + fast_mlp(self.mlp, self.norm2(x_BYXC).to(self._dtype))


def _in_tiles(block: Callable[[Tensor], Tensor], x_BYXC: Tensor, window_size: int) -> Tensor:
    """The result of a block that attends in windows and keeps the shape. `window_size` 0 means the whole grid.

    On a CPU with a few cores each computes tiles of whole windows, without synchronisation between cores.
    """
    if window_size == 0 or x_BYXC.device.type != "cpu":
        return block(x_BYXC)
    _, Y, X, _ = x_BYXC.shape
    middle = -(-X // (2 * window_size)) * window_size
    height = window_size * max(1, round(TILE_CELLS / (window_size * middle)))
    sides = [slice(0, middle), slice(middle, X)] if middle < X else [slice(0, X)]
    tiles = [(slice(y, min(y + height, Y)), side) for side in sides for y in range(0, Y, height)]
    threads = all_cores()
    if threads.count == 1 or len(tiles) < TILES_PER_CORE * threads.count:
        return block(x_BYXC)
    out_BYXC = torch.empty_like(x_BYXC)

    @torch.inference_mode(torch.is_inference_mode_enabled())  # these modes are thread-local
    @torch.no_grad()
    def compute(tile: tuple[slice, slice]) -> None:
        out_BYXC[:, *tile] = block(x_BYXC[:, *tile].contiguous())

    # The largest first, so that all cores end at about the same time.
    tiles.sort(key=lambda tile: (tile[0].stop - tile[0].start) * (tile[1].stop - tile[1].start), reverse=True)
    list(threads.map(compute, tiles))
    return out_BYXC


class FastAttention(nn.Module):
    """`Attention` for inference, in windows or, if `window_size` is 0, over the whole grid. Shares its submodules."""

    _qkv_bias: Tensor
    _proj_bias: Tensor

    def __init__(self, attention: Attention, window_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.window_size = window_size
        self.heads, self.pools = attention.heads, attention.pools
        self.qkv, self.proj = attention.qkv, attention.proj
        qkv_bias, proj_bias = fold_biases(self.qkv, self.proj)
        self.register_buffer("_qkv_bias", qkv_bias.to(dtype), persistent=False)
        self.register_buffer("_proj_bias", proj_bias.detach().to(dtype), persistent=False)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        x_VYXC = fast_linear(x_BYXC, self.qkv.weight, self._qkv_bias)
        in_kernel = is_float32_on_cpu(x_VYXC) and torch.get_num_threads() == 1  # it runs in the calling thread
        if in_kernel and self.window_size and not self.pools:
            from maskmill.model.inference.attention_kernels import attend_in_windows

            seen_BYXC = torch.stack([attend_in_windows(x_YXC, self.heads, self.window_size) for x_YXC in x_VYXC])
            return fast_linear(seen_BYXC, self.proj.weight, self._proj_bias)
        if self.window_size:
            x_VYXC = split_windows(x_VYXC, self.window_size)
        x_VYXC = self._attend(*x_VYXC.chunk(3, dim=-1))
        if self.window_size:
            scale = 1 + self.pools
            grid = torch.Size(side // scale for side in x_BYXC.shape[1:3])
            x_VYXC = join_windows(x_VYXC, self.window_size // scale, grid)
        return fast_linear(x_VYXC, self.proj.weight, self._proj_bias)

    def _attend(self, q_VYXC: Tensor, k_VYXC: Tensor, v_VYXC: Tensor) -> Tensor:
        """Returns (V, Y, X, C)."""
        if self.pools:
            q_VYXC = pool(q_VYXC)
        q_VULD, k_VULD, v_VULD = (
            x.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q_VYXC, k_VYXC, v_VYXC)
        )
        if is_float32_on_cpu(q_VULD) and k_VULD.shape[2] > MOST_FUSED_KEYS:
            x_VULD = attend_in_blocks(q_VULD * q_VULD.shape[-1] ** -0.5, k_VULD, v_VULD)
        else:
            x_VULD = F.scaled_dot_product_attention(q_VULD, k_VULD, v_VULD)
        return x_VULD.transpose(1, 2).reshape(q_VYXC.shape)
