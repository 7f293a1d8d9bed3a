"""The XML of CVAT, read as CVAT reads it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from maskmill.annotations.cvat import cvat_format
from tests import runs
from tests.annotations.exporting import HEIGHT, NAMES, WIDTH, export, make_run, masks_of, write_photographs
from tests.fakes import picture as noise


def decode(element: ElementTree.Element, height: int, width: int) -> NDArray[np.bool_]:
    """A `mask` element: run lengths row by row inside of a box."""
    left, top, w, h = (int(element.attrib[name]) for name in ("left", "top", "width", "height"))
    runs = np.array([int(run) for run in element.attrib["rle"].split(",")])
    mask_HW = np.zeros((height, width), np.bool_)
    mask_HW[top : top + h, left : left + w] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w)
    return mask_HW


def test_masks_are_exact_and_small_ones_lie_on_top(tmp_path: Path):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "cvat", cvat_format())
    root = ElementTree.parse(tmp_path / "cvat/annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    images = root.findall("image")
    assert [image.attrib["name"] for image in images] == list(NAMES)
    assert [image.attrib["id"] for image in images] == [str(number) for number in range(len(NAMES))]
    for image, name in zip(images, NAMES, strict=True):
        assert (image.attrib["height"], image.attrib["width"]) == (str(HEIGHT), str(WIDTH))
        elements = image.findall("mask")
        found = [decode(element, HEIGHT, WIDTH) for element in elements]
        assert np.array_equal(np.array(found, np.bool_).reshape(masks_of(name).shape), masks_of(name))
        levels = [int(element.attrib["z_order"]) for element in elements]
        by_area = sorted(range(len(found)), key=lambda k: -found[k].sum())
        assert [levels[k] for k in by_area] == list(range(len(found)))


def test_characters_that_xml_does_not_allow_are_replaced_and_counted(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a\x01b.png").write_bytes(noise(0))
    runs.run(tmp_path / "photographs", tmp_path / "out")
    form = cvat_format()
    export(tmp_path / "out", tmp_path / "cvat", form)
    root = ElementTree.parse(tmp_path / "cvat/annotations.xml").getroot()
    assert [image.attrib["name"] for image in root.findall("image")] == ["a\ufffdb.png"]
    assert form.lost == {"names with characters that XML does not allow": 1}
