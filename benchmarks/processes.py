"""Measures each engine in a process of its own.

A process that has run another engine has another heap: segment_anything takes up to 1.9 times as long in a new process
as after maskmill, which sets glibc's malloc for its whole process. Users run one engine per process.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import peers, roofline
from benchmarks.load import Candidates, Replay
from benchmarks.peers import Engine, EngineFactory
from maskmill.filters.names import FILTERS
from maskmill.model.checkpoint import load_model
from maskmill.model.config import NetworkConfig
from maskmill.model.families.sam1.config import SamConfig
from maskmill.model.families.sam2.config import Sam2Config
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.records import ImageMasks, ImageResult, Shard
from maskmill.pipeline.table import encode_part
from testing.networks import random_network, randomise

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base
    from transformers import SamModel

# The package with the published generator, by family.
PUBLISHED = {"sam1": "segment_anything", "mini": "segment_anything", "mobile_sam": "mobile_sam", "sam2": "sam2"}
PEERS = (*PUBLISHED.values(), "transformers")
WARM_UP_POINTS_PER_SIDE = 8  # one batch of the published generator


@dataclass(frozen=True)
class Photograph:
    """An encoded image, its size in pixels and the candidate masks that `mini` predicts for it."""

    name: str
    data: bytes
    width: int
    height: int
    candidates: Candidates


@dataclass(frozen=True)
class Setup:
    """What all engines of a run have in common."""

    variant: NetworkConfig
    config: GeneratorConfig
    photographs: list[Photograph]
    device: torch.device
    repeats: int
    # Whether transformers takes part. The weights then come from its network.
    transformers: bool

    @property
    def replays(self) -> bool:
        """Whether the masks are those of `mini`, because the weights are random."""
        return self.variant.name != "mini"


@dataclass(frozen=True)
class Measurement:
    """One engine on one photograph: the best time of its runs, and the number of masks."""

    seconds: float
    masks: int
    # The rest is for maskmill only: by step, and the remaining masks after each filter.
    milliseconds: dict[str, float] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)


class EngineProcess:
    """An engine in a process of its own, ready after its warm-up.

    `dtypes` are those of most matrix products of maskmill, by step. A process that ends early raises EOFError.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, setup, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.dtypes: Mapping[str, torch.dtype] = self._connection.recv()

    def measure(self, index: int) -> Measurement:
        """Runs the engine on the photograph of the setup with this index."""
        self._connection.send(index)
        return self._connection.recv()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()


def _serve(name: str, setup: Setup, connection: Connection) -> None:
    """The loop of the process: receives the index of a photograph, sends its measurement. Ends with the connection."""
    replay = Replay(setup.variant, setup.device) if setup.replays else None
    factory, dtypes = _engine(name, setup, replay)
    _warm_up(factory, setup, replay)
    engine = factory(setup.config)
    connection.send(dtypes)
    while True:
        try:
            photograph = setup.photographs[connection.recv()]
        except EOFError:
            return
        connection.send(_measure(engine, photograph, setup, replay))


def _engine(name: str, setup: Setup, replay: Replay | None) -> tuple[EngineFactory, dict[str, torch.dtype]]:
    """Creates an engine with the weights that all engines share, and the dtypes of `EngineProcess`."""
    if name == "sam2":
        assert isinstance(setup.variant, Sam2Config)
        return peers.sam2(_published_sam2(setup.variant), setup.device, replay), {}
    if name == "transformers":
        return peers.transformers(_twin(setup.variant), setup.variant.image_size, setup.device, replay), {}
    network = _network(setup)
    if name in PEERS:
        return peers.segment_anything(network, setup.device, replay), {}
    if name == "compat":
        return peers.compat(network, setup.device, replay), {}
    optimized = optimize(network, name, setup.device)
    prompts = optimized.screen_dtype or optimized.decoder_dtype
    return partial(peers.Maskmill, optimized, replay), {"encode": optimized.encoder_dtype, "prompt": prompts}


def _network(setup: Setup) -> Network:
    """Our network, with the packaged weights of `mini` or fixed random ones."""
    if not setup.replays:
        return load_model("mini", None).network
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(setup.variant, Sam2Config):
            path = Path(folder) / "sam2.pt"
            torch.save({"model": _published_sam2(setup.variant).state_dict()}, path)
        elif setup.transformers:
            path = Path(folder) / "model.safetensors"
            _twin(setup.variant).save_pretrained(folder)
        else:
            return random_network(setup.variant)
        return load_model(setup.variant.name, path).network


def _twin(variant: NetworkConfig) -> SamModel:
    """The network of transformers."""
    from testing.hugging_face import random_hugging_face

    assert isinstance(variant, SamConfig), "only the networks of sam1 have a twin in transformers"
    return random_hugging_face(variant)


def _published_sam2(variant: Sam2Config) -> SAM2Base:
    """The network of sam2."""
    from testing.sam2_oracles import published_sam2

    network = published_sam2(variant)
    randomise(network)
    return network


def _warm_up(factory: EngineFactory, setup: Setup, replay: Replay | None) -> None:
    """Runs an engine on a few points: the first run includes buffer allocation and kernel selection."""
    photograph = setup.photographs[0]
    if replay:
        replay.show(photograph.candidates)
    few = min(WARM_UP_POINTS_PER_SIDE, setup.config.points_per_side or WARM_UP_POINTS_PER_SIDE)
    factory(replace(setup.config, points_per_side=few))(photograph.data)


def _measure(engine: Engine, photograph: Photograph, setup: Setup, replay: Replay | None) -> Measurement:
    if replay:
        replay.show(photograph.candidates)
    clock = partial(roofline.synchronized_clock, setup.device)
    seconds, masks = [], 0
    for _ in range(setup.repeats):
        start = clock()
        masks = len(engine(photograph.data))
        seconds.append(clock() - start)
    if not isinstance(engine, peers.Maskmill):
        return Measurement(min(seconds), masks)
    milliseconds = _steps(engine, photograph, setup.device)
    assert engine.masks is not None
    return Measurement(min(seconds), masks, milliseconds, _left(engine.masks))


def _steps(engine: peers.Maskmill, photograph: Photograph, device: torch.device) -> dict[str, float]:
    """Returns the milliseconds of each step in the last run.

    On a GPU, these are measured in an additional run that synchronises with the device after every step.
    """
    if device.type != "cpu":
        engine.clock = partial(roofline.synchronized_clock, device)
        engine(photograph.data)
        engine.clock = time.perf_counter
    assert engine.masks is not None
    with engine.timer.step("write"):
        encode_part(Shard(0, ""), [ImageResult("image", "", None, engine.masks, {}, "ok")], identity="")
    return engine.timer.milliseconds


def _left(masks: ImageMasks) -> dict[str, int]:
    """Counts the masks before the filters and after each filter."""
    left = {"candidates": len(masks) + sum(masks.dropped.values())}
    remaining = left["candidates"]
    for name in FILTERS:
        remaining -= masks.dropped[name]
        left[name] = remaining
    return left
