"""How far the masks of two runs agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.annotations import AnnotationError
from maskmill.annotations.pairs import LeftOut, Pairs, index_run, pair_images
from maskmill.evaluation.compare import compare_images, settings_that_differ, summarise
from maskmill.filters import rle
from maskmill.filters.agreement import Agreement, agree
from maskmill.filters.matching import match
from maskmill.pipeline.errors import ObjectError, RunMismatchError
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.storage import open_storage
from tests import runs
from tests.evaluation.agreeing import HEIGHT, WIDTH, Drawn, drawn_run, square
from tests.evaluation.drawings import Mask
from tests.fakes import picture

if TYPE_CHECKING:
    from testing.s3_servers import MotoServer

SQUARES = [square(0, 0), square(25, 0), square(10, 15)]


def _pairs(a: str, b: str) -> Pairs:
    return pair_images(*(index_run(open_storage(out)) for out in (a, b)), limit=2)


def _compare(folder: Path, a: Drawn, b: Drawn) -> dict[str, Agreement]:
    pairs = _pairs(drawn_run(folder / "a", a), drawn_run(folder / "b", b, images_per_shard=3))
    return dict(compare_images(pairs, 0.9))


def _left_out(pairs: Pairs) -> dict[str, LeftOut]:
    return {reason: images for reason, images in pairs.left_out.items() if images.images}


def _agree(a: list[Mask], b: list[Mask], threshold: float = 0.9) -> Agreement:
    return agree([rle.encode(mask) for mask in a], [rle.encode(mask) for mask in b], HEIGHT, WIDTH, threshold)


# Masks of one image.


def test_the_pair_with_the_highest_iou_goes_first_and_each_mask_into_one_pair():
    iou_NK = np.array([[0.95, 0.92, 0.0], [0.97, 0.91, 0.3]])
    assert iou_NK[match(iou_NK, 0.9)].tolist() == [0.97, 0.92]
    assert iou_NK[match(iou_NK, 0.93)].tolist() == [0.97]
    assert iou_NK[match(iou_NK, 0.98)].tolist() == []
    assert iou_NK.T[match(iou_NK.T, 0.9)].tolist() == [0.97, 0.92]


def test_masks_match_at_the_threshold_itself():
    nine_tenths = square(0, 0) & ~square(0, 18)  # 18 of 20 rows
    assert _agree([square(0, 0)], [nine_tenths]).matched == 1
    assert _agree([square(0, 0)], [nine_tenths], 0.9001).matched == 0


def test_equal_masks_agree_to_the_byte():
    assert _agree(SQUARES, SQUARES) == Agreement(1, 3, 3, matched=3, iou_sum=3, same_count=1, identical=1)


def test_equal_masks_in_another_order_match_but_are_not_identical():
    assert _agree(SQUARES, SQUARES[::-1]) == Agreement(1, 3, 3, matched=3, iou_sum=3, same_count=1, identical=0)


def test_a_mask_that_is_shifted_lowers_the_iou_until_it_matches_no_more():
    # 20 x 20 pixels: shifted by one column 19 of 21 columns are shared, by two 18 of 22.
    by_one, by_two = ([square(shift, 0), *SQUARES[1:]] for shift in (1, 2))
    assert _agree(SQUARES, by_one) == Agreement(1, 3, 3, 3, 2 + 19 / 21, same_count=1)
    assert _agree(SQUARES, by_two) == Agreement(1, 3, 3, 2, 2, same_count=1)
    assert _agree(SQUARES, by_two, 0.8).iou_sum == pytest.approx(2 + 18 / 22)


def test_a_mask_that_is_removed_or_doubled_stays_without_a_partner():
    assert _agree(SQUARES, SQUARES[:2]) == Agreement(1, 3, 2, 2, 2)
    assert _agree(SQUARES, [*SQUARES, SQUARES[0]]) == Agreement(1, 3, 4, 3, 3)


def test_images_without_masks_agree_with_each_other_and_with_nothing_else():
    assert _agree([], []) == Agreement(1, 0, 0, 0, 0, same_count=1, identical=1)
    assert _agree([], SQUARES) == Agreement(1, 0, 3, 0, 0)
    assert _agree(SQUARES, []).shares == {
        "matched": 0,
        "matched_of_a": 0,
        "matched_of_b": None,
        "mean_iou": None,
        "same_count": 0,
        "identical": 0,
    }


# Runs.


def test_every_image_of_equal_runs_is_identical_when_their_shards_are_not(tmp_path: Path):
    drawn = {letter: SQUARES[: number % 4] for number, letter in enumerate("abcdefg")}
    agreements = _compare(tmp_path, drawn, drawn)
    assert list(agreements) == [f"{letter}.png" for letter in "abcdefg"]
    assert [agreement.masks_a for agreement in agreements.values()] == [0, 1, 2, 3, 0, 1, 2]
    assert all(agreement.identical for agreement in agreements.values())


def test_shares_are_over_all_images_and_those_that_agree_least_come_first(tmp_path: Path):
    a = {"a": SQUARES, "b": SQUARES, "c": SQUARES, "d": []}
    b = {"a": SQUARES, "b": [square(1, 0), *SQUARES[1:]], "c": SQUARES[:1], "d": []}
    agreements = _compare(tmp_path, a, b).items()
    total, worst = summarise(agreements, limit=10)
    assert total == Agreement(4, 9, 7, 7, total.iou_sum, same_count=3, identical=2)
    assert total.shares == {
        "matched": 14 / 16,
        "matched_of_a": 7 / 9,
        "matched_of_b": 1,
        "mean_iou": pytest.approx((6 + 19 / 21) / 7),
        "same_count": 3 / 4,
        "identical": 2 / 4,
    }
    assert [image_id for image_id, _ in worst] == ["c.png", "b.png"]
    assert summarise(agreements, limit=1) == (total, worst[:1])
    assert summarise(agreements, limit=0) == (total, [])


def test_images_are_left_out_when_a_run_does_not_have_them_or_failed(tmp_path: Path):
    a: Drawn = {"a": SQUARES, "b": None, "c": SQUARES, "d": None, "e": None, "x": SQUARES, "y": None, "z": []}
    b: Drawn = {"a": SQUARES, "b": SQUARES, "c": None, "d": None, "e": None, "q": None}
    pairs = _pairs(drawn_run(tmp_path / "a", a), drawn_run(tmp_path / "b", b))
    assert _left_out(pairs) == {
        "only in A": LeftOut(3, ("x.png", "y.png")),
        "only in B": LeftOut(1, ("q.png",)),
        "failed in both": LeftOut(2, ("d.png", "e.png")),
        "failed in A": LeftOut(1, ("b.png",)),
        "failed in B": LeftOut(1, ("c.png",)),
    }
    assert (len(pairs.a), pairs.a.failed, len(pairs.b), pairs.b.failed) == (8, 4, 6, 4)
    assert [image_id for image_id, _ in compare_images(pairs, 0.9)] == ["a.png"]


def test_an_image_is_left_out_when_another_picture_has_its_name(tmp_path: Path):
    a, b = drawn_run(tmp_path / "a", {"a": [], "b": []}), drawn_run(tmp_path / "b", {"a": [], "b": []}, shade=9)
    pairs = _pairs(a, b)
    assert _left_out(pairs) == {"another picture": LeftOut(2, ("a.png", "b.png"))}
    assert list(compare_images(pairs, 0.9)) == []


def test_an_image_that_failed_at_first_counts_once_when_its_retry_is_there(tmp_path: Path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed in range(3):
        (photographs / f"p{seed}.png").write_bytes(picture(seed))
    runs.run(photographs, tmp_path / "b")
    for seed in (0, 1):
        (photographs / f"p{seed}.png").write_bytes(b"broken")
    runs.run(photographs, tmp_path / "a")
    (photographs / "p1.png").write_bytes(picture(1))
    runs.retry(tmp_path / "a")
    pairs = _pairs(str(tmp_path / "a"), str(tmp_path / "b"))
    assert _left_out(pairs) == {"failed in A": LeftOut(1, ("p0.png",))}
    assert [(image_id, image.identical) for image_id, image in compare_images(pairs, 0.9)] == [
        ("p1.png", 1),
        ("p2.png", 1),
    ]


def test_a_run_in_progress_has_the_images_that_are_done(tmp_path: Path):
    whole, partial = (drawn_run(tmp_path / name, dict.fromkeys("abc", SQUARES)) for name in ("a", "b"))
    (Path(partial) / masks_key("00000")).unlink()
    pairs = _pairs(whole, partial)
    assert (pairs.b.shards_done, len(pairs.b.run.plan)) == (1, 2)
    assert _left_out(pairs) == {"only in A": LeftOut(2, ("a.png", "b.png"))}
    (Path(partial) / masks_key("00001")).unlink()
    with pytest.raises(AnnotationError, match="b/out: no shard of this run is done yet"):
        _pairs(whole, partial)


def test_runs_are_refused_when_they_have_no_image_in_common(tmp_path: Path):
    a, b = drawn_run(tmp_path / "a", {"a": []}), drawn_run(tmp_path / "b", {"b": []})
    with pytest.raises(RunMismatchError, match=r"no image in common: .* a\.png in .*/a/out and b\.png in .*/b/out"):
        _pairs(a, b)


def test_a_part_is_named_when_it_is_damaged(tmp_path: Path):
    a, b = (drawn_run(tmp_path / name, {"a": SQUARES}) for name in ("a", "b"))
    part = Path(b) / masks_key("00000")
    sound = part.read_bytes()
    pairs = _pairs(a, b)
    part.write_bytes(sound[:8] + bytes(100) + sound[108:])
    with pytest.raises(ObjectError, match=r"b/out/masks/part-00000\.parquet: damaged: "):
        list(compare_images(pairs, 0.9))
    part.write_bytes(sound[:100])
    with pytest.raises(ObjectError, match=r"b/out/masks/part-00000\.parquet: damaged: "):
        _pairs(a, b)


def test_a_mask_is_named_when_its_run_lengths_are_damaged(tmp_path: Path):
    a, b = (drawn_run(tmp_path / name, {"a": SQUARES}) for name in ("a", "b"))
    part = Path(b) / masks_key("00000")
    table, metadata = pq.read_table(part), pq.read_metadata(part).metadata
    counts = pa.array([rle.encode(SQUARES[0]), b"o", rle.encode(SQUARES[2])], pa.binary())
    column = table.schema.get_field_index("rle_counts")
    with pq.ParquetWriter(part, table.schema) as writer:
        writer.write_table(table.set_column(column, table.schema.field(column), counts))
        writer.add_key_value_metadata({key: value for key, value in metadata.items() if key != b"ARROW:schema"})
    with pytest.raises(ObjectError, match=r"b/out: a\.png, mask 1: the RLE ends within a number"):
        list(compare_images(_pairs(a, b), 0.9))


def test_settings_that_differ_are_named_with_both_values():
    a = {"weights": "x", "config": {"precision": "exact", "generator": {"points": 32, "offset": 1.0}}}
    b = {"weights": "x", "config": {"precision": "fast", "generator": {"points": None, "offset": 1.0}}, "new": True}
    assert settings_that_differ(a, b) == {
        "config.generator.points": (32, None),
        "config.precision": ("exact", "fast"),
        "new": (None, True),
    }
    assert settings_that_differ(a, a) == {}


@pytest.mark.s3
def test_a_run_on_s3_agrees_with_the_same_on_disk(
    bucket: str, moto: MotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    drawn = dict.fromkeys("abc", SQUARES)
    on_disk = drawn_run(tmp_path / "a", drawn)
    on_s3 = drawn_run(tmp_path / "b", drawn, out=f"s3://{bucket}/out")
    total, worst = summarise(compare_images(_pairs(on_disk, on_s3), 0.9), limit=10)
    assert (total.images, total.identical, worst) == (3, 3, [])
