"""Measurements and set operations on RLEs equal those on pixels and those of pycocotools."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco

from maskmill.filters import rle
from maskmill.filters import rle_algebra as algebra
from maskmill.filters.rle_algebra import Operation, Polygon
from testing.synthetic_runs import mask_pool

Mask = NDArray[np.bool_]

no_deadline = settings(deadline=None)  # the first call compiles the kernel


@st.composite
def masks(draw: st.DrawFn, count: int) -> list[Mask]:
    """Masks of one size: noise, the empty mask, the full mask, one column; h or w may be 1."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return [_mask(draw, height, width) for _ in range(count)]


def _mask(draw: st.DrawFn, height: int, width: int) -> Mask:
    match draw(st.sampled_from(["noise", "blocks", "empty", "full", "column"])):
        case "noise":
            return draw(arrays(np.bool_, (height, width)))
        case "blocks":  # runs that continue in the next column, holes
            coarse = draw(arrays(np.bool_, (-(-height // 3), -(-width // 3))))
            return np.kron(coarse, np.ones((3, 3), np.bool_))[:height, :width]
        case "empty":
            return np.zeros((height, width), np.bool_)
        case "full":
            return np.ones((height, width), np.bool_)
        case _:
            mask = np.zeros((height, width), np.bool_)
            mask[:, draw(st.integers(0, width - 1))] = True
            return mask


def _batch(masks: list[Mask]) -> tuple[algebra.Packed, NDArray[np.int64], NDArray[np.int64]]:
    heights, widths = (np.array([mask.shape[axis] for mask in masks], np.int64) for axis in (0, 1))
    return algebra.pack([rle.encode(mask) for mask in masks]), heights, widths


def _coco(mask: Mask) -> Any:
    return {"size": list(mask.shape), "counts": rle.encode(mask)}


@no_deadline
@given(masks(1))
def test_area_box_and_parts_are_those_of_the_pixels(drawn: list[Mask]):
    (mask,) = drawn
    batch, heights, widths = _batch(drawn)
    assert algebra.area(batch).tolist() == [coco.area(_coco(mask))]
    assert tuple(algebra.boxes(batch, heights, widths)[0]) == rle.bbox(batch[0], *mask.shape)
    assert algebra.components(batch, heights, widths).tolist() == [
        cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
    ]
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    assert algebra.holes(batch, heights, widths).tolist() == [cv2.connectedComponents(outside, connectivity=4)[0] - 2]


@no_deadline
@given(masks(2))
def test_pairs_are_those_of_pycocotools(drawn: list[Mask]):
    a, b = drawn
    (batch_a, heights, widths), (batch_b, _, _) = _batch([a]), _batch([b])
    arguments = batch_a, batch_b, heights, widths
    assert algebra.iou(*arguments).tolist() == coco.iou([_coco(a)], [_coco(b)], [0])[0].tolist()
    # For a crowd, pycocotools divides by the area of the first mask.
    assert algebra.contains(*arguments).tolist() == coco.iou([_coco(b)], [_coco(a)], [1])[0].tolist()
    assert algebra.combine(Operation.INTERSECTION, *arguments)[0] == coco.merge([_coco(a), _coco(b)], True)["counts"]
    assert algebra.combine(Operation.UNION, *arguments)[0] == coco.merge([_coco(a), _coco(b)])["counts"]
    assert algebra.combine(Operation.DIFFERENCE, *arguments)[0] == rle.encode(a & ~b)


@no_deadline
@given(st.lists(masks(3), max_size=4))
def test_rows_of_a_batch_do_not_depend_on_each_other(drawn: list[list[Mask]]):
    # Images of several sizes; masks that repeat, some of them next to each other.
    a = [mask for image in drawn for mask in (image[0], image[0], image[1], image[2], image[0])]
    b = [mask for image in drawn for mask in (image[1], image[1], image[1], image[0], image[0])]
    (batch_a, heights, widths), (batch_b, _, _) = _batch(a), _batch(b)
    for function in (algebra.iou, algebra.contains):
        alone = [function(*_batch([x])[:1], *_batch([y]))[0] for x, y in zip(a, b, strict=True)]
        assert function(batch_a, batch_b, heights, widths).tolist() == alone
    union = algebra.combine(Operation.UNION, batch_a, batch_b, heights, widths)
    assert [union[k] for k in range(len(a))] == [rle.encode(x | y) for x, y in zip(a, b, strict=True)]
    assert algebra.components(batch_a, heights, widths).tolist() == [
        cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1 for mask in a
    ]


@no_deadline
@given(masks(6))
def test_matrix_of_ious_is_that_of_pycocotools(drawn: list[Mask]):
    counts = [rle.encode(mask) for mask in drawn]
    for several in (1, 6):  # few pairs go through the intervals of masks, many through their columns
        expected = coco.iou([_coco(mask) for mask in drawn[:several]], [_coco(mask) for mask in drawn], [0] * 6)
        np.testing.assert_array_equal(algebra.iou_matrix(counts[:several], counts, *drawn[0].shape), expected)
    assert algebra.iou_matrix(counts, [], *drawn[0].shape).shape == (6, 0)
    assert algebra.iou_matrix([], counts, *drawn[0].shape).shape == (0, 6)


def test_matrix_of_masks_of_objects_is_that_of_pycocotools():
    pool = mask_pool(60, 300, 400)
    rles: list[Any] = [{"size": [300, 400], "counts": counts} for counts in pool.counts]
    ious = algebra.iou_matrix(pool.counts, pool.counts, 300, 400)
    np.testing.assert_array_equal(ious, coco.iou(rles, rles, [0] * 60))
    assert (ious > 0).sum() > 200


@no_deadline
@given(masks(1), st.floats(-2, 14), st.floats(-2, 14))
def test_point_is_in_the_mask_that_has_its_pixel(drawn: list[Mask], x: float, y: float):
    (mask,) = drawn
    inside = 0 <= x < mask.shape[1] and 0 <= y < mask.shape[0] and bool(mask[int(y), int(x)])
    assert algebra.at(*_batch(drawn), np.array([x]), np.array([y])).tolist() == [inside]


# Polygons.


def _filled(polygons: list[Polygon], height: int, width: int) -> NDArray[np.int64]:
    """How many polygons cover each pixel, by the number of sides to the left of its centre."""
    covered = np.zeros((height, width), np.int64)
    for polygon in polygons:
        crossings = np.zeros((height, width), np.int64)
        for ring in polygon:
            for (x, y), (x_next, y_next) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
                if x == x_next:
                    crossings[min(y, y_next) : max(y, y_next), x:] += 1
        covered += crossings % 2
    return covered


def _twice_signed_area(ring: NDArray[np.int32]) -> int:
    x, y = ring.T.astype(int)
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


@no_deadline
@given(masks(1))
def test_polygons_cover_the_mask_and_nothing_else(drawn: list[Mask]):
    (mask,) = drawn
    polygons = algebra.polygons(rle.encode(mask), *mask.shape)
    np.testing.assert_array_equal(_filled(polygons, *mask.shape), mask)
    assert len(polygons) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
    for polygon in polygons:
        assert [_twice_signed_area(ring) > 0 for ring in polygon] == [True] + [False] * (len(polygon) - 1)
        for ring in polygon:
            assert len(np.unique(ring, axis=0)) == len(ring) >= 4  # no corner twice
            turns = np.roll(ring, -1, axis=0) - ring
            assert ((turns == 0).sum(axis=1) == 1).all()  # along pixel sides
            assert (
                np.flatnonzero(turns[:, 0]) % 2 == np.flatnonzero(turns[:, 0])[0] % 2
            ).all()  # every corner is a turn


def test_polygon_of_a_ring_has_its_hole():
    mask = np.ones((5, 6), np.bool_)
    mask[2, 2:4] = False
    (polygon,) = algebra.polygons(rle.encode(mask), 5, 6)
    outline, hole = ({tuple(corner) for corner in ring.tolist()} for ring in polygon)
    assert outline == {(0, 0), (6, 0), (6, 5), (0, 5)}
    assert hole == {(2, 2), (4, 2), (4, 3), (2, 3)}


# Counts that are no mask.


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"", "is empty or has characters that are not COCO's"),
        (b"0:\x01", "is empty or has characters that are not COCO's"),
        (b"0:p", "is empty or has characters that are not COCO's"),
        (b"0Z", "ends within a number"),
        (b"oooooooo0", "has a number that is too long"),
        (b"O<", "has a run of negative length"),
        (b"05", "covers 5 pixels of 12"),
        (b"0<0005", "covers"),
    ],
)
def test_counts_that_are_no_mask_are_refused_in_every_function(counts: bytes, message: str):
    good, bad = algebra.pack([b"0<"] * 2), algebra.pack([b"0<", counts])
    size = np.array([3, 3]), np.array([4, 4])
    zero = np.zeros(2)
    calls = {
        "boxes": lambda: algebra.boxes(bad, *size),
        "iou": lambda: algebra.iou(good, bad, *size),
        "contains": lambda: algebra.contains(bad, good, *size),
        "combine": lambda: algebra.combine(Operation.UNION, bad, good, *size),
        "at": lambda: algebra.at(bad, *size, zero, zero),
        "components": lambda: algebra.components(bad, *size),
        "holes": lambda: algebra.holes(bad, *size),
        "polygons": lambda: algebra.polygons(counts, 3, 4),
        "matrix": lambda: algebra.iou_matrix([b"0<"], [b"0<", counts], 3, 4),
    }
    if not message.startswith("covers"):
        calls["area"] = lambda: algebra.area(bad)
    for call in calls.values():
        with pytest.raises(ValueError, match=f"these counts are no mask: the RLE {message}"):
            call()


@no_deadline
@given(st.binary(max_size=12), st.integers(1, 5), st.integers(1, 5))
def test_text_is_accepted_if_and_only_if_the_parser_of_tables_accepts_it(counts: bytes, height: int, width: int):
    sides = np.array([height]), np.array([width])
    area, boxes, faults = rle.measure([counts], *sides)
    if faults:
        with pytest.raises(ValueError, match="these counts are no mask"):
            algebra.boxes(algebra.pack([counts]), *sides)
    else:
        np.testing.assert_array_equal(algebra.boxes(algebra.pack([counts]), *sides), boxes)
        np.testing.assert_array_equal(algebra.area(algebra.pack([counts])), area)


@no_deadline
@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(1, 4))
def test_runs_of_no_length_are_read_as_they_are_decoded(lengths: list[int], height: int):
    lengths[-1] += -sum(lengths) % height or (height if sum(lengths) == 0 else 0)
    width = sum(lengths) // height
    counts = rle._compress(np.array(lengths, np.int64), np.array([len(lengths)]))[0]
    mask = rle.decode(counts, height, width)
    sides = np.array([height]), np.array([width])
    batch = algebra.pack([counts])
    assert algebra.area(batch).tolist() == [mask.sum()]
    assert tuple(algebra.boxes(batch, *sides)[0]) == rle.bbox(rle.encode(mask), height, width)
    assert algebra.combine(Operation.UNION, batch, batch, *sides)[0] == rle.encode(mask)


def test_image_with_too_many_pixels_is_refused():
    with pytest.raises(ValueError, match="a mask of 65536 x 65536 pixels: the limit is 2147483647 pixels"):
        algebra.boxes(algebra.pack([b"0"]), np.array([65536]), np.array([65536]))


def test_large_masks_are_read():
    mask = np.zeros((4000, 6000), np.bool_)
    mask[10:3990, 20:5980] = True
    mask[500:3000, 700:5000] = False
    other = np.zeros_like(mask)
    other[:, 3000:] = True
    (a, heights, widths), (b, _, _) = _batch([mask]), _batch([other])
    assert algebra.iou(a, b, heights, widths)[0] == (mask & other).sum() / (mask | other).sum()
    assert algebra.holes(a, heights, widths).tolist() == [1]
    assert algebra.combine(Operation.DIFFERENCE, a, b, heights, widths)[0] == rle.encode(mask & ~other)
