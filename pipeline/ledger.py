"""What a run is and what of it is done: identity and commits, all kept in the output."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from maskmill.pipeline.config import DecodingConfig, GeneratorConfig, RunConfig
from maskmill.pipeline.errors import ConfigError, RunMismatchError, SourceError
from maskmill.pipeline.plan import PLAN_KEY, Plan, encode_plan, read_plan, shard_size
from maskmill.pipeline.records import Shard
from maskmill.pipeline.sources import ALL_NAMES, NameFilter, Source
from maskmill.pipeline.storage import PROBE_PREFIX, Storage, file_name, prove_create_if_absent
from maskmill.pipeline.table import SCHEMA_VERSION, images_part, read_left_out, read_parquet

RUN_KEY = "_run.json"
REQUESTS_AT_ONCE = 16  # to the store, where a run is opened or summed up
_PART = re.compile(r"part-(\d{5,}(?:-retry-[1-9]\d*)?)\.parquet")

T = TypeVar("T")
R = TypeVar("R")


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
    names: NameFilter = ALL_NAMES  # of the images in the source

    def to_json(self) -> str:
        """As `_run.json` has it: sorted, for people to read. Equal identities give equal text."""
        fields = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps(fields, indent=2, sort_keys=True, default=np.ndarray.tolist) + "\n"

    @staticmethod
    def from_json(text: str) -> Identity:
        """What `to_json` was called on. KeyError, TypeError, ValueError or ConfigError where that was no identity."""
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
        """Of the JSON, hexadecimal: what the parts carry."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class Totals:
    """What a run has made so far."""

    images: int
    failed: int  # of the images
    masks: int
    left_out: Mapping[str, int]  # images of tars that are no part of the run, by reason


@dataclass(frozen=True)
class Ledger:
    """The commits of one run. Small and picklable: every worker has one.

    A part is there or it is not: there is no state but the objects in the output.
    """

    storage: Storage
    identity: str  # sha256

    def committed(self) -> set[str]:
        """The names of the shards that are done, without their retries."""
        return {name for name in self._parts("masks") if _shard_of(name) == name}

    def is_committed(self, shard: Shard) -> bool:
        """Whether somebody has done the shard."""
        return self.storage.exists(masks_key(shard.name))

    def commit(self, shard: Shard, part: bytes) -> bool:
        """Makes the part the result of its shard; False where there is one already, which stands."""
        return self.storage.create(masks_key(shard.name), part)

    def parts_of(self, shard_name: str) -> list[str]:
        """The names of the committed parts of one shard: as planned, first retry, second retry..."""
        return parts_of(self.storage, shard_name)

    def publish_images(self, shard_name: str) -> None:
        """Derives the images parts of a committed shard and of its retries: the same bytes whoever does it.

        What a retry supersedes goes before its own rows come, so that no reader sees an image twice. Where a retry is
        committed meanwhile, by another driver, what it supersedes was perhaps written again: it is derived once more.
        """
        chain: list[str] = []
        while chain != (chain := self.parts_of(_shard_of(shard_name))):
            for name in chain:
                part = self.storage.read(masks_key(name))
                self.storage.put(images_key(name), images_part(part, superseded=name != chain[-1]))

    def publish_missing_images(self) -> None:
        """Derives the images parts that stopped drivers left out, or perhaps left as they were before a retry."""
        committed = self._parts("masks")
        missing = committed - self._parts("images")
        retried = {name for name in committed if _shard_of(name) != name}
        self._in_threads(self.publish_images, {_shard_of(name) for name in missing | retried})

    def retries(self, plan: Plan) -> list[Shard]:
        """The shards with images that failed or were quarantined, each with just these, as its next retry."""
        chains: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._parts("images"):
            chains[_shard_of(name)].append(name)
        failed = dict(zip(chains, self._in_threads(self._failed, chains.values()), strict=True))
        return [self._retry(shard, failed[shard.name], chains[shard.name]) for shard in plan if failed.get(shard.name)]

    def _failed(self, chain: Collection[str]) -> set[str]:
        return {image_id for image_id, ok in self._images(max(chain, key=_retry_of)) if not ok}

    def _retry(self, shard: Shard, failed: Collection[str], chain: Collection[str]) -> Shard:
        retry = max(map(_retry_of, chain)) + 1
        if shard.image_ids is not None:
            image_ids = tuple(image_id for image_id in shard.image_ids if image_id in failed)
            return replace(shard, image_ids=image_ids, retry=retry)
        # A tar that broke off may have more images than those that are known to have failed.
        done = frozenset(image_id for name in chain for image_id, ok in self._images(name) if ok)
        return replace(shard, retry=retry, skip=done, again=frozenset(failed))

    def totals(self) -> Totals:
        """What the images parts add up to."""

        def count(name: str) -> tuple[int, int, int, Counter[str]]:
            part = self.storage.read(images_key(name))
            rows = read_parquet(part, ["status", "n_masks"])
            # A retry reads its tar from the beginning, and so counts all that is left out.
            left_out = read_left_out(io.BytesIO(part)) if name in latest else Counter()
            return len(rows), rows["status"].to_pylist().count("ok"), sum(rows["n_masks"].to_pylist()), left_out

        names = self._parts("images")
        latest = {_shard_of(name): name for name in sorted(names, key=_retry_of)}.values()
        counts = self._in_threads(count, names)
        images, ok, masks = (sum(column) for column in zip((0, 0, 0), *(row[:3] for row in counts), strict=True))
        return Totals(images, images - ok, masks, sum((row[3] for row in counts), Counter()))

    def _images(self, name: str) -> list[tuple[str, bool]]:
        """Each image in an images part, and whether it is ok."""
        rows = read_parquet(self.storage.read(images_key(name)), ["image_id", "status"])
        ok = [status == "ok" for status in rows["status"].to_pylist()]
        return list(zip(rows["image_id"].to_pylist(), ok, strict=True))

    def _parts(self, table: str) -> set[str]:
        """The names of the parts of one table, retries among them."""
        keys = (item.key for item in self.storage.list(f"{table}/part-"))
        return {match[1] for key in keys if (match := _PART.fullmatch(key.removeprefix(f"{table}/")))}

    @staticmethod
    def _in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """In the order of the items. Threads, because the time goes into waiting for the store."""
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as executor:
            return list(executor.map(function, items))


def parts_of(storage: Storage, shard_name: str) -> list[str]:
    """The names of the committed parts of one shard: as planned, first retry, second retry..."""
    names = (f"{shard_name}-retry-{retry}" if retry else shard_name for retry in itertools.count())
    return list(itertools.takewhile(lambda name: storage.exists(masks_key(name)), names))


def _shard_of(part_name: str) -> str:
    """The name of the shard of a part or of its retry."""
    return part_name.partition("-")[0]


def _retry_of(part_name: str) -> int:
    """Which retry a part is; 0 for the shard as planned."""
    return int(part_name.rpartition("-")[2]) if "-" in part_name else 0


def open_run(
    storage: Storage, identity: Identity, source: Source | None, images_per_shard: int | None = None
) -> tuple[Ledger, Plan]:
    """Starts the run in `storage`, or resumes the one there: its plan stands then, whatever is in the source now.

    `source` may be None where there is a plan: it is used to make one, and for nothing else. By default `shard_size`
    chooses the images per shard.

    Raises RunMismatchError where the output holds another run or something else altogether, SourceError where the
    source has nothing to plan, and StorageError where the store does not honour create-if-absent.
    """
    _refuse_overlap(storage, identity.source)
    if storage.exists(RUN_KEY):
        _refuse_another_run(storage, identity)
    else:
        _refuse_foreign_objects(storage)
    prove_create_if_absent(storage)
    # Before anything is written: a source may be refused on its last line.
    plan = None
    if not storage.exists(PLAN_KEY):
        assert source is not None
        plan = _make_plan(source, images_per_shard or shard_size(source), identity.names)
    if not storage.create(RUN_KEY, identity.to_json().encode()):
        _refuse_another_run(storage, identity)
    if plan:
        storage.create(PLAN_KEY, plan)
    return _open(storage, identity)


def _make_plan(source: Source, images_per_shard: int, names: NameFilter) -> bytes:
    shards = source.plan(images_per_shard)
    if (first := next(shards, None)) is None:
        raise SourceError(f"{source.uri}: no images in it{names.applied}")
    return encode_plan(source.planned, itertools.chain([first], shards))


def reopen_run(storage: Storage) -> tuple[Identity, Ledger, Plan]:
    """The run that `storage` holds, to go on with it. Raises as `open_run` does."""
    read_run(storage)
    try:
        identity = Identity.from_json(storage.read(RUN_KEY).decode())
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise RunMismatchError(f"{storage.uri}/{RUN_KEY}: cannot go on with this run: {error}") from error
    prove_create_if_absent(storage)
    return identity, *_open(storage, identity)


def _open(storage: Storage, identity: Identity) -> tuple[Ledger, Plan]:
    storage.sweep()
    ledger = Ledger(storage, identity.sha256)
    ledger.publish_missing_images()
    return ledger, read_plan(storage)


def read_run(storage: Storage) -> dict[str, Any]:
    """The identity of the run in `storage`, as `_run.json` has it.

    Raises RunMismatchError where it holds no run, or one of another version of maskmill.
    """
    if not storage.exists(RUN_KEY):
        raise RunMismatchError(f"{storage.uri}: no output of maskmill (no {RUN_KEY} in it)")
    try:
        fields = json.loads(storage.read(RUN_KEY))
    except ValueError as error:
        raise RunMismatchError(f"{storage.uri}/{RUN_KEY}: damaged ({error}): start again in an empty output") from error
    if not isinstance(fields, dict):
        raise RunMismatchError(f"{storage.uri}/{RUN_KEY}: no description of a run: start again in an empty output")
    if (version := fields.get("schema_version")) != SCHEMA_VERSION:
        raise RunMismatchError(
            f"{storage.uri}: made by another version of maskmill, with schema version {version}; this one has "
            f"{SCHEMA_VERSION}: use the version that made the output, or choose another output"
        )
    return fields


def _refuse_overlap(storage: Storage, source: str) -> None:
    output, images = _comparable(storage.uri), _comparable(source)
    if output.is_relative_to(images) or images.is_relative_to(output):
        raise RunMismatchError(
            f"{storage.uri}: the output and the source {source} lie one inside the other: choose another output"
        )


def _comparable(uri: str) -> PurePosixPath:
    return PurePosixPath(uri if "://" in uri else Path(file_name(uri)).resolve())


def _refuse_foreign_objects(storage: Storage) -> None:
    for item in storage.list():
        if not item.key.startswith(PROBE_PREFIX) and item.key != RUN_KEY:
            raise RunMismatchError(
                f"{storage.uri}: holds other things, such as {item.key}, and no run of maskmill: choose an empty output"
            )


def _refuse_another_run(storage: Storage, identity: Identity) -> None:
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
        remedy = "Use the same settings to go on with it, or choose another output"
        if there.get("source") != wanted["source"]:
            remedy += ". Where the images have moved, SOURCE stays as it was, and --source says where they are now"
        raise RunMismatchError(f"{storage.uri}: belongs to another run: {'; '.join(differences)}. {remedy}")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by name, the names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
