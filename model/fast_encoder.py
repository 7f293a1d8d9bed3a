"""The image encoder's blocks in a form for inference: the same function in less time and much less memory.

Windows are padded after the projection to queries, keys and values instead of before it, so that only cells of the
image are projected. Zeros are right there because two of the three biases can leave the attention: the key's cancels in
the softmax over keys, and the value's passes through unchanged, because what attention hands out sums to one.

Relative positions go into queries and keys: a query is extended by what it adds to its scores with each row and with
each column, a key by the unit vectors of its row and its column. Their product is the whole score; a bias of (L, L) is
never stored.

Shapes: B images, X windows or whole images, H W grid in cells, L = H*W, C width, N heads, D features per head,
P = H+W positions, F = D+P where queries and keys are extended and D where not, Q queries at a time.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.image_encoder import Attention, Block, ImageEncoder, join_windows, relative_distances, split_windows
from maskmill.model.layers import fast_linear, is_float32_on_cpu, require_class

# What is worked on together on a CPU, so that scores and hidden features stay in its cache.
QUERIES_AT_ONCE = 512
CELLS_AT_ONCE = 1024


def speed_up(encoder: ImageEncoder, dtype: torch.dtype) -> None:
    """Makes an encoder, in place, one for inference that multiplies in `dtype`. Parameters keep their names.

    Norms and residual sums stay in float32. Raises TypeError where a block is of another class than `Block`.
    """
    for name, block in encoder.blocks.named_children():
        require_class(f"image_encoder.blocks.{name}", block, Block)
    encoder.blocks = nn.ModuleList(FastBlock(cast(Block, block), dtype) for block in encoder.blocks)
    # Autocast would convert these weights again in every call.
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


class FastBlock(nn.Module):
    """`Block`, made of the parts of one."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = FastAttention(block.attn, block.window_size, dtype)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        x_BYXC = x_BYXC.contiguous()  # The stem leaves channels first in memory.
        x_BYXC = x_BYXC + self.attn(self.norm1(x_BYXC).to(self._dtype))
        return x_BYXC + self._perceive(self.norm2(x_BYXC).to(self._dtype))

    def _perceive(self, x_BYXC: Tensor) -> Tensor:
        """The perceptron."""
        lin1, lin2 = self.mlp.lin1, self.mlp.lin2
        parts = x_BYXC.flatten(0, 2).split(CELLS_AT_ONCE if x_BYXC.device.type == "cpu" else x_BYXC.numel())
        hidden = (self.mlp.activation(fast_linear(part, lin1.weight, lin1.bias)) for part in parts)
        return torch.cat([fast_linear(part, lin2.weight, lin2.bias) for part in hidden]).view_as(x_BYXC)


class FastAttention(nn.Module):
    """`Attention` in windows, or over the whole grid where `window_size` is 0, made of the parts of one."""

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
        query_C, key_C, value_C = self.qkv.bias.detach().chunk(3)
        derived = {
            "_qkv_bias": torch.cat([query_C, torch.zeros_like(key_C), torch.zeros_like(value_C)]),
            "_proj_bias": self.proj(value_C),
        }
        self.relative_positions = attention.relative_positions
        if self.relative_positions:
            self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w
            side = (len(self.rel_pos_h) + 1) // 2
            distances = relative_distances(side, value_C.device)
            unit = torch.eye(side, device=value_C.device)
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
        """(V, Y, X, C)."""
        q_VULF, k_VULF, v_VULD = (_by_head(x) for x in (q_VYXUD * q_VYXUD.shape[-1] ** -0.5, k_VYXUD, v_VYXUD))
        biases = []
        if self.relative_positions:
            by_row_VYXUY = torch.einsum("vyxud,ydk->vyxuk", q_VYXUD, self._rows_YDY)
            by_column_VYXUX = torch.einsum("vyxud,xdk->vyxuk", q_VYXUD, self._columns_XDX)
            biases = [_by_head(by_row_VYXUY), _by_head(by_column_VYXUX)]
            if not is_float32_on_cpu(q_VYXUD):  # there products cost so much that it is sums that should be made
                q_VULF = torch.cat([q_VULF, *biases], dim=-1)
                k_VULF = torch.cat([k_VULF, self._cells_LE.expand(*k_VULF.shape[:2], -1, -1)], dim=-1)
                biases = []
        attend = _attend_in_pieces if v_VULD.device.type == "cpu" else _attend_at_once
        return attend(q_VULF, k_VULF, v_VULD, *biases).transpose(1, 2).reshape(*q_VYXUD.shape[:3], -1)


def _by_head(x_VYXUF: Tensor) -> Tensor:
    """(V, U, L, F)."""
    return x_VYXUF.flatten(1, 2).transpose(1, 2)


def _attend_at_once(q_VULF: Tensor, k_VULF: Tensor, v_VULD: Tensor) -> Tensor:
    """(V, U, L, D), by a kernel that stores no scores but wants values as long as keys."""
    v_VULF = F.pad(v_VULD, (0, k_VULF.shape[-1] - v_VULD.shape[-1]))
    return F.scaled_dot_product_attention(q_VULF, k_VULF, v_VULF, scale=1.0)[..., : v_VULD.shape[-1]]


def _attend_in_pieces(q_VULF: Tensor, k_VULF: Tensor, v_VULD: Tensor, *biases: Tensor) -> Tensor:
    """(V, U, L, D). On CPUs PyTorch's kernel takes twice as long as plain products of this size."""
    tensors = [q_VULF, k_VULF, v_VULD.mT, *biases]
    if v_VULD.shape[2] > QUERIES_AT_ONCE:
        tensors = [x.contiguous().flatten(0, 1).unsqueeze(1) for x in tensors]  # head by head
    return torch.stack([_attend_piece(*piece) for piece in zip(*tensors, strict=True)]).view_as(v_VULD)


def _attend_piece(q_ULF: Tensor, k_ULF: Tensor, v_UDL: Tensor, *biases: Tensor) -> Tensor:
    """(U, L, D)."""
    parts = []
    for q_UQF, *biases_UQ in zip(*(x.split(QUERIES_AT_ONCE, dim=1) for x in (q_ULF, *biases)), strict=True):
        score_UQL = _multiply(q_UQF, k_ULF)
        if biases_UQ:
            by_row_UQY, by_column_UQX = biases_UQ
            score_UQYX = score_UQL.unflatten(-1, (by_row_UQY.shape[-1], -1))
            score_UQYX += by_row_UQY[..., :, None]
            score_UQYX += by_column_UQX[..., None, :]
        parts.append(_multiply(score_UQL.softmax(dim=-1), v_UDL))
    return torch.cat(parts, dim=1)


def _multiply(x_UQI: Tensor, y_UOI: Tensor) -> Tensor:
    """Matrix products (U, Q, O) over the inner axis I."""
    return fast_linear(x_UQI[0], y_UOI[0])[None] if len(x_UQI) == 1 else x_UQI @ y_UOI.mT
