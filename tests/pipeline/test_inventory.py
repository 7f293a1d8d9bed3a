"""What a source holds: counts and bytes for every kind of source, a fair sample, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskmill.pipeline.errors import SourceError
from maskmill.pipeline.inventory import FirstImages, take_inventory, thinned
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import NameFilter, open_source
from tests.fakes import picture
from tests.pipeline.sources import tar_bytes


def write_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number:03d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(picture(number))
    return paths


def size_of(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


def test_folder_is_counted_without_what_is_left_out(tmp_path: Path):
    paths = write_pictures(tmp_path / "photos", 10)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "000.seg.png").write_bytes(b"label map")
    source = open_source(str(tmp_path / "photos"), NameFilter((), ("009.png",)))
    inventory = take_inventory(source, 4, sample=2)
    assert (inventory.kind, inventory.images, inventory.shards) == ("folder", 9, 3)
    assert inventory.bytes == size_of(*paths[:9])
    assert len(inventory.sample) == 2
    assert {image_id for shard in inventory.sample for image_id in shard.image_ids or ()} < {p.name for p in paths}


def test_tars_have_bytes_but_no_number_of_images(tmp_path: Path):
    (tmp_path / "tars").mkdir()
    tars = [tmp_path / "tars" / f"{number}.tar" for number in range(3)]
    for tar in tars:
        tar.write_bytes(tar_bytes({"a.png": picture(1)}))
    inventory = take_inventory(open_source(str(tmp_path / "tars")), 4, sample=8)
    assert (inventory.images, inventory.shards, inventory.bytes) == (None, 3, size_of(*tars))
    assert [shard.index for shard in inventory.sample] == [0, 1, 2]
    some = take_inventory(open_source(str(tmp_path / "tars" / "[01].tar")), 4, sample=8)
    assert (some.shards, some.bytes) == (2, size_of(*tars[:2])), "a pattern"


def test_parquet_files_and_manifests_are_counted(tmp_path: Path):
    write_pictures(tmp_path / "photos", 3)
    table = pa.table({"image": [{"bytes": picture(number), "path": f"{number}.png"} for number in range(5)]})
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    inventory = take_inventory(open_source(str(tmp_path / "parquet")), 4, sample=1)
    assert (inventory.images, inventory.bytes) == (5, size_of(tmp_path / "parquet" / "a.parquet"))
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"photos/{number:03d}.png\n" for number in range(3)))
    inventory = take_inventory(open_source(str(tmp_path / "list.csv")), 2, sample=1)
    assert (inventory.kind, inventory.images, inventory.shards, inventory.bytes) == ("manifest", 3, 2, None)


def test_every_shard_is_as_likely_in_the_sample_as_any_other(tmp_path: Path):
    write_pictures(tmp_path / "photos", 12)
    source = open_source(str(tmp_path / "photos"))
    drawn = Counter(
        shard.index for seed in range(600) for shard in take_inventory(source, 2, sample=2, seed=seed).sample
    )
    assert set(drawn) == set(range(6))
    assert all(150 < count < 250 for count in drawn.values()), "200 each on average"


def test_source_without_images_is_refused(tmp_path: Path):
    write_pictures(tmp_path / "photos", 1)
    source = open_source(str(tmp_path / "photos"))
    (tmp_path / "photos" / "000.png").unlink()
    with pytest.raises(SourceError, match="no images in it"):
        take_inventory(source, 4, sample=1)


def test_thinned_shard_has_some_of_its_images_in_order():
    shard = Shard(3, "/photos", tuple("abcdefghij"))
    few = thinned(shard, 4)
    assert few.image_ids is not None
    assert len(few.image_ids) == 4
    assert list(few.image_ids) == sorted(few.image_ids)
    assert thinned(shard, 10) == shard
    tar = Shard(3, "/photos/a.tar")
    assert thinned(tar, 1) == tar


def test_first_images_of_a_tar_are_read_and_weighed(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({f"{number}.png": picture(number) for number in range(5)}))
    source = FirstImages(open_source(str(tmp_path / "a.tar")), 2)
    (shard,) = source.plan(1)
    assert [record.image_id for record in source.read(shard)] == ["a.tar/0.png", "a.tar/1.png"]
    assert source.sizes == [len(picture(0)), len(picture(1))]


@pytest.mark.slow
def test_million_keys_take_little_memory(tmp_path: Path):
    code = (
        "import resource, sys\n"
        "from benchmarks.planning import SyntheticKeys\n"
        "from maskmill.pipeline.inventory import take_inventory\n"
        "from maskmill.pipeline.sources import ImageFolder\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "inventory = take_inventory(ImageFolder(SyntheticKeys(sys.argv[1], 10**6), sys.argv[1]), 64, 16)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(inventory.images, inventory.shards, inventory.bytes, after - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    images, shards, size, kilobytes = map(int, done.stdout.split())
    assert (images, shards, size) == (10**6, 15625, 5 * 10**11)
    assert kilobytes < 20_000
