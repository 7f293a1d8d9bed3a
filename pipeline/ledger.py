"""The ledger of a run: its identity and the commits of its shards, all stored in the output."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from maskmill.pipeline.config import DecodingConfig, GeneratorConfig, RunConfig
from maskmill.pipeline.errors import ConfigError, RunMismatchError, SourceError
from maskmill.pipeline.estimate import ESTIMATE_KEY
from maskmill.pipeline.parts import images_key, list_parts, masks_key, parts_of, retry_of, shard_of
from maskmill.pipeline.plan import PLAN_KEY, Plan, encode_plan, read_plan, shard_size
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import ALL_NAMES, NameFilter, Source
from maskmill.pipeline.storage import PROBE_PREFIX, Storage, file_name, prove_create_if_absent
from maskmill.pipeline.table import SCHEMA_VERSION, images_part

RUN_KEY = "_run.json"
IMPORTED = "imported"  # key in `_run.json` of an import, not of a run of a model
REQUESTS_AT_ONCE = 16  # concurrent requests to the store when a run is opened or read


@dataclass(frozen=True)
class Identity:
    """All settings that decide the masks of a run. One output holds one identity."""

    source: str
    weights_sha256: str
    config: RunConfig
    names: NameFilter = ALL_NAMES  # which images of the source are in the run

    def to_json(self) -> str:
        """The content of `_run.json`: readable, with sorted keys. Equal identities give equal text."""
        fields = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        generator = fields["config"]["generator"]
        # Left out where they have their defaults, so that runs from before these settings existed can be continued.
        for name in ("mask_threshold", "use_m2m", "multimask_output", "min_mask_region_area_in"):
            if generator[name] == getattr(GeneratorConfig, name):
                del generator[name]
        return json.dumps(fields, indent=2, sort_keys=True, default=np.ndarray.tolist) + "\n"

    @staticmethod
    def from_json(text: str) -> Identity:
        """The inverse of `to_json`. KeyError, TypeError, ValueError or ConfigError if the text is not an identity."""
        fields = json.loads(text)
        del fields["schema_version"]
        config = fields.pop("config")
        generator = config.pop("generator")
        decoding = DecodingConfig.from_json(config.pop("decoding"))
        if grids := generator.pop("point_grids"):
            grids = tuple(np.array(grid) for grid in grids)
        config = RunConfig(generator=GeneratorConfig(point_grids=grids, **generator), decoding=decoding, **config)
        return Identity(names=NameFilter.from_json(fields.pop("names")), config=config, **fields)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the JSON, hexadecimal. Each part carries it in its footer."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class ImportIdentity:
    """The identity of a run with masks from annotations in another format."""

    source: str  # address of the folder of image files
    format_name: str
    annotations: str  # address of the file or folder
    annotations_sha256: str  # of the file; of a folder, of the list of its images
    names: NameFilter = ALL_NAMES

    def to_json(self) -> str:
        """The content of `_run.json`."""
        fields = {
            "schema_version": SCHEMA_VERSION,
            "source": self.source,
            "config": {},
            IMPORTED: {
                "format": self.format_name,
                "annotations": self.annotations,
                "sha256": self.annotations_sha256,
            },
        }
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    @property
    def sha256(self) -> str:
        """As `Identity.sha256`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class Ledger:
    """The commits of one run. Small and picklable: each worker has a copy.

    It has no state of its own: a shard is done if and only if the output holds its part.
    """

    storage: Storage
    identity: str  # sha256
    is_new: bool = False  # whether this process began the run; of several drivers, one does

    def committed(self) -> set[str]:
        """The names of the shards that are done. Retries are not listed."""
        return {part for part in list_parts(self.storage, "masks") if retry_of(part) == 0}

    def is_committed(self, shard: Shard) -> bool:
        """Whether the shard has a part, from this worker or another."""
        return self.storage.exists(masks_key(shard.name))

    def commit(self, shard: Shard, part: bytes) -> bool:
        """Makes the part the result of its shard. Returns False if the shard has a part: that one is kept."""
        return self.storage.create(masks_key(shard.name), part)

    def publish_images(self, shard_name: str) -> None:
        """Derives the images parts of a committed shard and of its retries. Every caller writes the same bytes.

        Rows that a retry supersedes are removed before the rows of the retry are written, so no reader sees an image
        twice. If another driver commits a retry meanwhile, this one may have written superseded rows again: it derives
        the parts once more.
        """
        parts: list[str] = []
        while parts != (parts := parts_of(self.storage, shard_of(shard_name))):
            for name in parts:
                part = self.storage.read(masks_key(name))
                self.storage.put(images_key(name), images_part(part, superseded=name != parts[-1]))

    def publish_missing_images(self) -> None:
        """Derives the images parts that a stopped driver did not write, or did not rewrite after a retry."""
        committed = set(list_parts(self.storage, "masks"))
        stale = committed - set(list_parts(self.storage, "images")) | {part for part in committed if retry_of(part)}
        # Threads, because most of the time is spent waiting for the store.
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            for _ in threads.map(self.publish_images, set(map(shard_of, stale))):
                pass


def open_run(
    storage: Storage,
    identity: Identity | ImportIdentity,
    source: Source | None,
    images_per_shard: int | None = None,
) -> tuple[Ledger, Plan]:
    """Starts a run in `storage`, or resumes the run there. A resumed run keeps its plan even if the source changed.

    `source` is only used to make the plan; it may be None if there is a plan. By default, `shard_size` chooses the
    number of images per shard.

    Raises RunMismatchError if the output holds another run or other objects, SourceError if the source has no images,
    and StorageError if the store does not honour create-if-absent.
    """
    if isinstance(identity, Identity):  # an import does not list its images
        _refuse_overlap(storage, identity.source)
    if storage.exists(RUN_KEY):
        _refuse_another_run(storage, identity)
    else:
        _refuse_foreign_objects(storage)
    prove_create_if_absent(storage)
    # Planned before anything is written: an error may be in the last line of the source.
    plan = None
    if not storage.exists(PLAN_KEY):
        assert source is not None
        plan = _make_plan(source, images_per_shard or shard_size(source), identity.names)
    is_new = storage.create(RUN_KEY, identity.to_json().encode())
    if not is_new:
        _refuse_another_run(storage, identity)
    if plan:
        storage.create(PLAN_KEY, plan)
    return replace(_open(storage, identity), is_new=is_new), read_plan(storage)


def _make_plan(source: Source, images_per_shard: int, names: NameFilter) -> bytes:
    shards = source.plan(images_per_shard)
    if (first := next(shards, None)) is None:
        raise SourceError(f"{source.uri}: no images in it{names.applied}")
    return encode_plan(source.planned, itertools.chain([first], shards))


def reopen_run(storage: Storage) -> tuple[Identity, Ledger]:
    """The run in `storage`, to continue it. Raises as `open_run` does."""
    if imported := read_run(storage).get(IMPORTED):
        raise RunMismatchError(
            f"{storage.uri}: imported from {imported['annotations']}: no model can process its images again; import "
            "corrected annotations into another output"
        )
    try:
        identity = Identity.from_json(storage.read(RUN_KEY).decode())
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise RunMismatchError(f"{storage.uri}/{RUN_KEY}: cannot continue this run: {error}") from error
    prove_create_if_absent(storage)
    return identity, _open(storage, identity)


def _open(storage: Storage, identity: Identity | ImportIdentity) -> Ledger:
    storage.sweep()
    ledger = Ledger(storage, identity.sha256)
    ledger.publish_missing_images()
    return ledger


def read_run(storage: Storage) -> dict[str, Any]:
    """The identity of the run in `storage`: the content of `_run.json`.

    Raises RunMismatchError if there is no run or a run of another version of maskmill.
    """
    if not storage.exists(RUN_KEY):
        raise RunMismatchError(f"{storage.uri}: not an output of maskmill: it has no {RUN_KEY}")
    try:
        fields = json.loads(storage.read(RUN_KEY))
    except ValueError as error:
        raise RunMismatchError(f"{storage.uri}/{RUN_KEY}: damaged ({error}): run again with an empty output") from error
    if not isinstance(fields, dict):
        raise RunMismatchError(f"{storage.uri}/{RUN_KEY}: not a description of a run: run again with an empty output")
    if (version := fields.get("schema_version")) != SCHEMA_VERSION:
        raise RunMismatchError(
            f"{storage.uri}: made by another version of maskmill, with schema version {version}; this one has "
            f"{SCHEMA_VERSION}: use the version that made the output, or choose another output"
        )
    return fields


def _refuse_overlap(storage: Storage, source: str) -> None:
    if is_inside(storage.uri, source) or is_inside(source, storage.uri):
        raise RunMismatchError(
            f"{storage.uri}: the output and the source {source} are one inside the other: choose another output"
        )


def is_inside(uri: str, folder: str) -> bool:
    """Whether an address is a folder or something below it."""
    return _comparable(uri).is_relative_to(_comparable(folder))


def _comparable(uri: str) -> PurePosixPath:
    return PurePosixPath(uri if "://" in uri else Path(file_name(uri)).resolve())


def _refuse_foreign_objects(storage: Storage) -> None:
    for item in storage.list():
        if item.key.startswith(PROBE_PREFIX) or item.key in (RUN_KEY, ESTIMATE_KEY):
            continue
        if not storage.exists(RUN_KEY):  # another driver may have begun the run meanwhile
            raise RunMismatchError(
                f"{storage.uri}: holds other objects, such as {item.key}, but no run: choose an empty output"
            )


def _refuse_another_run(storage: Storage, identity: Identity | ImportIdentity) -> None:
    there, wanted = (
        {name: json.dumps(value) for name, value in flatten(settings).items()}
        for settings in (read_run(storage), json.loads(identity.to_json()))
    )
    differences = [
        f"{name} is {there.get(name, 'not set')} there and {wanted.get(name, 'not set')} now"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]
    if differences:
        remedy = "Use the same settings to continue it, or choose another output"
        if there.get("source") != wanted["source"]:
            remedy += ". If the images have moved, keep SOURCE and give their new place with --source"
        raise RunMismatchError(f"{storage.uri}: belongs to another run: {'; '.join(differences)}. {remedy}")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary, with nested names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
