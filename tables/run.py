"""A run as users of the Python API see it: `maskmill.open_run`."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskmill.model.errors import ConfigError
from maskmill.pipeline import finished
from maskmill.pipeline.finished import RunImage, open_finished_run
from maskmill.pipeline.parts import list_parts, shard_of
from maskmill.pipeline.storage import open_storage

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from maskmill.tables.torch_dataset import MaskDataset


class Run(finished.Run):
    """A run by image id: `run[image_id]`, `len(run)`, `for image_id in run`, `run.values()`. Picklable.

    Each call reads the output anew, so a run in progress shows the images that are done at that moment. Memory holds
    the plan and one part at a time. All methods raise ObjectError if a part is damaged and StorageError if the store
    cannot be reached.
    """

    def sample(self, n: int, seed: int = 0) -> list[RunImage]:
        """`n` images that were processed without failure, drawn at random, or all of them if there are fewer.

        Each image has the same chance. The same run and seed give the same images. Reads about `n` parts. Raises
        ConfigError if `n` is negative.
        """
        if n < 0:
            raise ConfigError(f"a sample of {n} images: give 0 or more")
        shards = sorted({int(shard_of(part)) for part in list_parts(self.storage, "masks")})
        sizes = self.plan.sizes[shards].astype(np.int64)
        if (sizes < 0).any():  # the number of images in a tar is known after reading it
            sizes = np.array([len(done.images) for done in self.done_shards()], np.int64)
        ends = sizes.cumsum()
        read = lru_cache(maxsize=16)(lambda index: self.done_shard(self.plan.shard(index)))
        ok: dict[int, NDArray[np.bool_]] = {}  # small, so that a run with many failures reads each shard few times
        sample: list[RunImage] = []
        for position in np.random.default_rng(seed).permutation(int(sizes.sum())) if n else ():
            which = int(np.searchsorted(ends, position, "right"))
            index, row = shards[which], int(position - ends[which] + sizes[which])
            if index not in ok:
                ok[index] = np.array(read(index).images["status"].to_pylist()) == "ok"
            if ok[index][row]:
                done = read(index)
                sample.append(self.image(done.shard, done.images.slice(row, 1).to_pylist()[0]))
            if len(sample) == n:
                break
        return sample

    def query(self, sql: str) -> DuckDBPyRelation:
        """The rows of an SQL query over the views `masks` and `images`, as a relation of DuckDB.

        They are computed when the relation is printed or read: `.fetchall()`, `.df()`, `.pl()`, `.to_arrow_table()`.
        docs/tables.md has the functions on masks. Raises QueryError if `sql` is not valid.
        """
        from maskmill.tables.query import query  # imported here because DuckDB and Numba take long to load

        return query(self, sql)

    def torch_dataset(self, transform: Callable[[RunImage], Any] | None = None) -> MaskDataset:
        """The images that were processed without failure as a map-style PyTorch data set.

        Its items are `transform(image)`. Without `transform` they are tensors, as the detection models of torchvision
        take them: see `MaskDataset`. It is picklable if `transform` is, so a DataLoader can use any number of workers.
        The images of a run in progress are those that are done now.
        """
        from maskmill.tables.torch_dataset import MaskDataset, to_tensors  # imported here because torch loads slowly

        return MaskDataset(self, transform or to_tensors)


def open_run(uri: str, moved_to: str | None = None) -> Run:
    """The run at `uri`: a folder or s3://bucket/prefix. Raises as `finished.open_finished_run` does."""
    run = open_finished_run(open_storage(uri), moved_to)
    return Run(run.storage, run.settings, run.plan)
