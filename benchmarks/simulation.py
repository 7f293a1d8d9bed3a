"""Workers that are simulated in virtual time, and an output in memory, for the driver of a run.

A worker takes its shards one after the other and reports as `cluster._Worker` and `worker.process_shard` do: the first
image at once, then every PROGRESS_SECONDS. Machines are lost at random and come back, and some images end their worker.
"""

from __future__ import annotations

import heapq
import io
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import ActorDiedError, WorkerCrashedError

from maskmill.pipeline.cluster import PROGRESS_SECONDS
from maskmill.pipeline.errors import ObjectError
from maskmill.pipeline.parts import masks_key
from maskmill.pipeline.placement import Machine, Placement
from maskmill.pipeline.progress import Attempt, Overtaken, Progress
from maskmill.pipeline.records import Shard
from maskmill.pipeline.storage import Skip, Storage, StoredObject

Records = list[Progress | Overtaken]
Result = Records | Exception | None  # None: the stream ends


@dataclass(frozen=True)
class Scenario:
    """A cluster of machines with one GPU and one worker each. Times are seconds."""

    workers: int
    image_seconds: NDArray[np.float64]  # recorded times of images, which are drawn at random
    shard_seconds: float = 60.0  # mean; the recorded times are scaled to it
    start_seconds: float = 60.0  # from the start of a worker to its first image
    # From the last image of a shard to its commit; meanwhile the next shard has the device.
    commit_seconds: float = 2.0
    hours_between_losses: float = 10.0  # of one machine, mean
    replacement_seconds: float = 180.0  # until another machine joins
    deadly_images: float = 1e-5  # share of the images that end their worker each time
    seed: int = 0


@dataclass(frozen=True)
class CallCosts:
    """CPU seconds of the driver's process for the calls of Ray."""

    waiting: float  # for each stream in each round
    record_list: float  # to receive one list of records
    shard: float  # to send one shard


@dataclass(eq=False)
class _Stream:
    """The results of one call."""

    worker: _SimulatedWorker
    shard: Shard | None = None  # None: a call of `start` or `place`
    attempt: Attempt = Attempt()
    results: deque[Result] = field(default_factory=deque[Result])
    coming: Iterator[tuple[float, Records | Exception]] | None = None  # the reports that are still to come
    seconds: float = 0.0  # that its images take


@dataclass(eq=False)
class _SimulatedWorker:
    name: str
    machine: str = ""  # empty while it waits for one
    alive: bool = True
    streams: list[_Stream] = field(default_factory=list[_Stream])
    waiting: deque[_Stream] = field(default_factory=deque[_Stream])  # shards that wait for the device
    began: float = 0.0  # when it got its machine


class SimulatedWorkers:
    """`Workers` in virtual time.

    Time passes while the driver waits, and by the CPU time that it takes between its calls (`driver_seconds`).
    """

    def __init__(self, scenario: Scenario, storage: MemoryStorage, costs: CallCosts) -> None:
        self._scenario, self._storage, self._costs = scenario, storage, costs
        self._random = np.random.default_rng(scenario.seed)
        self._image_seconds = scenario.image_seconds / scenario.image_seconds.mean() * scenario.shard_seconds
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._machines: dict[str, _SimulatedWorker | None] = {}
        self._without_machine: deque[_SimulatedWorker] = deque()
        for _ in range(scenario.workers):
            self._add_machine()
        self.driver_seconds = 0.0  # CPU of the driver, without the calls of Ray
        self.call_seconds = 0.0  # CPU of the calls of Ray, by `costs`
        self.machine_seconds = 0.0  # that workers had a machine
        self.useful_seconds = 0.0  # of images in committed shards
        self.repeated_seconds = 0.0  # of images in shards that another worker committed first
        self.losses = 0  # of machines
        self.starting_seconds = 0.0  # of workers that had a machine and not yet an engine
        self.idle_seconds = 0.0  # of workers that the driver has no shard for
        self.first_end: float | None = None  # when the driver ended the first worker that was alive
        self._idle: set[_SimulatedWorker] = set()
        self._ready: dict[_Stream, None] = {}  # streams with results
        self._entered = time.thread_time()

    # What the driver calls.

    def now(self) -> float:
        return self._now

    def machines(self) -> Mapping[str, Machine]:
        return {machine: {"CPU": 8.0, "GPU": 1.0} for machine in self._machines}

    def draining(self) -> Set[str]:
        return frozenset()  # machines are lost without a notice

    def start(self, placement: Placement) -> tuple[_SimulatedWorker, _Stream]:
        worker = _SimulatedWorker(f"worker:{next(self._numbers)}")
        stream = _Stream(worker)
        worker.streams.append(stream)
        if free := next((machine for machine, user in self._machines.items() if user is None), None):
            self._occupy(free, worker)
        else:
            self._without_machine.append(worker)
        return worker, stream

    def place(self, actor: _SimulatedWorker) -> _Stream:
        raise NotImplementedError  # Ray reports every simulated death at once, never as ActorUnavailableError

    def process(self, actor: _SimulatedWorker, shard: Shard, attempt: Attempt) -> _Stream:
        self._charge(self._costs.shard)
        stream = _Stream(actor, shard, attempt)
        self._idle.discard(actor)
        actor.streams.append(stream)
        actor.waiting.append(stream)
        if len(actor.waiting) == 1:
            self._at(self._now, lambda: self._infer(actor, stream))
        return stream

    def wait(self, references: Sequence[_Stream], timeout: float, pause: float) -> Sequence[_Stream]:
        self._take_driver_time()
        self._charge(self._costs.waiting * len(references))
        began, idle = self._now, len(self._idle)
        deadline = self._now + timeout
        self._run_events(self._now)
        while not self._ready and self._events and self._events[0][0] <= deadline:
            self._run_events(self._events[0][0])
        self._run_events(self._now + pause if self._ready else deadline)
        self.idle_seconds += idle * (self._now - began)
        ready = list(self._ready)
        self._entered = time.thread_time()
        return ready

    def result(self, reference: _Stream) -> tuple[str, str]:
        result = self._next_result(reference)
        if isinstance(result, Exception):
            raise result
        reference.worker.streams.clear()
        self._idle.add(reference.worker)
        return reference.worker.machine, reference.worker.name

    def next_records(self, stream: _Stream) -> Records:
        self._charge(self._costs.record_list)
        result = self._next_result(stream)
        if isinstance(result, Exception):
            raise result
        if result is None:
            stream.worker.streams.remove(stream)
            if not stream.worker.streams:
                self._idle.add(stream.worker)
            raise StopIteration
        return result

    def kill(self, actor: _SimulatedWorker) -> None:
        if actor.alive and self.first_end is None:
            self.first_end = self._now
        self._end(actor)
        for stream in actor.streams:
            self._ready.pop(stream, None)

    def export(self, shards: Mapping[str, int], workers: Mapping[str, int]) -> None:
        pass  # no Prometheus is there

    # What happens meanwhile.

    def _add_result(self, stream: _Stream, result: Result) -> None:
        stream.results.append(result)
        self._ready[stream] = None

    def _next_result(self, stream: _Stream) -> Result:
        result = stream.results.popleft()
        if not stream.results:
            del self._ready[stream]
        return result

    def _take_driver_time(self) -> None:
        seconds = time.thread_time() - self._entered
        self.driver_seconds += seconds
        self._now += seconds

    def _charge(self, seconds: float) -> None:
        self.call_seconds += seconds
        self._now += seconds

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def _run_events(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, event = heapq.heappop(self._events)
            self._now = max(self._now, when)
            event()
        self._now = max(self._now, until)

    def _add_machine(self) -> None:
        machine = f"machine-{next(self._numbers)}"
        self._machines[machine] = None
        lifetime = self._random.exponential(self._scenario.hours_between_losses * 3600)
        self._at(self._now + lifetime, lambda: self._lose(machine))
        while self._without_machine:
            if (worker := self._without_machine.popleft()).alive:
                self._occupy(machine, worker)
                return

    def _occupy(self, machine: str, worker: _SimulatedWorker) -> None:
        self._machines[machine] = worker
        worker.machine, worker.began = machine, self._now
        (starting,) = worker.streams

        def start() -> None:
            self.starting_seconds += self._scenario.start_seconds
            if worker.alive:
                self._add_result(starting, [])

        self._at(self._now + self._scenario.start_seconds, start)

    def _lose(self, machine: str) -> None:
        worker = self._machines.pop(machine)
        self.losses += 1
        if worker:
            self._die(worker, ActorDiedError())
        self._at(self._now + self._scenario.replacement_seconds, self._add_machine)

    def _die(self, worker: _SimulatedWorker, error: Exception) -> None:
        if worker.alive:
            for stream in worker.streams:
                if None not in stream.results:  # otherwise its end is on the way
                    self._add_result(stream, error)
            self._end(worker)

    def _end(self, worker: _SimulatedWorker) -> None:
        if not worker.alive:
            return
        worker.alive = False
        self._idle.discard(worker)
        if worker.machine:
            self.machine_seconds += self._now - worker.began
        if worker.machine in self._machines:
            self._machines[worker.machine] = None
            while self._without_machine:
                if (other := self._without_machine.popleft()).alive:
                    self._occupy(worker.machine, other)
                    return

    def _infer(self, worker: _SimulatedWorker, stream: _Stream) -> None:
        """Gives the device to a shard."""
        if not worker.alive:
            return
        assert stream.shard is not None
        committed = masks_key(stream.shard.name) in self._storage.objects
        if not committed:
            stream.coming = self._reports(stream, stream.shard)
        self._report_next(stream)

    def _report_next(self, stream: _Stream) -> None:
        worker = stream.worker
        if (report := next(stream.coming or iter(()), None)) is None:  # the device is free
            assert stream.shard is not None
            assert worker.waiting[0] is stream
            worker.waiting.popleft()
            self._at(self._now + self._scenario.commit_seconds, lambda: self._commit(stream))
            if worker.waiting:
                self._infer(worker, worker.waiting[0])
            return
        when, records = report

        def deliver() -> None:
            if not worker.alive:
                return
            if isinstance(records, Exception):
                self._die(worker, records)
                return
            self._add_result(stream, records)
            self._report_next(stream)

        self._at(when, deliver)

    def _reports(self, stream: _Stream, shard: Shard) -> Iterator[tuple[float, Records | Exception]]:
        """The reports about the images of a shard from now on, and their times, while it has the device."""
        assert shard.image_ids is not None
        images, isolated = len(shard.image_ids), stream.attempt.isolated
        drawn = np.random.default_rng([self._scenario.seed, shard.index])
        seconds = drawn.choice(self._image_seconds, images) / images
        deadly = set(np.flatnonzero(drawn.random(images) < self._scenario.deadly_images).tolist())
        at, last = self._now, -np.inf
        unsent: Records = []
        stream.seconds = float(seconds.sum())
        for number, image_id in enumerate(shard.image_ids):
            quarantined = image_id in stream.attempt.quarantined
            if number == 0 or isolated:
                yield at, [Progress(shard.index, image_id, "decode")]
                last = at
            if number in deadly and not quarantined:
                yield at + seconds[number], WorkerCrashedError()
            at += 0 if quarantined else seconds[number]
            status = "quarantined" if quarantined else "ok"
            unsent.append(Progress(shard.index, image_id, "rle", status, 100, 1000 * seconds[number]))
            if number == images - 1 or isolated or at - last >= PROGRESS_SECONDS:
                yield at, unsent
                unsent, last = [], at

    def _commit(self, stream: _Stream) -> None:
        if not stream.worker.alive:
            return
        assert stream.shard is not None
        key = masks_key(stream.shard.name)
        if key in self._storage.objects:
            self.repeated_seconds += stream.seconds
            self._add_result(stream, [Overtaken(stream.shard.index)])
        else:
            self.useful_seconds += stream.seconds
            self._storage.objects[key] = b""
        self._add_result(stream, None)


@dataclass(frozen=True)
class MemoryStorage:
    """A `Storage` in memory that counts the requests that an object store would get."""

    objects: dict[str, bytes] = field(default_factory=dict[str, bytes])
    requests: Counter[str] = field(default_factory=Counter[str])

    @property
    def uri(self) -> str:
        return "memory://out"

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        for number, key in enumerate(sorted(key for key in self.objects if key.startswith(prefix))):
            if number % 1000 == 0:  # keys per answer of S3
                self.requests["list"] += 1
            if not skip(key):
                yield StoredObject(key, len(self.objects[key]))

    def read(self, key: str) -> bytes:
        self.requests["read"] += 1
        if key not in self.objects:
            raise ObjectError(f"{key}: no such object")
        return self.objects[key]

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self.read(key))

    def exists(self, key: str) -> bool:
        self.requests["exists"] += 1
        return key in self.objects

    def create(self, key: str, data: bytes) -> bool:
        self.requests["write"] += 1
        if key in self.objects:
            return False
        self.objects[key] = data
        return True

    def put(self, key: str, data: bytes) -> None:
        self.requests["write"] += 1
        self.objects[key] = data

    def put_chunks(self, key: str, chunks: Iterable[bytes]) -> None:
        self.put(key, b"".join(chunks))

    def delete(self, key: str) -> None:
        self.requests["write"] += 1
        self.objects.pop(key, None)

    def sweep(self) -> None:
        pass

    def commit_paths(self) -> Sequence[Storage]:
        return [self]
