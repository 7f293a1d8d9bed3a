import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as coco

from maskmill.filters import rle

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


def measure(counts: list[bytes], size: tuple[int, int]) -> tuple[list[int], list[list[int]], dict[int, str]]:
    heights, widths = (np.full(len(counts), side) for side in size)
    area, boxes, faults = rle.measure(counts, heights, widths)
    return area.tolist(), boxes.tolist(), faults


@settings(deadline=None)
@given(masks_NHW=arrays(np.bool_, array_shapes(min_dims=3, max_dims=3, max_side=30)))
def test_measure_agrees_with_the_masks(masks_NHW: NDArray[np.bool_]):
    size = masks_NHW.shape[1:]
    counts = [rle.encode(mask_HW) for mask_HW in masks_NHW]
    expected_boxes = [list(rle.bbox(c, *size)) for c in counts]
    assert measure(counts, size) == (masks_NHW.sum(axis=(1, 2)).tolist(), expected_boxes, {})


def test_measure_takes_no_masks():
    assert measure([], (4, 4)) == ([], [], {})


@pytest.mark.parametrize("size", [(4000, 3000), (1, 70_000)])
def test_measure_and_decode_agree_with_the_mask_when_runs_are_long(size: tuple[int, int]):
    mask_HW = np.zeros(size, np.bool_)
    mask_HW[size[0] // 2 :, size[1] // 3 : -5] = True
    counts = rle.encode(mask_HW)
    assert measure([counts], size) == ([mask_HW.sum()], [list(rle.bbox(counts, *size))], {})
    np.testing.assert_array_equal(rle.decode(counts, *size), mask_HW)


def test_measure_says_what_is_wrong_with_each_and_measures_the_others():
    sound = rle.encode(np.eye(4, dtype=np.bool_))
    bad = [b"", b"0\x7f", sound + b"o", sound[:-1], b"P" * 8 + b"0", b"00O0", sound + b"1"]
    counts = [part for damaged in bad for part in (damaged, sound)]
    area, boxes, faults = measure(counts, (4, 4))
    assert area == [0, 4] * len(bad)
    assert boxes == [[0, 0, 0, 0], [0, 0, 3, 3]] * len(bad)
    assert [faults[2 * index] for index in range(len(bad))] == [
        "is empty or has characters that are not COCO's",
        "is empty or has characters that are not COCO's",
        "ends within a number",
        "covers 15 pixels of 16",
        "has a number that is too long",
        "has a run of negative length",
        "covers 21 pixels of 16",
    ]
    assert len(faults) == len(bad)


@settings(deadline=None)
@given(counts=st.binary(max_size=20) | st.binary(max_size=20).map(lambda data: bytes(48 + byte % 64 for byte in data)))
def test_decode_and_measure_agree_when_counts_are_hostile(counts: bytes):
    area, boxes, faults = measure([counts], (3, 5))
    if faults:
        with pytest.raises(ValueError, match="these counts are no mask: the RLE "):
            rle.decode(counts, 3, 5)
    else:
        mask_HW = rle.decode(counts, 3, 5)
        assert area == [mask_HW.sum()]
        assert boxes == [list(rle.bbox(rle.encode(mask_HW), 3, 5))]


@settings(deadline=None)
@given(masks)
def test_changes_along_the_columns_make_the_same_counts(mask_HW):
    height = mask_HW.shape[0]
    # A row of zeros below: what ends with a column and begins with the next one changes twice at one position.
    columns = np.pad(mask_HW.T, ((0, 0), (0, 1))).ravel()
    changes = np.flatnonzero(np.diff(columns, prepend=False))
    assert rle.from_changes([changes - changes // (height + 1)], mask_HW.size) == [rle.encode(mask_HW)]


def test_counts_of_long_runs_are_those_of_pycocotools():
    height, width = 2**15, 2**14
    changes = np.array([5, 2**28, 2**28 + 1, 2**29 - 1])
    lengths = np.diff(changes, prepend=0, append=height * width).tolist()
    theirs = coco.frPyObjects({"counts": lengths, "size": [height, width]}, height, width)["counts"]
    assert rle.from_changes([changes, changes], height * width) == [theirs, theirs]


def test_no_change_is_an_empty_mask_and_no_mask_is_none():
    none = np.empty(0, np.int64)
    assert rle.from_changes([none], 6) == [rle.encode(np.zeros((2, 3), np.bool_))]
    assert rle.from_changes([], 6) == []
