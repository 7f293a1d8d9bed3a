"""Verifies an output: every planned image has one row, and the rows agree with the masks."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np

from maskmill.model.errors import MaskmillError
from maskmill.pipeline.checks import Chain, Check, check_shard
from maskmill.pipeline.errors import ObjectError
from maskmill.pipeline.estimate import ESTIMATE_KEY
from maskmill.pipeline.ledger import RUN_KEY, read_run
from maskmill.pipeline.parts import images_key, masks_key, part_at, part_name, retry_of, shard_of
from maskmill.pipeline.plan import PLAN_KEY, Plan, read_plan
from maskmill.pipeline.pools import generator_threads
from maskmill.pipeline.records import Shard
from maskmill.pipeline.storage import PROBE_PREFIX, Storage
from maskmill.pipeline.summary import is_summary

SHARDS_AT_ONCE = 16  # most of the time per shard is spent waiting for the store
# The number of shards from which processes pay off: they take seconds to start. For 300 parts of 3200 masks on two
# cores: 10 s with two processes, 19 s with one, 18 s with threads, which block each other.
SHARDS_WORTH_PROCESSES = 64


def verify(storage: Storage) -> Iterator[Check]:
    """Checks the run in `storage`: first the plan and the list of objects, then each shard in the order of the plan.

    Raises RunMismatchError if there is no run or a run of another version of maskmill, and StorageError if the store
    cannot be reached or the plan cannot be read.
    """
    read_run(storage)
    identity = hashlib.sha256(storage.read(RUN_KEY)).hexdigest()
    plan = read_plan(storage)
    keys = {item.key for item in storage.list()}
    yield Check((*_repeated_plans(plan), *_stray_objects(plan, keys)), shards=len(plan))
    retries = _last_retries(keys)
    with generator_threads(SHARDS_AT_ONCE) as threads, _checker(len(plan)) as check:
        window: deque[Future[Check]] = deque()
        for shard in plan:
            window.append(threads.submit(lambda shard: check(_fetch(storage, keys, shard, retries, identity)), shard))
            if len(window) == SHARDS_AT_ONCE:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


@contextmanager
def _checker(n_shards: int) -> Iterator[Callable[[Chain], Check]]:
    """`check_shard`, in separate processes if there are many shards."""
    if n_shards < SHARDS_WORTH_PROCESSES:
        yield check_shard
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([check_shard.__module__])
    # Ctrl-C reaches all processes. Only this one handles it: it stops the others.
    arguments = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(os.cpu_count(), context, **arguments) as processes:

        def check(chain: Chain) -> Check:
            try:
                return processes.submit(check_shard, chain).result()
            except BrokenProcessPool as error:
                raise MaskmillError("a process that checked parts was killed, perhaps out of memory") from error

        yield check


def _fetch(storage: Storage, keys: Set[str], shard: Shard, retries: Mapping[str, int], identity: str) -> Chain:
    """Reads the objects of a shard. Raises StorageError if the store cannot be reached."""
    last = retries.get(shard.name, 0)
    objects: dict[str, bytes | str] = {}
    for name in (part_name(shard.index, retry) for retry in range(last + 1)):
        for key in keys & {masks_key(name), images_key(name)}:
            try:
                objects[key] = storage.read(key)
            except ObjectError as error:
                objects[key] = f"cannot be read: {error}"
    return Chain(shard, last, objects, identity)


def _last_retries(keys: Set[str]) -> dict[str, int]:
    """The number of the last retry of each shard that has a part."""
    retries: dict[str, int] = {}
    for part in filter(None, map(part_at, keys)):
        retries[shard_of(part)] = max(retries.get(shard_of(part), 0), retry_of(part))
    return retries


def _repeated_plans(plan: Plan) -> Iterator[str]:
    """Compares hashes first, to save memory: hashes of ten million ids fit, the ids do not."""
    hashes = np.sort(np.fromiter((hash(planned) for shard in plan for planned in _planned(shard)), np.int64))
    if repeated := set(hashes[1:][hashes[1:] == hashes[:-1]].tolist()):
        counts = Counter(planned for shard in plan for planned in _planned(shard) if hash(planned) in repeated)
        for planned, count in counts.items():
            if count > 1:
                yield f"{PLAN_KEY}: {planned} is planned {count} times"


def _planned(shard: Shard) -> tuple[str, ...]:
    """The ids that must be unique in a plan: image ids, or the address of a tar."""
    return (shard.uri,) if shard.image_ids is None else shard.image_ids


def _stray_objects(plan: Plan, keys: Set[str]) -> Iterator[str]:
    shards = {shard.name for shard in plan}
    for key in sorted(keys - {RUN_KEY, PLAN_KEY, ESTIMATE_KEY}):
        part = part_at(key)
        if not key.startswith(PROBE_PREFIX) and not is_summary(key) and (part is None or shard_of(part) not in shards):
            yield f"{key}: does not belong to the run"
