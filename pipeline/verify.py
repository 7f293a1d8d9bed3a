"""Whether an output is whole: every planned image has its row, and every row tells the truth about its mask."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import hashlib
import io
import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.checks import part_offences
from pipeline.errors import ObjectError, RunMismatchError
from pipeline.ledger import RUN_KEY, images_key, masks_key, read_run
from pipeline.plan import PLAN_KEY, Plan, read_plan
from pipeline.records import Shard
from pipeline.storage import PROBE_PREFIX, Storage
from pipeline.table import (
    IDENTITY_KEY,
    IMAGES,
    MASKS,
    SCHEMA_VERSION,
    SCHEMA_VERSION_KEY,
    read_images,
    read_metadata,
    read_parquet,
)

# What reading a damaged part can raise.
_DAMAGE = (ObjectError, pa.ArrowException, OSError, ValueError, KeyError, MemoryError)
_RETRY = re.compile(r"(?:masks|images)/part-(\d+)-retry-([1-9]\d*)\.parquet")
SHARDS_AT_ONCE = 8


@dataclass(frozen=True)
class Check:
    """What one shard with its retries, or the run around the shards, was found to be."""

    offences: tuple[str, ...]  # a line each: which object, what is wrong
    done: bool = False  # whether the shard's part is there
    images: int = 0  # those that a reader of the images table sees
    failed: int = 0  # of the images: failed or quarantined
    masks: int = 0
    shards: int = 0  # in the plan: told once, by the first check


def verify(storage: Storage) -> Iterator[Check]:
    """Checks the run in `storage`: first what holds the shards together, then each shard in the order of its plan.

    Raises RunMismatchError where there is no run or one of another version of maskmill, and StorageError where the
    store cannot be reached, or the plan cannot be read: nothing can be checked then.
    """
    run = read_run(storage)
    if run.get("schema_version") != SCHEMA_VERSION:
        raise RunMismatchError(
            f"{storage.uri}: schema version {run.get('schema_version')}, this maskmill verifies {SCHEMA_VERSION}: "
            "use the version that made the output"
        )
    identity = hashlib.sha256(storage.read(RUN_KEY)).hexdigest()
    plan = read_plan(storage)
    keys = {item.key for item in storage.list()}
    yield Check((*_repeated_plans(plan), *_stray_objects(plan, keys)), shards=len(plan))
    output = _Output(storage, identity, keys, _last_retries(keys))
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as executor:
        window: deque[Future[Check]] = deque()
        for shard in plan:
            window.append(executor.submit(_check_shard, output, shard))
            if len(window) > 2 * SHARDS_AT_ONCE:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


@dataclass(frozen=True)
class _Output:
    """What every check of a shard needs to know."""

    storage: Storage
    identity: str  # sha256
    keys: Collection[str]
    retries: Mapping[str, int]  # shard name -> the number of its last retry


def _last_retries(keys: Collection[str]) -> dict[str, int]:
    retries: dict[str, int] = {}
    for match in filter(None, map(_RETRY.fullmatch, keys)):
        retries[match[1]] = max(retries.get(match[1], 0), int(match[2]))
    return retries


def _repeated_plans(plan: Plan) -> Iterator[str]:
    """By hash first: the ids of ten million images are too much to keep, their hashes are not."""
    hashes = np.sort(np.fromiter((hash(planned) for shard in plan for planned in _planned(shard)), np.int64))
    if repeated := set(hashes[1:][hashes[1:] == hashes[:-1]].tolist()):
        counts = Counter(planned for shard in plan for planned in _planned(shard) if hash(planned) in repeated)
        for planned, count in counts.items():
            if count > 1:
                yield f"{PLAN_KEY}: {planned} is planned {count} times"


def _planned(shard: Shard) -> tuple[str, ...]:
    """What may be planned once only: images, or an archive."""
    return (shard.uri,) if shard.image_ids is None else shard.image_ids


def _stray_objects(plan: Plan, keys: Collection[str]) -> Iterator[str]:
    strays = {key for key in keys if not key.startswith(PROBE_PREFIX)} - {RUN_KEY, PLAN_KEY}
    retries: dict[str, set[str]] = {}
    for key in strays:
        if match := _RETRY.fullmatch(key):
            retries.setdefault(match[1], set()).add(key)
    for shard in plan:
        strays -= {masks_key(shard.name), images_key(shard.name), *retries.get(shard.name, ())}
    for key in sorted(strays):
        yield f"{key}: does not belong to the run"


def _check_shard(output: _Output, shard: Shard) -> Check:
    """The chain of its parts: as planned, first retry, second retry... Each holds what was not ok in the one before."""
    offences: list[str] = []
    images = failed = masks = 0
    ok: set[str] = set()  # in the parts so far
    left = None if shard.image_ids is None else set(shard.image_ids)  # what the part must hold; None: nobody knows
    last = output.retries.get(shard.name, 0)
    for part in (replace(shard, retry=retry) for retry in range(last + 1)):
        tables = _read_part(output, part, last)
        if isinstance(tables, str):
            offences.append(tables)
            left = None
            if masks_key(part.name) not in output.keys and images_key(part.name) in output.keys:
                offences.append(f"{images_key(part.name)}: there, but its masks part is missing")
            continue
        seen = tables.images.filter(pc.field("status") == "ok") if part.retry < last else tables.images
        ids = tables.images["image_id"].to_pylist()
        offences += (
            f"{masks_key(part.name)}: {offence}"
            for offence in (*_membership(part, ids, left, ok), *part_offences(part.name, tables.images, tables.masks))
        )
        offences += _derived_offences(output, part, seen)
        done = {
            image_id
            for image_id, status in zip(ids, tables.images["status"].to_pylist(), strict=True)
            if status == "ok"
        }
        ok |= done
        left = set(ids) - done
        images, failed, masks = images + len(seen), len(left), masks + len(tables.masks)
    return Check(tuple(offences), masks_key(shard.name) in output.keys, images, failed, masks)


@dataclass(frozen=True)
class _Tables:
    """What a part holds."""

    images: pa.Table
    masks: pa.Table


def _read_part(output: _Output, part: Shard, last: int) -> _Tables | str:
    """A part, or in a line what is wrong with the whole of it. `last` is the last retry of its shard."""
    key = masks_key(part.name)
    if key not in output.keys:
        return f"{key}: missing: " + (
            "a later retry is there" if part.retry < last else "`maskmill generate` again makes it"
        )
    try:
        data = output.storage.read(key)
        footer = read_metadata(io.BytesIO(data))
        if footer[IDENTITY_KEY] != output.identity or footer[SCHEMA_VERSION_KEY] != str(SCHEMA_VERSION):
            return f"{key}: belongs to another run than {RUN_KEY} describes"
        images = read_images(io.BytesIO(data))
        masks = read_parquet(data)
        # Offsets that lead out of a buffer would end the process, not raise, where their values are read.
        images.validate(full=True)
        masks.validate(full=True)
    except _DAMAGE as error:
        return f"{key}: damaged: {_one_line(error)}"
    for name, table, schema in (("images", images, IMAGES), ("masks", masks, MASKS)):
        if not table.schema.equals(schema):
            return f"{key}: the {name} table has other columns than maskmill writes"
        if nulls := [field.name for field in schema if not field.nullable and table[field.name].null_count]:
            return f"{key}: the {name} table has nulls in {', '.join(nulls)}"
    return _Tables(images, masks)


def _membership(part: Shard, image_ids: list[str], left: set[str] | None, ok: Collection[str]) -> Iterator[str]:
    """Whether a part has the images that were `left` for it, and no others; `ok` are in an earlier part."""
    present, due = set(image_ids), "left to retry" if part.retry else "planned"
    if part.image_ids is None:
        strays = {image_id for image_id in present if image_id in ok or not _is_in_tar(image_id, part.uri)}
        # A tar that could not be read to its end had a row under its own name.
        missing = {image_id for image_id in (left or ()) if not part.uri.endswith(f"/{image_id}")} - present
    else:
        strays = present - left if left is not None else present & set(ok)
        missing = (left or set()) - present
    for image_id in sorted(missing):
        yield f"{image_id}: {due}, but has no row in the images table"
    for image_id in sorted(strays):
        yield f"{image_id}: has a row in the images table, but was not {due}"


def _is_in_tar(image_id: str, tar_uri: str) -> bool:
    """Whether the id begins with the path of the tar: the end of its address, one part or more."""
    parts = image_id.split("/")
    return any(tar_uri.endswith("/" + "/".join(parts[:count])) for count in range(1, len(parts) + 1))


def _derived_offences(output: _Output, part: Shard, images: pa.Table) -> Iterator[str]:
    key = images_key(part.name)
    if key not in output.keys:
        yield f"{key}: missing: `maskmill generate` again derives it"
        return
    try:
        derived = read_parquet(output.storage.read(key))
    except _DAMAGE as error:
        yield f"{key}: damaged: {_one_line(error)}"
        return
    if not derived.equals(images):
        yield f"{key}: differs from the footer of its masks part"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
