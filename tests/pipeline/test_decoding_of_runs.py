"""Everything that decodes the images of a run decodes them as the run did."""

from pathlib import Path

import numpy as np
import pytest

from maskmill.annotations import open_annotations
from maskmill.pipeline.config import DecodingConfig, ValueRange
from maskmill.pipeline.errors import RunMismatchError
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.ledger import read_run, reopen_run
from maskmill.pipeline.preview import overlays
from maskmill.pipeline.storage import open_storage
from tests import runs
from tests.tiffs import noise, write

DECODING = DecodingConfig(1000, bands=(7, 2, 1), value_range=ValueRange(2, 98, percentiles=True))
DATA = write(noise(7, 16).astype(np.float32), photometric="minisblack")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run over `a.tif`, which no default decodes, and `b.tif`, which is damaged."""
    (tmp_path / "tiffs").mkdir()
    (tmp_path / "tiffs" / "a.tif").write_bytes(DATA)
    (tmp_path / "tiffs" / "b.tif").write_bytes(DATA[:-100])
    runs.run(tmp_path / "tiffs", tmp_path / "out", decoding=DECODING)
    return tmp_path / "out"


def status(out: Path) -> dict[str, str]:
    return {name: rows[0][5] for name, rows in runs.Tables.of(open_storage(str(out))).images.items()}


def test_identity_holds_how_images_are_decoded(out: Path):
    identity, _ = reopen_run(open_storage(str(out)))
    assert identity.config.decoding == DECODING
    assert read_run(open_storage(str(out)))["config"]["decoding"]["bands"] == [7, 2, 1]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (DecodingConfig(1000, bands=(1, 2, 7), value_range=DECODING.value_range), "bands"),
        (DecodingConfig(1000, bands=(7, 2, 1), value_range=ValueRange(2, 98)), "percentiles"),
        (DecodingConfig(1001, bands=(7, 2, 1), value_range=DECODING.value_range), "max_image_pixels"),
    ],
)
def test_resume_is_refused_when_images_would_be_decoded_otherwise(out: Path, other: DecodingConfig, difference: str):
    with pytest.raises(RunMismatchError, match=difference):
        runs.run(out.parent / "tiffs", out, decoding=other)


def test_retry_preview_and_annotations_decode_as_the_run_did(out: Path):
    assert status(out) == {"a.tif": "ok", "b.tif": "failed"}
    (out.parent / "tiffs" / "b.tif").write_bytes(DATA)
    runs.retry(out)
    assert status(out) == {"a.tif": "ok", "b.tif": "ok"}
    assert [overlay.image_id for overlay in overlays(open_storage(str(out)))] == ["a.tif", "b.tif"]
    annotated = open_annotations(out)
    for index in range(2):
        np.testing.assert_array_equal(annotated[index].read_pixels(), decode_image(DATA, DECODING).pixels)
