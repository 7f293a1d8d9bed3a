"""YOLO labels, read by a parser that does what ultralytics does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, generate_binary_structure, label

from maskmill.annotations.yolo import yolo_format
from maskmill.pipeline.table import encode_part
from tests import runs
from tests.annotations.exporting import HEIGHT, NAMES, WIDTH, export, make_run, masks_of, write_photographs
from tests.fakes import image_result
from tests.fakes import picture as noise


def parse(path: Path, height: int, width: int) -> list[NDArray[np.bool_]]:
    """The masks in a label file. A file is one of segments if a line has more than a class and a box."""
    lines = [line.split() for line in path.read_text().strip().splitlines()]
    assert not lines or any(len(line) > 6 for line in lines)
    masks: list[NDArray[np.bool_]] = []
    for name, *numbers in lines:
        assert name == "0"
        relative = np.array(numbers, np.float32).reshape(-1, 2)
        assert relative.min() >= 0
        assert relative.max() <= 1
        corners = (relative * np.array([width, height], np.float32)).astype(np.int32)
        masks.append(cv2.fillPoly(np.zeros((height, width), np.uint8), [corners], 1).astype(np.bool_))
    return masks


def count_parts(mask_HW: NDArray[np.bool_], connectivity: int = 1) -> tuple[NDArray[np.int32], int]:
    """The number of each part, per pixel, and their count."""
    parts, count = cast(Any, label(mask_HW, generate_binary_structure(2, connectivity)))
    return parts, count


def largest_part(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 8-connected part without its holes."""
    parts, count = count_parts(mask_HW, 2)
    filled = [np.asarray(binary_fill_holes(parts == number)) for number in range(1, count + 1)]
    return max(filled, key=np.count_nonzero)


def test_parser_of_ultralytics_reads_the_largest_part_of_each_mask(tmp_path: Path):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    form = yolo_format()
    selection = export(tmp_path / "out", tmp_path / "yolo", form, "copy")
    holes = parts = 0
    for image in selection.images():
        assert (tmp_path / "yolo/images" / image.stem_name).is_file()
        found = parse(tmp_path / "yolo/labels" / f"{image.stem}.txt", HEIGHT, WIDTH)
        expected = masks_of(image.image_id)
        assert len(found) == len(expected)
        for read, mask_HW in zip(found, expected, strict=True):
            assert np.array_equal(read, largest_part(mask_HW))
            parts += count_parts(mask_HW, 2)[1] - 1
            holes += count_parts(~np.pad(mask_HW, 1))[1] - 1
    assert form.lost == {"holes filled": holes, "smaller parts left out": parts}
    assert holes >= len(NAMES) - 1
    assert (tmp_path / "yolo/data.yaml").read_text() == "train: images\nval: images\nnames:\n  0: mask\n"


def test_tiny_masks_are_polygons_of_three_corners(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(noise(0))
    job, plan = runs.begin(tmp_path / "photographs", tmp_path / "out")
    masks = np.zeros((3, 3, 1000), np.bool_)
    masks[0, 1, 999] = masks[1, 2, 10:12] = masks[2, :2, 0] = True
    results = [image_result("a.png", masks)]
    job.ledger.commit(plan[0], encode_part(plan[0], results, job.ledger.identity))
    export(tmp_path / "out", tmp_path / "yolo", yolo_format())
    assert np.array_equal(parse(tmp_path / "yolo/labels/a.txt", 3, 1000), masks)
