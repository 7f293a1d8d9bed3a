"""Tars as `webdataset` reads them, and as a source of another run."""

from __future__ import annotations

import gc
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from webdataset.compat import WebDataset

from maskmill.annotations.webdataset import webdataset_format
from maskmill.pipeline.sources import open_source
from tests import runs
from tests.annotations.exporting import NAMES, export, make_run, masks_of, picture, write_photographs


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_photographs(tmp_path / "photographs")
    make_run(tmp_path / "photographs", tmp_path / "out", images_per_shard=3)
    return tmp_path / "out"


def _samples(folder: Path) -> list[Any]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the files to the garbage collector
        reader: Any = WebDataset(urls, shardshuffle=False)
        samples = list(reader.decode("rgb8"))
        gc.collect()
    return samples


def test_webdataset_reads_images_and_masks(out: Path, tmp_path: Path):
    export(out, tmp_path / "wds", webdataset_format(4), "copy")
    assert [path.name for path in sorted((tmp_path / "wds").glob("*.tar"))] == ["000000.tar", "000001.tar"]
    samples = _samples(tmp_path / "wds")
    assert [sample["json"]["image"]["file_name"] for sample in samples] == list(NAMES)
    for name, sample in zip(NAMES, samples, strict=True):
        masks = [coco.decode(mask["segmentation"]) for mask in sample["json"]["annotations"]]
        assert np.array_equal(np.array(masks, np.bool_).reshape(masks_of(name).shape), masks_of(name))
        extension = name.rpartition(".")[2]
        assert np.array_equal(sample[extension], np.asarray(Image.open(io.BytesIO(picture(name)))))


def test_tars_have_only_masks_when_images_are_not_wanted(out: Path, tmp_path: Path):
    export(out, tmp_path / "wds", webdataset_format())
    samples = _samples(tmp_path / "wds")
    assert [sorted(key for key in sample if not key.startswith("__")) for sample in samples] == [["json"]] * len(NAMES)


def test_tars_are_a_source_for_another_run(out: Path, tmp_path: Path):
    export(out, tmp_path / "wds", webdataset_format(4), "copy")
    source = open_source(str(tmp_path / "wds" / "00000?.tar"))
    records = [record for shard in source.plan(1) for record in source.read(shard)]
    assert [record.data for record in records] == [picture(name) for name in NAMES]


def test_extension_comes_from_the_content_when_the_name_has_none(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/a").write_bytes(picture("a.jpg"))
    (tmp_path / "photographs/list.csv").write_text("uri\na\n")
    runs.run(tmp_path / "photographs/list.csv", tmp_path / "out")
    export(tmp_path / "out", tmp_path / "wds", webdataset_format(), "copy")
    (sample,) = _samples(tmp_path / "wds")
    assert sample["__key__"] == "000000001"
    assert "png" in sample
