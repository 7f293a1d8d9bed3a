"""The SQL functions on masks, for DuckDB: each takes columns of compressed RLEs as Arrow arrays."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskmill.filters import rle_algebra
from maskmill.filters.rle_algebra import Operation, Packed, Polygon


@dataclass(frozen=True)
class MaskFunction:
    """A function of SQL. NULL for any argument gives NULL."""

    parameters: tuple[str, ...]  # names; their types follow from `_TYPES`
    returns: str  # a type of DuckDB
    compute: Callable[..., Any]  # takes a Packed or an array per parameter, K rows; returns what pyarrow.array takes


# The types of parameters: a, b and rle are masks, h and w the size of their image, x and y a point, all in pixels.
_TYPES = {
    **dict.fromkeys(("rle", "a", "b"), "BLOB"),
    **dict.fromkeys(("h", "w"), "BIGINT"),
    **dict.fromkeys(("x", "y"), "DOUBLE"),
}


def to_geojson(polygons: list[Polygon]) -> str:
    """Polygons of pixel corners as a MultiPolygon of GeoJSON. x and y are pixels from the top left corner."""
    # GeoJSON repeats the first corner at the end of a ring.
    rings = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in polygons]
    return json.dumps({"type": "MultiPolygon", "coordinates": rings}, separators=(",", ":"))


def _boxes(masks: Packed, heights: Any, widths: Any) -> pa.Array:
    columns = rle_algebra.boxes(masks, heights, widths).astype(np.int32).T
    return pa.StructArray.from_arrays([pa.array(column) for column in columns], names=list("xywh"))


def _polygons(masks: Packed, heights: Any, widths: Any) -> list[str]:
    sizes = zip(heights.tolist(), widths.tolist(), strict=True)
    return [to_geojson(rle_algebra.polygons(masks[k], *size)) for k, size in enumerate(sizes)]


def _combine(operation: Operation) -> Callable[..., pa.Array]:
    def combine(*arguments: Any) -> pa.Array:
        masks = rle_algebra.combine(operation, *arguments)
        buffers = [None, pa.py_buffer(masks.offsets.astype(np.int32)), pa.py_buffer(masks.text)]
        return pa.Array.from_buffers(pa.binary(), len(masks), buffers)

    return combine


_MASK, _PAIR = ("rle", "h", "w"), ("a", "b", "h", "w")

FUNCTIONS = {
    "mask_area": MaskFunction(("rle",), "BIGINT", rle_algebra.area),
    "mask_bbox": MaskFunction(_MASK, "STRUCT(x INTEGER, y INTEGER, w INTEGER, h INTEGER)", _boxes),
    "mask_iou": MaskFunction(_PAIR, "DOUBLE", rle_algebra.iou),
    "mask_contains": MaskFunction(_PAIR, "DOUBLE", rle_algebra.contains),
    "mask_intersection": MaskFunction(_PAIR, "BLOB", _combine(Operation.INTERSECTION)),
    "mask_union": MaskFunction(_PAIR, "BLOB", _combine(Operation.UNION)),
    "mask_difference": MaskFunction(_PAIR, "BLOB", _combine(Operation.DIFFERENCE)),
    "mask_at": MaskFunction((*_MASK, "x", "y"), "BOOLEAN", rle_algebra.at),
    "mask_components": MaskFunction(_MASK, "BIGINT", rle_algebra.components),
    "mask_holes": MaskFunction(_MASK, "BIGINT", rle_algebra.holes),
    "mask_polygons": MaskFunction(_MASK, "VARCHAR", _polygons),
}


def register(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes the functions available in a connection."""
    for name, function in FUNCTIONS.items():
        parameters: Any = [_TYPES[parameter] for parameter in function.parameters]
        returns: Any = function.returns
        arrow: Any = "arrow"  # called with a column per parameter, for some thousand rows at a time
        connection.create_function(name, _on_columns(name, function), parameters, returns, type=arrow)


def _on_columns(name: str, function: MaskFunction) -> Callable[..., pa.Array]:
    def on_columns(*columns: pa.ChunkedArray) -> pa.Array:
        arguments = [_argument(column, _TYPES[p]) for p, column in zip(function.parameters, columns, strict=True)]
        try:
            return pa.array(function.compute(*arguments))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    # DuckDB checks the number of parameters.
    positional = [inspect.Parameter(p, inspect.Parameter.POSITIONAL_ONLY) for p in function.parameters]
    on_columns.__signature__ = inspect.Signature(positional)  # pyright: ignore[reportFunctionMemberAccess]
    return on_columns


def _argument(column: pa.ChunkedArray, kind: str) -> Packed | NDArray[Any]:
    array = column.combine_chunks()
    if kind != "BLOB":
        return array.to_numpy(zero_copy_only=False)
    if len(array) == 0:
        return rle_algebra.pack([])
    _, offsets, text = array.cast(pa.binary()).buffers()
    rows = slice(array.offset, array.offset + len(array) + 1)
    return Packed(np.frombuffer(text or b"", np.uint8), np.frombuffer(offsets, np.int32)[rows].astype(np.int64))
