"""Transformer blocks of the image encoder for inference: the same function in less time and much less memory.

Windows are zero-padded after the projection to queries, keys and values, so that only cells of the image are projected.
The published code pads before the projection, so its padding cells hold the biases. Zeros give the same result because
the biases of keys and values are not added here: the softmax over keys cancels the key bias, and attention weights sum
to one, so the value bias is added to the output as a constant.

The relative position bias of a score has a row term and a column term. Queries are extended by their terms for each row
and each column, keys by the one-hot vectors of their row and column. The dot product is then the score with its bias,
and the (L, L) bias is never stored.

Shapes: B images, V windows (or whole images for global attention), Y X grid or window in cells, L = Y*X, C channels, U
heads, D features per head, E = Y + X relative position terms, F = D + E for extended queries and keys and D otherwise,
Q queries of one block.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.layers import convert_products, fast_bmm, fast_linear, fast_mlp, is_float32_on_cpu, require_class
from maskmill.model.vitdet import Attention, Block, join_windows, relative_distances, split_windows

QUERIES_PER_BLOCK = 512  # on a CPU: scores of a block fit in its cache
# In float32 on a CPU, PyTorch's fused attention is faster up to this number of keys, plain matrix products above it.
MOST_FUSED_KEYS = 512


def speed_up(encoder: Any, dtype: torch.dtype) -> None:
    """Replaces the ViTDet blocks in `encoder.blocks` by their inference form, in place. Parameters keep their names.

    Matrix multiplications and convolutions run in `dtype`, norms and residual sums in float32. Raises TypeError if a
    block is not exactly a `Block`.
    """
    for name, block in encoder.blocks.named_children():
        require_class(f"image_encoder.blocks.{name}", block, Block)
    encoder.blocks = nn.ModuleList(FastBlock(cast(Block, block), dtype) for block in encoder.blocks)
    convert_products(encoder, dtype)


class FastBlock(nn.Module):
    """`Block` for inference. Shares the submodules of `block`."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = FastAttention(block.attn, block.window_size, dtype)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        x_BYXC = x_BYXC.contiguous()  # the stem returns a channels-first memory layout
        x_BYXC = x_BYXC + self.attn(self.norm1(x_BYXC).to(self._dtype))
        return x_BYXC + fast_mlp(self.mlp, self.norm2(x_BYXC).to(self._dtype))


class FastAttention(nn.Module):
    """`Attention` for inference, in windows or, if `window_size` is 0, over the whole grid. Shares its submodules."""

    _qkv_bias: Tensor
    _proj_bias: Tensor
    _rows_YDY: Tensor
    _columns_XDX: Tensor
    _cells_LE: Tensor

    def __init__(self, attention: Attention, window_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.window_size = window_size
        self.heads = attention.heads
        self.qkv, self.proj = attention.qkv, attention.proj
        qkv_bias, proj_bias = fold_biases(self.qkv, self.proj)
        derived = {"_qkv_bias": qkv_bias, "_proj_bias": proj_bias}
        self.relative_positions = attention.relative_positions
        if self.relative_positions:
            self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w
            side = (len(self.rel_pos_h) + 1) // 2
            distances = relative_distances(side, self.qkv.bias.device)
            unit = torch.eye(side, device=self.qkv.bias.device)
            derived["_rows_YDY"] = self.rel_pos_h[distances].mT
            derived["_columns_XDX"] = self.rel_pos_w[distances].mT
            derived["_cells_LE"] = torch.cat([unit.repeat_interleave(side, dim=0), unit.repeat(side, 1)], dim=1)
        for name, tensor in derived.items():
            self.register_buffer(name, tensor.detach().to(dtype).contiguous(), persistent=False)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        x_VYXC = fast_linear(x_BYXC, self.qkv.weight, self._qkv_bias)
        if self.window_size:
            x_VYXC = split_windows(x_VYXC, self.window_size)
        x_VYXC = self._attend(*x_VYXC.unflatten(-1, (3, self.heads, -1)).unbind(3))
        if self.window_size:
            x_VYXC = join_windows(x_VYXC, self.window_size, grid=x_BYXC.shape[1:3])
        return fast_linear(x_VYXC, self.proj.weight, self._proj_bias)

    def _attend(self, q_VYXUD: Tensor, k_VYXUD: Tensor, v_VYXUD: Tensor) -> Tensor:
        """Returns (V, Y, X, C)."""
        q_VULF, k_VULF, v_VULD = (_by_head(x) for x in (q_VYXUD * q_VYXUD.shape[-1] ** -0.5, k_VYXUD, v_VYXUD))
        biases = []
        if self.relative_positions:
            by_row_VYXUY = torch.einsum("vyxud,ydk->vyxuk", q_VYXUD, self._rows_YDY)
            by_column_VYXUX = torch.einsum("vyxud,xdk->vyxuk", q_VYXUD, self._columns_XDX)
            biases = [_by_head(by_row_VYXUY), _by_head(by_column_VYXUX)]
            # For float32 on a CPU longer products cost more than adding the bias terms to the scores.
            if not is_float32_on_cpu(q_VYXUD):
                q_VULF = torch.cat([q_VULF, *biases], dim=-1)
                k_VULF = torch.cat([k_VULF, self._cells_LE.expand(*k_VULF.shape[:2], -1, -1)], dim=-1)
                biases = []
        attend = attend_in_blocks if v_VULD.device.type == "cpu" else _attend_fused
        return attend(q_VULF, k_VULF, v_VULD, *biases).transpose(1, 2).reshape(*q_VYXUD.shape[:3], -1)


def fold_biases(qkv: nn.Linear, proj: nn.Linear) -> tuple[Tensor, Tensor]:
    """The biases of both projections (3C,) and (C,), without those of keys and values: see the top of this file."""
    query_C, key_C, value_C = qkv.bias.detach().chunk(3)
    return torch.cat([query_C, torch.zeros_like(key_C), torch.zeros_like(value_C)]), proj(value_C)


def _by_head(x_VYXUF: Tensor) -> Tensor:
    """Returns (V, U, L, F)."""
    return x_VYXUF.flatten(1, 2).transpose(1, 2)


def _attend_fused(q_VULF: Tensor, k_VULF: Tensor, v_VULD: Tensor) -> Tensor:
    """Returns (V, U, L, D). The fused kernel stores no scores, but requires values with as many features as keys."""
    v_VULF = F.pad(v_VULD, (0, k_VULF.shape[-1] - v_VULD.shape[-1]))
    return F.scaled_dot_product_attention(q_VULF, k_VULF, v_VULF, scale=1.0)[..., : v_VULD.shape[-1]]


def attend_in_blocks(q_VULF: Tensor, k_VULF: Tensor, v_VULD: Tensor, *biases: Tensor) -> Tensor:
    """Returns (V, U, L, D). There may be fewer queries than keys."""
    tensors = [q_VULF, k_VULF, v_VULD, *biases]
    if v_VULD.shape[2] > QUERIES_PER_BLOCK:
        tensors = [x.contiguous().flatten(0, 1).unsqueeze(1) for x in tensors]  # one head at a time
    return torch.stack([_attend_window(*window) for window in zip(*tensors, strict=True)]).view(*q_VULF.shape[:3], -1)


def _attend_window(q_ULF: Tensor, k_ULF: Tensor, v_ULD: Tensor, *biases: Tensor) -> Tensor:
    """Returns (U, L, D)."""
    parts = []
    for q_UQF, *biases_UQ in zip(*(x.split(QUERIES_PER_BLOCK, dim=1) for x in (q_ULF, *biases)), strict=True):
        score_UQL = fast_bmm(q_UQF, k_ULF.mT)
        if biases_UQ:
            by_row_UQY, by_column_UQX = biases_UQ
            score_UQYX = score_UQL.unflatten(-1, (by_row_UQY.shape[-1], -1))
            score_UQYX += by_row_UQY[..., :, None]
            score_UQYX += by_column_UQX[..., None, :]
        parts.append(fast_bmm(score_UQL.softmax(dim=-1), v_ULD))
    return torch.cat(parts, dim=1)
