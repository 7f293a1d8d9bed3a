"""What a run is and what of it is done: identity and commits, all kept in the output."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import RunConfig
from pipeline.errors import RunMismatchError
from pipeline.plan import PLAN_KEY, Plan, encode_plan, read_plan
from pipeline.records import Shard
from pipeline.sources import Source
from pipeline.storage import PROBE_PREFIX, Storage, prove_create_if_absent
from pipeline.table import SCHEMA_VERSION, images_part, read_parquet

RUN_KEY = "_run.json"


def masks_key(shard_name: str) -> str:
    """Where the masks part of a shard is."""
    return f"masks/part-{shard_name}.parquet"


def images_key(shard_name: str) -> str:
    """Where the images part of a shard is."""
    return f"images/part-{shard_name}.parquet"


@dataclass(frozen=True)
class Identity:
    """Everything that decides which masks a run makes. One output holds one identity."""

    source: str
    weights_sha256: str
    config: RunConfig

    def to_json(self) -> str:
        """As `_run.json` has it: sorted, for people to read. Equal identities give equal text."""
        fields = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(fields, indent=2, sort_keys=True, default=np.ndarray.tolist) + "\n"

    @property
    def sha256(self) -> str:
        """Of the JSON, hexadecimal: what the parts carry."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class Totals:
    """What a run has made so far."""

    images: int
    failed: int  # of the images
    masks: int


@dataclass(frozen=True)
class Ledger:
    """The commits of one run. Small and picklable: every worker has one.

    A part is there or it is not: there is no state but the objects in the output.
    """

    storage: Storage
    identity: str  # sha256

    def committed(self) -> set[str]:
        """The names of the shards that are done."""
        return self._parts("masks")

    def is_committed(self, shard: Shard) -> bool:
        """Whether somebody has done the shard."""
        return self.storage.exists(masks_key(shard.name))

    def commit(self, shard: Shard, part: bytes) -> bool:
        """Makes the part the result of its shard; False where there is one already, which stands."""
        return self.storage.create(masks_key(shard.name), part)

    def publish_images(self, shard_name: str) -> None:
        """Derives the images part of a committed shard: the same bytes whoever does it, however often."""
        self.storage.put(images_key(shard_name), images_part(self.storage.read(masks_key(shard_name))))

    def publish_missing_images(self) -> None:
        """Derives the images parts that a stopped driver left out."""
        for shard_name in sorted(self.committed() - self._parts("images")):
            self.publish_images(shard_name)

    def totals(self) -> Totals:
        """What the images parts add up to."""
        n_images, n_ok, n_masks = 0, 0, 0
        for shard_name in self._parts("images"):
            rows = read_parquet(self.storage.read(images_key(shard_name)), ["status", "n_masks"])
            n_images += len(rows)
            n_ok += rows["status"].to_pylist().count("ok")
            n_masks += sum(rows["n_masks"].to_pylist())
        return Totals(n_images, n_images - n_ok, n_masks)

    def _parts(self, table: str) -> set[str]:
        head, tail = f"{table}/part-", ".parquet"
        keys = (item.key for item in self.storage.list(head))
        return {key.removeprefix(head).removesuffix(tail) for key in keys if key.endswith(tail)}


def open_run(storage: Storage, identity: Identity, source: Source, images_per_shard: int) -> tuple[Ledger, Plan]:
    """Starts the run in `storage`, or resumes the one there: its plan stands then, whatever is in the source now.

    Raises RunMismatchError where the output holds another run or something else altogether, SourceError where the
    source has nothing to plan, and StorageError where the store does not honour create-if-absent.
    """
    _refuse_overlap(storage, source)
    if not storage.exists(RUN_KEY):
        _refuse_foreign_objects(storage)
    prove_create_if_absent(storage)
    if not storage.create(RUN_KEY, identity.to_json().encode()):
        _refuse_another_run(storage, identity)
    if not storage.exists(PLAN_KEY):
        storage.create(PLAN_KEY, encode_plan(source.plan(images_per_shard)))
    ledger = Ledger(storage, identity.sha256)
    ledger.publish_missing_images()
    return ledger, read_plan(storage)


def read_run(storage: Storage) -> dict[str, Any]:
    """The identity of the run in `storage`, as `_run.json` has it. RunMismatchError where it holds no run."""
    if not storage.exists(RUN_KEY):
        raise RunMismatchError(f"{storage.uri}: no output of maskmill (no {RUN_KEY} in it)")
    try:
        fields = json.loads(storage.read(RUN_KEY))
    except ValueError as error:
        raise RunMismatchError(f"{storage.uri}/{RUN_KEY}: damaged ({error}): start again in an empty output") from error
    if not isinstance(fields, dict):
        raise RunMismatchError(f"{storage.uri}/{RUN_KEY}: no description of a run: start again in an empty output")
    return fields


def _refuse_overlap(storage: Storage, source: Source) -> None:
    output, images = Path(storage.uri).resolve(), Path(source.uri).resolve()
    if output.is_relative_to(images) or images.is_relative_to(output):
        raise RunMismatchError(
            f"{storage.uri}: the output and the source {source.uri} lie one inside the other: choose another output"
        )


def _refuse_foreign_objects(storage: Storage) -> None:
    for item in storage.list():
        if not item.key.startswith(PROBE_PREFIX) and item.key != RUN_KEY:
            raise RunMismatchError(
                f"{storage.uri}: holds other things, such as {item.key}, and no run of maskmill: choose an empty output"
            )


def _refuse_another_run(storage: Storage, identity: Identity) -> None:
    there = _flat(read_run(storage))
    wanted = _flat(json.loads(identity.to_json()))
    differences = [
        f"{name} is {there.get(name, 'not set')} there and {wanted.get(name, 'not set')} now"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]
    if differences:
        raise RunMismatchError(
            f"{storage.uri}: belongs to another run: {'; '.join(differences)}. "
            "Use the same settings to go on with it, or choose another output"
        )


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested names joined by dots, values as JSON."""
    flat: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value)
    return flat
