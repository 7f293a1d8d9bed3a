"""Matrix products inside kernels are those of NumPy, for any shape and strides, and write nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskmill.model.inference.attention_kernels import attend_in_windows
from maskmill.model.inference.matrix_tiles import add_product, add_product_of_rows
from maskmill.model.vitdet import join_windows, split_windows

sizes = st.integers(0, 20) | st.sampled_from([57, 63, 64, 65, 128, 200])


def window(rows: int, columns: int, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A matrix, and a view of a part of it. The tests check that a product changes nothing outside the view."""
    whole = random.standard_normal((rows + 2, columns + 30), dtype=np.float32)
    return whole, whole[1 : rows + 1, 7 : columns + 7]


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.booleans())
def test_product(rows: int, length: int, columns: int, transposed: bool) -> None:
    random = np.random.default_rng(rows + 1000 * columns)
    a, (_, b), (whole, c) = (
        random.standard_normal((length, rows), dtype=np.float32).T
        if transposed
        else random.standard_normal((rows, length), dtype=np.float32),
        window(length, columns, random),
        window(rows, columns, random),
    )
    expected = whole.copy()
    expected[1 : rows + 1, 7 : columns + 7] += a.astype(np.float64) @ b.astype(np.float64)
    add_product(a, b, c)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes)
def test_product_of_rows(rows: int, length: int, columns: int) -> None:
    random = np.random.default_rng(rows + 1000 * columns)
    (_, a), (_, b), (whole, c) = (
        window(*shape, random) for shape in ((rows, length), (columns, length), (rows, columns))
    )
    expected = whole.copy()
    expected[1 : rows + 1, 7 : columns + 7] += a.astype(np.float64) @ b.astype(np.float64).T
    add_product_of_rows(a, b, c)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("grid", "side"), [((8, 12), 4), ((9, 5), 4), ((3, 3), 7), ((14, 28), 14)])
def test_attention_in_windows_is_torchs(grid: tuple[int, int], side: int) -> None:
    torch.manual_seed(0)
    qkv_YXK, heads = 2 * torch.randn(*grid, 3 * 24), 3
    windows = split_windows(qkv_YXK[None], side)
    q, k, v = (x.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2) for x in windows.chunk(3, dim=-1))
    seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*windows.shape[:3], 24)
    expected = join_windows(seen, side, torch.Size(grid))[0]
    torch.testing.assert_close(attend_in_windows(qkv_YXK, heads, side), expected, rtol=1e-5, atol=1e-5)
