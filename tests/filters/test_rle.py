import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from filters import rle

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans())


@settings(deadline=None)
@given(masks)
def test_decode_undoes_encode(mask_HW):
    decoded = rle.decode(rle.encode(mask_HW), *mask_HW.shape)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, mask_HW)


@settings(deadline=None)
@given(masks)
def test_area_is_the_pixel_count(mask_HW):
    assert rle.area(rle.encode(mask_HW), *mask_HW.shape) == mask_HW.sum()


@settings(deadline=None)
@given(masks)
def test_bbox_is_the_extent_of_the_mask(mask_HW):
    rows, columns = mask_HW.any(axis=1).nonzero()[0], mask_HW.any(axis=0).nonzero()[0]
    expected = (0, 0, 0, 0)
    if len(rows):
        expected = (columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0])
    assert rle.bbox(rle.encode(mask_HW), *mask_HW.shape) == expected


@settings(deadline=None)
@given(masks)
def test_encode_is_the_same_when_memory_is_laid_out_by_column(mask_HW):
    assert rle.encode(np.asfortranarray(mask_HW)) == rle.encode(mask_HW)


def test_counts_run_down_the_columns_and_start_with_zeros():
    # Column by column: 1 0, 1 1: no zero, one 1, one 0, two 1s.
    counts = rle.encode(np.array([[True, True], [False, True]]))
    # COCO writes each count as characters from "0" on, from the fourth on as the difference to two before.
    assert counts == b"0111"


@settings(deadline=None)
@given(mask_HW=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_measure_agrees_with_the_mask(mask_HW: NDArray[np.bool_]):
    height, width = mask_HW.shape
    counts = rle.encode(mask_HW)
    area, box = rle.measure(rle.run_lengths(counts), height, width)
    assert area == mask_HW.sum()
    assert box == rle.bbox(counts, height, width)


@pytest.mark.parametrize("size", [(4000, 3000), (1, 70_000)])
def test_measure_agrees_with_the_mask_when_runs_are_long(size: tuple[int, int]):
    mask_HW = np.zeros(size, np.bool_)
    mask_HW[size[0] // 2 :, size[1] // 3 : -5] = True
    area, box = rle.measure(rle.run_lengths(rle.encode(mask_HW)), *size)
    assert area == mask_HW.sum()
    assert box == rle.bbox(rle.encode(mask_HW), *size)


@settings(deadline=None)
@given(counts=st.binary(max_size=20) | st.binary(max_size=20).map(lambda data: bytes(48 + byte % 64 for byte in data)))
def test_run_lengths_are_sound_or_refused(counts: bytes):
    try:
        runs = rle.run_lengths(counts)
    except ValueError:
        return
    assert runs.min() >= 0
