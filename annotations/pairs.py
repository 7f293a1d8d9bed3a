"""The images of two runs, A and B, paired by id, and their masks."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from maskmill.annotations.records import AnnotationError
from maskmill.pipeline.errors import RunMismatchError
from maskmill.pipeline.finished import Run, open_finished_run
from maskmill.pipeline.storage import Storage

_COLUMNS = ("image_id", "shard", "image_height", "image_width", "sha256", "status")
_IMAGES_AT_ONCE = 1024  # rows of the table that are Python objects at a time


@dataclass(frozen=True, eq=False)
class RunIndex:
    """The images that a run has processed so far, without their masks: about 150 bytes each."""

    run: Run
    shards_done: int
    images: pa.Table  # some columns of IMAGES; one row per image

    def __len__(self) -> int:
        return len(self.images)

    @property
    def failed(self) -> int:
        """The number of images that failed or were quarantined."""
        return len(self.images.filter(pc.field("status") != "ok"))


def index_run(storage: Storage) -> RunIndex:
    """Reads the images of the run in `storage`.

    Raises RunMismatchError if there is no run, AnnotationError if none of its shards is done, ObjectError if a part is
    damaged, and StorageError if the store cannot be reached.
    """
    run = open_finished_run(storage)
    tables = [done.images.select(_COLUMNS) for done in run.done_shards()]
    if not tables:
        raise AnnotationError(f"{storage.uri}: no shard of this run is done yet")
    return RunIndex(run, len(tables), pa.concat_tables(tables))


@dataclass(frozen=True)
class LeftOut:
    """Images that cannot be compared, for one reason."""

    images: int
    first: tuple[str, ...]  # ids


@dataclass(frozen=True, eq=False)
class Pairs:
    """The images that can be compared, sorted by part, so that each part is read once."""

    a: RunIndex
    b: RunIndex
    table: pa.Table  # the columns of both indexes, with the suffixes _A and _B
    left_out: Mapping[str, LeftOut]  # by reason: the first one that applies

    def __len__(self) -> int:
        return len(self.table)


def pair_images(a: RunIndex, b: RunIndex, limit: int) -> Pairs:
    """Pairs images by id. `left_out` names at most `limit` images per reason.

    Raises RunMismatchError if the runs have no image in common.
    """
    pairs = a.images.join(
        b.images, "image_id", join_type="full outer", left_suffix="_A", right_suffix="_B", use_threads=False
    ).sort_by([("shard_A", "ascending"), ("shard_B", "ascending"), ("image_id", "ascending")])
    failed_a, failed_b = (pc.field(f"status_{run}") != "ok" for run in "AB")
    other_bytes, other_height, other_width = (
        # Unknown in one of the runs, as after an import, is not a difference.
        (pc.field(f"{column}_A") != pc.field(f"{column}_B"))
        & pc.field(f"{column}_A").is_valid()
        & pc.field(f"{column}_B").is_valid()
        for column in ("sha256", "image_height", "image_width")
    )
    reasons = {
        "only in A": pc.field("shard_B").is_null(),
        "only in B": pc.field("shard_A").is_null(),
        "failed in both": failed_a & failed_b,
        "failed in A": failed_a,
        "failed in B": failed_b,
        "another picture": other_bytes | other_height | other_width,
    }
    left_out: dict[str, LeftOut] = {}
    for reason, holds in reasons.items():
        image_ids = pairs.filter(holds)["image_id"]
        left_out[reason] = LeftOut(len(image_ids), tuple(image_ids[:limit].to_pylist()))
        pairs = pairs.filter(~holds)
    if left_out["only in A"].images == len(a) and left_out["only in B"].images == len(b):
        ids = " and ".join(f"{index.images['image_id'][0]} in {index.run.storage.uri}" for index in (a, b))
        raise RunMismatchError(f"the runs have no image in common: example ids are {ids}")
    return Pairs(a, b, pairs, left_out)


@dataclass(frozen=True, eq=False)
class PairedMasks:
    """The masks of an image in both runs, as COCO's compressed counts, in the order of mask_id."""

    image_id: str
    height: int
    width: int
    counts_N: Sequence[bytes]  # in A
    counts_K: Sequence[bytes]  # in B


def read_pairs(pairs: Pairs) -> Iterator[PairedMasks]:
    """The masks of each image. Holds one part of each run in memory at a time.

    Raises ObjectError if a part or a mask is damaged, and StorageError if the store cannot be reached.
    """
    read_a, read_b = pairs.a.run.rle_reader(), pairs.b.run.rle_reader()
    for batch in pairs.table.to_batches(max_chunksize=_IMAGES_AT_ONCE):
        for row in batch.to_pylist():
            image_id, height, width = row["image_id"], row["image_height_A"], row["image_width_A"]
            counts_N, counts_K = read_a(row["shard_A"], image_id), read_b(row["shard_B"], image_id)
            pairs.a.run.check_rles(image_id, counts_N, height, width)
            pairs.b.run.check_rles(image_id, counts_K, height, width)
            yield PairedMasks(image_id, height, width, counts_N, counts_K)
