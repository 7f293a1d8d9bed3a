"""Tasks of Label Studio, decoded as its converter does."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskmill.annotations.label_studio import brush_rle, label_studio_format
from tests.annotations.exporting import HEIGHT, NAMES, WIDTH, export, make_run, masks_of, write_photographs


def decode(data: bytes) -> NDArray[np.uint8]:
    """The RGBA values: a header (count, word size, four sizes), then runs of equal or of single values."""
    bits = "".join(f"{byte:08b}" for byte in data)
    position = 0

    def read(size: int) -> int:
        nonlocal position
        position += size
        return int(bits[position - size : position], 2)

    count, word, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        equal, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if equal else [read(word) for _ in range(length)]
    return np.array(values, np.uint8)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 20))
def test_encoding_is_decoded_to_the_same_mask(seed: int, height: int, width: int):
    mask_HW = np.random.default_rng(seed).random((height, width)) > 0.6
    pixels_HW4 = decode(brush_rle(mask_HW)).reshape(height, width, 4)
    assert (pixels_HW4 == 255 * mask_HW[..., None]).all()


@pytest.mark.parametrize("value", [False, True])
def test_runs_longer_than_the_largest_size_are_split(value: bool):
    mask_HW = np.full((150, 150), value)
    assert (decode(brush_rle(mask_HW)) == 255 * value).all()


@pytest.mark.parametrize("folder", ["images/", ""])
def test_tasks_have_the_masks_as_predictions(tmp_path: Path, folder: str):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "ls", label_studio_format(folder), "copy" if folder else "none")
    tasks = json.loads((tmp_path / "ls/tasks.json").read_text())
    assert [task["data"]["image_id"] for task in tasks] == list(NAMES)
    served = tmp_path / ("ls" if folder else "photographs")
    tags = {element.tag: element.attrib for element in ElementTree.parse(tmp_path / "ls/labeling.xml").iter()}
    for name, task in zip(NAMES, tasks, strict=True):
        address = urlsplit(task["data"]["image"])
        assert address.path == "/data/local-files/"
        assert (served / parse_qs(address.query)["d"][0]).is_file()
        (prediction,) = task["predictions"]
        found: list[NDArray[np.bool_]] = []
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"]) == (tags["BrushLabels"]["name"], tags["Image"]["name"])
            assert result["value"]["brushlabels"] == [tags["Label"]["value"]]
            assert (result["original_height"], result["original_width"]) == (HEIGHT, WIDTH)
            values = decode(bytes(result["value"]["rle"])).reshape(HEIGHT, WIDTH, 4)
            found.append(values[..., 3] > 0)
        assert np.array_equal(np.array(found, np.bool_).reshape(masks_of(name).shape), masks_of(name))
