"""Time per image, its interval and its dependence on size and masks; the probe that measures them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmill.pipeline.estimate import Fit, Interval, Sample, duration, fit, seconds_per_image
from maskmill.pipeline.inventory import take_inventory
from maskmill.pipeline.probe import run_probe
from maskmill.pipeline.records import ImageResult, Shard, Work
from maskmill.pipeline.sources import open_source
from maskmill.pipeline.table import Footer, encode_part, read_footer
from tests.fakes import image_result, picture
from tests.pipeline.sources import tar_bytes
from tests.runs import begin


def footer(results: list[ImageResult], seconds: float | None) -> Footer:
    work = None if seconds is None else Work("w", 100.0, 100.0 + seconds)
    return read_footer(io.BytesIO(encode_part(Shard(0, ""), results, "", work=work)))


def image(name: str, side: int, masks: int, milliseconds: float) -> ImageResult:
    result = image_result(name, np.ones((masks, side, side), np.bool_))
    return replace(result, milliseconds={"encode": milliseconds / 4, "prompt": 3 * milliseconds / 4})


def test_sample_has_the_parts_and_the_images_that_went_well():
    failed = replace(image("f", 10, 1, 5.0), status="failed")
    sample = Sample.of(
        [
            footer([image("a", 1000, 2, 800.0), failed], 3.0),
            footer([image("b", 10, 0, 100.0)], None),  # does not say when it was made
            footer([], 2.0),
        ]
    )
    assert (sample.part_images.tolist(), sample.part_seconds.tolist()) == ([2.0], [3.0])
    assert (sample.image_seconds.tolist(), sample.megapixels.tolist(), sample.masks.tolist()) == ([0.8], [1.0], [2.0])


def test_nothing_is_known_when_no_part_says_how_long_it_took():
    assert Sample.of([footer([image("b", 10, 0, 100.0)], None)]).images == 0


def sample_of(part_images: list[float], part_seconds: list[float]) -> Sample:
    none = np.empty(0)
    return Sample(np.array(part_images), np.array(part_seconds), none, none, none)


def test_time_per_image_is_that_of_all_images_and_its_interval_grows_with_the_differences_of_parts():
    alike = seconds_per_image(sample_of([4, 4, 4, 4], [2.0, 2.0, 2.0, 2.0]))
    assert alike == Interval(0.5, 0.5, 0.5)
    different = seconds_per_image(sample_of([4, 4, 4, 4], [1.0, 3.0, 1.0, 3.0]))
    assert different.mean == 0.5
    assert 0.25 <= different.low < 0.5 < different.high <= 0.75
    assert seconds_per_image(sample_of([1, 9], [10.0, 0.0])).mean == 1.0, "weighted by images"


def test_interval_holds_in_about_nine_of_ten_samples():
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        seconds = 4 * random.normal(1.0, 0.2, 16)
        interval = seconds_per_image(sample_of([4.0] * 16, list(seconds)), seed)
        inside += interval.low <= 1.0 <= interval.high
    assert 160 <= inside <= 195


def test_fit_finds_what_an_image_costs_by_size_and_masks():
    random = np.random.default_rng(0)
    megapixels, masks = random.uniform(0.1, 12, 50), random.integers(0, 200, 50).astype(float)
    none = np.empty(0)
    fitted = fit(Sample(none, none, 0.3 + 0.05 * megapixels + 0.002 * masks, megapixels, masks))
    assert fitted is not None
    assert [fitted.constant, fitted.per_megapixel, fitted.per_mask, fitted.explained] == pytest.approx(
        [0.3, 0.05, 0.002, 1.0]
    )
    assert isinstance(fitted, Fit)


def test_fit_is_refused_when_all_images_have_the_same_size():
    ones = np.ones(50)
    assert fit(Sample(ones, ones, ones, ones, np.arange(50.0))) is None


def test_workers_share_the_time_but_not_of_a_single_shard():
    assert duration(Interval(2, 1, 3), images=100, shards=10, workers=4) == Interval(50, 25, 75)
    assert duration(Interval(2, 1, 3), images=100, shards=10, workers=64) == Interval(20, 10, 30)


def test_probe_measures_images_of_several_shards_and_writes_nothing_else(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    for number in range(40):
        (tmp_path / "photographs" / f"{number}.png").write_bytes(picture(number))
    job, _ = begin(tmp_path / "photographs", tmp_path / "out", images_per_shard=10)
    before = sorted(tmp_path.rglob("*"))
    job = replace(job, wall_clock=iter(range(1000)).__next__)
    probe = run_probe(job, take_inventory(job.source, 10, sample=3).sample, images=12)
    assert probe.sample.part_images.tolist() == [4, 4, 4]
    assert probe.sample.part_seconds.tolist() == [1, 1, 1]
    assert probe.sample.masks.tolist() == [3] * 12
    sizes = [path.stat().st_size for path in (tmp_path / "photographs").iterdir()]
    assert min(sizes) < probe.image_bytes < max(sizes)
    assert probe.output_bytes > 0
    assert probe.output_requests >= 3  # looks for the part, commits it, publishes the images
    assert sorted(tmp_path.rglob("*")) == before


def test_probe_reads_only_the_beginning_of_a_tar(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({f"{number}.png": picture(number) for number in range(30)}))
    job, plan = begin(tmp_path / "a.tar", tmp_path / "out")
    probe = run_probe(replace(job, source=open_source(str(tmp_path / "a.tar"))), list(plan), images=5)
    assert probe.sample.part_images.tolist() == [5]
