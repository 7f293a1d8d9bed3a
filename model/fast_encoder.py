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

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_BHWC = x_BHWC.contiguous()  # The stem leaves channels first in memory.
        x_BHWC = x_BHWC + self.attn(self.norm1(x_BHWC).to(self._dtype))
        return x_BHWC + self._perceive(self.norm2(x_BHWC).to(self._dtype))

    def _perceive(self, x_BHWC: Tensor) -> Tensor:
        """The perceptron."""
        lin1, lin2 = self.mlp.lin1, self.mlp.lin2
        parts = x_BHWC.flatten(0, 2).split(CELLS_AT_ONCE if x_BHWC.device.type == "cpu" else x_BHWC.numel())
        hidden = (self.mlp.activation(fast_linear(part, lin1.weight, lin1.bias)) for part in parts)
        return torch.cat([fast_linear(part, lin2.weight, lin2.bias) for part in hidden]).view_as(x_BHWC)


class FastAttention(nn.Module):
    """`Attention` in windows, or over the whole grid where `window_size` is 0, made of the parts of one."""

    _qkv_bias: Tensor
    _proj_bias: Tensor
    _rows_HDH: Tensor
    _columns_WDW: Tensor
    _cells_LP: Tensor

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
            derived["_rows_HDH"] = self.rel_pos_h[distances].mT
            derived["_columns_WDW"] = self.rel_pos_w[distances].mT
            derived["_cells_LP"] = torch.cat([unit.repeat_interleave(side, dim=0), unit.repeat(side, 1)], dim=1)
        for name, tensor in derived.items():
            self.register_buffer(name, tensor.detach().to(dtype).contiguous(), persistent=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        x_XHWC = fast_linear(x_BHWC, self.qkv.weight, self._qkv_bias)
        if self.window_size:
            x_XHWC = split_windows(x_XHWC, self.window_size)
        x_XHWC = self._attend(*x_XHWC.unflatten(-1, (3, self.heads, -1)).unbind(3))
        if self.window_size:
            x_XHWC = join_windows(x_XHWC, self.window_size, grid=x_BHWC.shape[1:3])
        return fast_linear(x_XHWC, self.proj.weight, self._proj_bias)

    def _attend(self, q_XHWND: Tensor, k_XHWND: Tensor, v_XHWND: Tensor) -> Tensor:
        """(X, H, W, C)."""
        q_XNLF, k_XNLF, v_XNLD = (_by_head(x) for x in (q_XHWND * q_XHWND.shape[-1] ** -0.5, k_XHWND, v_XHWND))
        biases = []
        if self.relative_positions:
            by_row_XHWNH = torch.einsum("xhwnd,hdk->xhwnk", q_XHWND, self._rows_HDH)
            by_column_XHWNW = torch.einsum("xhwnd,wdk->xhwnk", q_XHWND, self._columns_WDW)
            biases = [_by_head(by_row_XHWNH), _by_head(by_column_XHWNW)]
            if not is_float32_on_cpu(q_XHWND):  # there products cost so much that it is sums that should be made
                q_XNLF = torch.cat([q_XNLF, *biases], dim=-1)
                k_XNLF = torch.cat([k_XNLF, self._cells_LP.expand(*k_XNLF.shape[:2], -1, -1)], dim=-1)
                biases = []
        attend = _attend_in_pieces if v_XNLD.device.type == "cpu" else _attend_at_once
        return attend(q_XNLF, k_XNLF, v_XNLD, *biases).transpose(1, 2).reshape(*q_XHWND.shape[:3], -1)


def _by_head(x_XHWNF: Tensor) -> Tensor:
    """(X, N, L, F)."""
    return x_XHWNF.flatten(1, 2).transpose(1, 2)


def _attend_at_once(q_XNLF: Tensor, k_XNLF: Tensor, v_XNLD: Tensor) -> Tensor:
    """(X, N, L, D), by a kernel that stores no scores but wants values as long as keys."""
    v_XNLF = F.pad(v_XNLD, (0, k_XNLF.shape[-1] - v_XNLD.shape[-1]))
    return F.scaled_dot_product_attention(q_XNLF, k_XNLF, v_XNLF, scale=1.0)[..., : v_XNLD.shape[-1]]


def _attend_in_pieces(q_XNLF: Tensor, k_XNLF: Tensor, v_XNLD: Tensor, *biases: Tensor) -> Tensor:
    """(X, N, L, D). On CPUs PyTorch's kernel takes twice as long as plain products of this size."""
    tensors = [q_XNLF, k_XNLF, v_XNLD.mT, *biases]
    if v_XNLD.shape[2] > QUERIES_AT_ONCE:
        tensors = [x.contiguous().flatten(0, 1).unsqueeze(1) for x in tensors]  # head by head
    return torch.stack([_attend_piece(*piece) for piece in zip(*tensors, strict=True)]).view_as(v_XNLD)


def _attend_piece(q_NLF: Tensor, k_NLF: Tensor, v_NDL: Tensor, *biases: Tensor) -> Tensor:
    """(N, L, D)."""
    parts = []
    for q_NQF, *biases_NQ in zip(*(x.split(QUERIES_AT_ONCE, dim=1) for x in (q_NLF, *biases)), strict=True):
        score_NQL = _multiply(q_NQF, k_NLF)
        if biases_NQ:
            by_row_NQH, by_column_NQW = biases_NQ
            score_NQHW = score_NQL.unflatten(-1, (by_row_NQH.shape[-1], -1))
            score_NQHW += by_row_NQH[..., :, None]
            score_NQHW += by_column_NQW[..., None, :]
        parts.append(_multiply(score_NQL.softmax(dim=-1), v_NDL))
    return torch.cat(parts, dim=1)


def _multiply(x_NQF: Tensor, y_NKF: Tensor) -> Tensor:
    """(N, Q, K)."""
    return fast_linear(x_NQF[0], y_NKF[0])[None] if len(x_NQF) == 1 else x_NQF @ y_NKF.mT
