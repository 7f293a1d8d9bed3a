"""Matches two sets of masks one to one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def match(iou_NK: NDArray[np.float64], threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows (M,) and columns (M,) of M pairs: greedy, best IoU first, each mask in one pair, down to `threshold`."""
    n, k = np.nonzero(iou_NK >= threshold)
    pairs: list[tuple[int, int]] = []
    taken_n: set[int] = set()
    taken_k: set[int] = set()
    for pair in np.argsort(-iou_NK[n, k], kind="stable"):
        row, column = int(n[pair]), int(k[pair])
        if row not in taken_n and column not in taken_k:
            taken_n.add(row)
            taken_k.add(column)
            pairs.append((row, column))
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    return rows, columns
