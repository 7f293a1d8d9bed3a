"""Label maps: the smallest mask on top, 16 bits, read back by our reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from maskmill.annotations import open_annotations
from maskmill.annotations.label_maps import label_map_format
from maskmill.pipeline.table import encode_part
from tests import runs
from tests.annotations.exporting import NAMES, export, make_run, masks_of, write_photographs
from tests.fakes import image_result
from tests.fakes import picture as noise


def test_pixels_have_the_label_of_the_smallest_mask(tmp_path: Path):
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out")
    selection = export(tmp_path / "out", tmp_path / "labels", label_map_format(), where="mask_id <> 1")
    assert [image.image_id for image in selection.images()] == [name for name in NAMES if name != "empty.jpg"]
    for image in selection.images():
        with Image.open(tmp_path / "labels" / f"{image.stem}.seg0.png") as png:
            assert png.mode == "I;16"
            map_HW = np.asarray(png)
        expected = np.zeros(map_HW.shape, np.int64)
        masks = masks_of(image.image_id)
        for mask_id in sorted((0, 2, 3), key=lambda mask_id: -masks[mask_id].sum()):
            expected[masks[mask_id]] = mask_id + 1
        assert np.array_equal(map_HW, expected)


def test_hidden_masks_and_masks_beyond_the_last_label_are_counted(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").write_bytes(noise(0))
    job, plan = runs.begin(tmp_path / "photographs", tmp_path / "out")
    masks = np.zeros((65540, 2, 3), np.bool_)
    masks[:, 0, 0] = True
    masks[7, 1] = True  # the largest one, not hidden
    results = [replace(image_result("a.jpg", masks), sha256=None)]
    job.ledger.commit(plan[0], encode_part(plan[0], results, job.ledger.identity))
    form = label_map_format()
    export(tmp_path / "out", tmp_path / "labels", form, "copy")
    assert form.lost == {
        "masks hidden completely by smaller ones": 65533,
        "masks left out because a map has 65535 labels": 5,
    }
    images = open_annotations(tmp_path / "labels")
    assert len(images) == 1
    assert [images[0].decode(k).tolist() for k in range(2)] == [
        [[False] * 3, [True] * 3],
        [[True, False, False], [False] * 3],
    ]
