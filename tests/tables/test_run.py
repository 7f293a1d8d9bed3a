"""`maskmill.open_run`: a run in Python, on disk and in S3."""

from __future__ import annotations

import ast
import itertools
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image
from torch.utils.data import DataLoader

import maskmill
from benchmarks import reading
from maskmill.model.errors import ConfigError
from maskmill.pipeline.config import DEFAULT_DECODING
from maskmill.pipeline.errors import ImageError, ObjectError, SourceError
from maskmill.pipeline.finished import RunImage
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.storage import LocalStorage
from maskmill.tables.run import Run
from testing.synthetic_runs import mask_pool, write_run
from tests.fakes import picture
from tests.pipeline.test_finished import WatchedStorage
from tests.pipeline.test_sources import tar_bytes
from tests.runs import begin, run
from tests.tables.conftest import FAILED, NAMES

OK = [name for name in NAMES if name != FAILED]


def test_run_answers_what_its_documentation_says(out: str, photographs: Path):
    run = maskmill.open_run(out)
    assert len(run) == 5
    assert run.images.count_rows() == 5
    assert run.masks.to_table(columns=["area"], filter=pc.field("image_id") == "a.png").num_rows == 3
    image = run["a.png"]
    pixels = decode_image((photographs / "a.png").read_bytes(), DEFAULT_DECODING).pixels
    np.testing.assert_array_equal(image.read_pixels(), pixels)
    assert image.masks.shape == (3, *pixels.shape[:2])
    assert image.boxes.shape == (3, 4)
    assert image.scores.shape == (3,)
    assert [rle["size"] for rle in image.rles] == [list(pixels.shape[:2])] * 3
    assert isinstance(image.show(), Image.Image)
    for image in run.sample(16, seed=0):
        shown = np.asarray(image.show())
        assert shown.shape == image.read_pixels().shape
        assert (shown != image.read_pixels()).any()


def test_values_and_items_are_the_images_in_order(out: str):
    run = maskmill.open_run(out)
    assert [image.image_id for image in run.values()] == list(run) == list(NAMES)
    for image_id, image in run.items():
        assert image.rle_counts == run[image_id].rle_counts
        assert (image.status, image.error) == (run[image_id].status, run[image_id].error)


def test_values_are_complete_when_masks_of_an_image_are_in_several_row_groups(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    write_run(storage, images=5, masks_per_image=3000, pool=mask_pool(20, 30, 40), images_per_shard=4)
    run = maskmill.open_run(tmp_path)
    images = list(run.values())
    assert [len(image) for image in images] == [3000] * 5
    for image in images:
        assert image.rle_counts == run[image.image_id].rle_counts


def test_failed_image_has_a_reason_and_still_its_pixels(on_disk: str):
    image = maskmill.open_run(on_disk)[FAILED]
    assert image.error
    assert image.read_pixels().shape[2] == 3
    assert len(image) == 0
    np.testing.assert_array_equal(image.show(), image.read_pixels())
    assert repr(image) == f"<RunImage '{FAILED}': failed>"


def test_image_that_cannot_be_decoded_says_so(photographs: Path, tmp_path: Path):
    (photographs / "broken.png").write_bytes(b"no image")
    run(photographs, tmp_path / "out")
    with pytest.raises(ImageError, match=r"broken\.png: not a readable image"):
        maskmill.open_run(tmp_path / "out")["broken.png"].read_pixels()


def test_image_file_that_changed_is_refused(on_disk: str, photographs: Path):
    (photographs / "a.png").write_bytes(picture(99))
    (photographs / "c.png").unlink()
    run = maskmill.open_run(on_disk)
    with pytest.raises(ObjectError, match=r"a\.png: the file has changed since the run read it"):
        run["a.png"].read_pixels()
    with pytest.raises(ObjectError, match=r"c\.png: .*No such file"):
        run["c.png"].show()


def test_images_are_read_at_their_new_place(on_disk: str, photographs: Path, tmp_path: Path):
    photographs.rename(tmp_path / "moved")
    with pytest.raises(SourceError, match="photographs: the images of the run are no longer there"):
        maskmill.open_run(on_disk)["a.png"].read_pixels()
    moved = maskmill.open_run(on_disk, moved_to=tmp_path / "moved")
    assert moved["a.png"].read_pixels().shape[2] == 3


def test_images_in_a_tar_are_read_in_any_order(tmp_path: Path):
    (tmp_path / "photographs.tar").write_bytes(tar_bytes({f"{name}.png": picture(ord(name)) for name in "abc"}))
    run(tmp_path / "photographs.tar", tmp_path / "out")
    opened = maskmill.open_run(tmp_path / "out")
    for name in "cabb":
        image = opened[f"photographs.tar/{name}.png"]
        np.testing.assert_array_equal(image.read_pixels(), decode_image(picture(ord(name)), DEFAULT_DECODING).pixels)
    assert opened.masks.to_table(filter=pc.field("image_id") == "photographs.tar/b.png").num_rows == 3
    assert len(opened.sample(5)) == 3


# Runs without masks, without images, and not finished.


def test_run_without_a_finished_shard_is_empty(photographs: Path, tmp_path: Path):
    begin(photographs, tmp_path / "out")
    run = maskmill.open_run(tmp_path / "out")
    assert len(run) == len(run.torch_dataset()) == 0
    assert run.sample(3) == list(run.values()) == list(run.items()) == []
    assert run.images.to_table().num_rows == run.masks.to_table().num_rows == 0


def test_run_of_failures_only_has_no_sample(photographs: Path, tmp_path: Path):
    for name in OK:
        (photographs / name).unlink()
    run(photographs, tmp_path / "out")
    opened = maskmill.open_run(tmp_path / "out")
    assert [image.status for image in opened.values()] == ["failed"]
    assert opened.sample(3) == []
    assert len(opened.torch_dataset()) == 0


def test_run_in_progress_shows_what_is_done(on_disk: str):
    (Path(on_disk) / masks_key("00001")).unlink()
    run = maskmill.open_run(on_disk)
    assert list(run) == ["a.png", "b/1.png", "d.png"]
    assert [image.image_id for image in run.values()] == list(run)
    assert {image.image_id for image in run.sample(9)} == set(run)


# A sample.


def test_sample_is_the_same_for_the_same_seed_and_fair(tmp_path: Path):
    write_run(LocalStorage(tmp_path), images=20, masks_per_image=1, pool=mask_pool(4, 8, 8), images_per_shard=3)
    run = maskmill.open_run(tmp_path)
    drawn = [[image.image_id for image in run.sample(5, seed)] for seed in (0, 0, *range(1, 60))]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(ids)) == 5 for ids in drawn)
    counts = Counter(itertools.chain.from_iterable(drawn[1:]))
    assert len(counts) == 20
    assert max(counts.values()) < 30  # expected: 15 of 60 samples


def test_sample_has_only_images_that_were_processed(out: str):
    run = maskmill.open_run(out)
    assert sorted(image.image_id for image in run.sample(100)) == OK
    assert run.sample(0) == []
    with pytest.raises(ConfigError, match="a sample of -1 images"):
        run.sample(-1)


# PyTorch.


def _areas(image: RunImage) -> Any:
    return torch.tensor(image.area), image.image_id


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_reads_with_two_workers(out: str, start: str):
    data = maskmill.open_run(out).torch_dataset(transform=_areas)
    loader = DataLoader(data, num_workers=2, shuffle=True, collate_fn=list, multiprocessing_context=start)
    areas = {image_id: area.tolist() for ((area, image_id),) in loader}
    assert areas == {image_id: maskmill.open_run(out)[image_id].area.tolist() for image_id in OK}


def test_items_are_tensors_by_default(on_disk: str):
    run = maskmill.open_run(on_disk)
    data = run.torch_dataset()
    assert len(data) == 4
    pixels, target = data[-1]
    image = run["d.png"]
    assert target["image_id"] == "d.png"
    np.testing.assert_array_equal(pixels, image.read_pixels().transpose(2, 0, 1))
    np.testing.assert_array_equal(target["masks"], image.masks)
    for mask, (x0, y0, x1, y1) in zip(image.masks, target["boxes"].int().tolist(), strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0:y1, x0].any()
        assert mask[y1 - 1, x0:x1].any()
    with pytest.raises(IndexError, match="item 4 of 4"):
        data[4]


def test_run_image_and_data_set_are_picklable(out: str):
    run = maskmill.open_run(out)
    image = pickle.loads(pickle.dumps(run["a.png"]))
    np.testing.assert_array_equal(image.read_pixels(), run["a.png"].read_pixels())
    assert len(pickle.loads(pickle.dumps(run.torch_dataset()))) == 4
    assert list(pickle.loads(pickle.dumps(run))) == list(NAMES)


# Notebooks.


@pytest.mark.parametrize(
    ("cell", "pictures"),
    [
        ("for image in run.sample(2): image.show()", 2),
        ("run['a.png'].show()", 1),
        ("run['a.png']", 1),
        ("picture = run['a.png'].show()\npicture.save(path)", 1),
        ("run", 0),
    ],
)
def test_notebook_shows_each_picture_once(on_disk: str, tmp_path: Path, cell: str, pictures: int):
    shell = InteractiveShell.instance()
    try:
        shell.user_ns |= {"run": maskmill.open_run(on_disk), "path": tmp_path / "shown.png"}
        formats: Any = shell.display_formatter
        formats.active_types = formats.format_types  # as in a notebook
        with capture_output() as captured:
            shell.display_trap.hook = sys.displayhook  # the one of capture_output
            shell.run_cell(cell).raise_error()
        outputs = [shown for shown in captured.outputs if "image/png" in shown.data]
        assert len(outputs) == pictures
    finally:
        InteractiveShell.clear_instance()


def test_notebook_shows_text_when_the_image_is_gone(on_disk: str, photographs: Path):
    image = maskmill.open_run(on_disk)["a.png"]
    assert image._repr_png_()
    (photographs / "a.png").unlink()
    assert image._repr_png_() is None
    assert repr(image) == f"<RunImage 'a.png': {image.width} x {image.height} pixels, 3 masks>"
    assert repr(maskmill.open_run(on_disk)) == f"<Run {on_disk}>"


# Large runs.


def test_one_image_opens_one_part(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    write_run(storage, images=640, masks_per_image=4, pool=mask_pool(16, 60, 80), images_per_shard=16)
    opened = maskmill.open_run(tmp_path)
    read: Counter[str] = Counter()
    watched = Run(WatchedStorage(tmp_path, read), opened.settings, opened.plan)

    def parts() -> list[str]:
        names = sorted(key for key in read if "part" in key)
        read.clear()
        return names

    assert len(watched["0000/0000100.jpg"]) == 4
    assert parts() == ["masks/part-00006.parquet"]
    assert watched.torch_dataset(len)[600] == 4
    read.clear()
    assert len(watched.sample(3)) == 3
    assert len(parts()) <= 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tmp_path: Path):
    """`python -m benchmarks.reading` prints the figures for 100,000 images."""
    code = f"import benchmarks.reading as r, pathlib; print(r.measure(pathlib.Path({str(tmp_path)!r}), 6400, 20))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    figures = ast.literal_eval(done.stdout)
    assert len(figures) == len(reading.OPERATIONS)
    # MB; 128,000 masks take 20 MB as Arrow tables and several times that as Python objects.
    assert sum(growth for _, growth in figures.values()) < 20, figures
