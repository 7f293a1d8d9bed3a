"""`maskmill train`: trains a model from scratch or from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maskmill.jobs.extras import require_extra

if TYPE_CHECKING:
    from maskmill.annotations.records import AnnotatedImages
    from maskmill.annotations.training import TrainingImages
    from maskmill.model.training.recipe import TrainingConfig
    from maskmill.model.training.session import Session

# Number of steps in the moving average of the displayed losses.
SMOOTHING = 20


def train(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Folder of the training run. A run that is already there is resumed.",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Photographs with masks: COCO instances (a .json file, or FILE.json:FOLDER with the folder of its "
            "photographs), an SA-1B folder (sa_1.jpg, sa_1.json), a BSDS folder (ID.jpg, ID.seg0.png; 0 is "
            "unlabelled), or the output of `maskmill generate`. The format is detected. Repeatable. PATH=WEIGHT "
            "samples a data set WEIGHT times as often as one without a weight.",
            show_default=False,
        ),
    ] = None,
    data_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of photographs in each batch; the rest is drawn scenes. Default: set by the recipe.",
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Held-out photographs with masks, as for --data: for figures in the log and sample pictures. "
            "Repeatable. If --data names the same data set, a tenth of its images is held out (by a hash of the id).",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="mini, vit_b, vit_l or vit_h.")] = "mini",
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Weights to start from, as published by Segment Anything, Hugging Face or maskmill; `embedded` for "
            "the embedded weights. Without --trunk, the result is the mean of these weights and the trained ones. "
            "Default: random weights.",
            show_default=False,
        ),
    ] = None,
    trunk: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Start the encoder of mini from published ImageNet weights: efficientnet-lite2. --checkpoint then "
            "gives only the prompt encoder and the mask decoder. Default without --checkpoint: efficientnet-lite2.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this step; the next run continues there.", show_default=False)
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Number of processes that share each step; on a CPU, one per core is fastest.")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")] = "auto",
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=999, help="Random seed. Change it to train again on the same data with other random choices."
        ),
    ] = 0,
) -> None:
    """Train a model on drawn scenes and, with --data, on photographs with masks.

    Without --data the model is trained on drawn scenes only: no download, and no terms of use but those of --trunk
    (Apache-2.0).

    OUT/model.safetensors is the result, for `maskmill generate --checkpoint`. OUT/log.jsonl has the losses and the
    held-out figures, OUT/step-*.png the masks predicted for held-out images.

    Ctrl-C stops after the current step. Run the same command again to resume.

    Examples:

      maskmill train runs/scenes --processes 2

      maskmill train runs/mini --data bsds500-train --validation bsds500-val --processes 2

      maskmill train runs/tuned --checkpoint embedded --data instances.json:photos/ --data-share 0.9

      maskmill train runs/vit_b --model vit_b --checkpoint sam_vit_b_01ec64.pth --data sa1b/ --device cuda
    """
    require_extra("train")
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.model.checkpoint import embedded_checkpoint
    from maskmill.model.families import FAMILIES, find_variant
    from maskmill.model.families.mini.config import TRUNKS, MiniConfig
    from maskmill.model.optimize import resolve_device
    from maskmill.model.training.recipe import choose_recipe
    from maskmill.model.training.session import Session, read_start
    from maskmill.pipeline.errors import ConfigError

    variant = find_variant(model)
    if trunk is None and checkpoint is None and isinstance(variant, MiniConfig):
        trunk = next(name for name, stages in TRUNKS.items() if stages == variant.trunk)
    if trunk is not None and not (isinstance(variant, MiniConfig) and variant.trunk == TRUNKS.get(trunk)):
        raise ConfigError(f"--trunk {trunk}: {model} has no such trunk; mini has efficientnet-lite2")
    if not FAMILIES[variant.family].trainable:
        trainable = [config.name for family in FAMILIES.values() if family.trainable for config in family.variants]
        raise ConfigError(f"maskmill train does not train {model}; choose one of {', '.join(trainable)}")
    recipe = choose_recipe(variant, from_checkpoint=checkpoint is not None, from_trunk=trunk is not None)
    recipe = replace(recipe, seed=seed)
    if data_share is not None:
        if not data:
            raise ConfigError("--data-share needs --data")
        recipe = replace(recipe, photograph_share=data_share)
    if steps is not None and steps > recipe.total_steps:
        raise ConfigError(f"--steps {steps}: the training of {model} ends at step {recipe.total_steps}")
    if any(stage.images % processes for stage in recipe.stages):
        fewest = min(stage.images for stage in recipe.stages)
        raise ConfigError(f"--processes {processes}: must divide the {fewest} images of a step evenly")
    resolved = str(resolve_device(device))
    weights = None
    if checkpoint is not None:
        weights = embedded_checkpoint(model) if checkpoint == "embedded" else Path(checkpoint)
    # Checked before any process starts, so that a wrong checkpoint is a one-line error.
    read_start(variant, weights, trunk)
    shares = dict(_parse_weight(entry) for entry in data or ())
    opened, held_out = _open_all(shares, validation or ())
    session = Session(
        out,
        variant,
        recipe,
        opened,
        {name: shares[path] for name, path in zip(opened, shares, strict=True)},
        held_out,
        weights,
        trunk,
        resolved,
        processes,
    )
    _run_with_progress_bar(session, recipe, steps or recipe.total_steps)


def _parse_weight(entry: str) -> tuple[str, float]:
    """PATH or PATH=WEIGHT."""
    from maskmill.pipeline.errors import ConfigError

    path, equals, weight = entry.rpartition("=")
    if not equals:
        return entry, 1.0
    try:
        parsed = float(weight)
    except ValueError:
        return entry, 1.0  # a path with an equals sign in it
    if not 0 < parsed < float("inf"):
        raise ConfigError(f"--data {entry}: a weight is a number above 0")
    return path, parsed


def _open_all(
    data: Collection[str], validation: Collection[str]
) -> tuple[dict[str, TrainingImages], dict[str, TrainingImages]]:
    """The data sets to train on and to validate on, by the names that the log and the checkpoint use."""
    from maskmill.annotations.training import TrainingImages, split_off
    from maskmill.pipeline.errors import ConfigError

    opened: dict[str, TrainingImages] = {}
    held_out: dict[str, TrainingImages] = {}
    for path in dict.fromkeys((*data, *validation)):
        images = _open(path)
        name = path if images.name in opened or images.name in held_out else images.name
        if path in data and path in validation:
            ours, theirs = split_off(images)
            if not ours or not theirs:
                raise ConfigError(f"{path}: too few images to keep a tenth of them for validation")
            opened[name], held_out[name] = TrainingImages(images, chosen=ours), TrainingImages(images, chosen=theirs)
        else:
            (opened if path in data else held_out)[name] = TrainingImages(images)
    for images in (*opened.values(), *held_out.values()):
        images[0]  # raises now if the data set has no usable image, not after the first steps
    return opened, held_out


def _open(path: str) -> AnnotatedImages:
    from maskmill.annotations import open_annotations

    file, colon, folder = path.rpartition(":")
    apart = bool(colon) and file.lower().endswith(".json")
    return open_annotations(file, Path(folder)) if apart else open_annotations(path)


def _run_with_progress_bar(session: Session, recipe: TrainingConfig, last: int) -> None:
    from maskmill.jobs.console import plain_console
    from maskmill.jobs.progress import ProgressBar
    from maskmill.model.training.session import SAVE_EVERY, run
    from maskmill.pipeline.signals import StopSignals

    log = session.out / "log.jsonl"
    mean: dict[str, float] = {}
    reached = None
    with StopSignals() as signals, ProgressBar("starting", "steps", last) as bar:
        held_out = _last_figures(log)
        states = run(session, last)
        for state in states:
            if reached is None:
                bar.restart(state.step - 1)
            reached = state.step
            for name, loss in state.losses.items():
                mean[name] = mean.get(name, loss) + (loss - mean.get(name, loss)) / SMOOTHING
            if state.step % SAVE_EVERY == 0:
                held_out = _last_figures(log)
            parts = " ".join(f"{name} {loss:.2f}" for name, loss in mean.items())
            loss = f"loss {sum(mean.values()):.2f}"
            bar.update(completed=state.step, description=loss, figures=f"{held_out} {parts}".lstrip())
            if signals.count:
                states.close()  # saves
                break
    console = plain_console()
    if signals.count:
        # stdout is for results.
        plain_console(stderr=True).print(
            f"maskmill: stopped after step {reached}; run the same command again to resume"
        )
        raise typer.Exit(128 + signals.last)
    console.print(
        f"step      {reached} of {recipe.total_steps}"
        if reached
        else f"step      {last} of {recipe.total_steps} was reached before: nothing to do"
    )
    console.print(f"figures   {_last_figures(log) or 'none yet'}")
    console.print(f"log       {log}")
    console.print(f"model     {session.out / 'model.safetensors'}")


def _last_figures(log: Path) -> str:
    """The last held-out figures in the log: IoU of one click (best of three), IoU of boxes, IoU correlation."""
    rows: list[dict[str, Any]] = []
    if log.exists():
        rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in reversed(rows):
        sets: dict[str, dict[str, float]] = {name: value for name, value in row.items() if isinstance(value, dict)}
        if sets:
            return f"held out at {row['step']}: " + ", ".join(f"{name} {_figures(sets[name])}" for name in sets)
    return ""


def _figures(figures: Mapping[str, float]) -> str:
    return (
        f"click {figures['one_click_best']:.2f} box {figures['box']:.2f} "
        f"IoU correlation {figures['iou_correlation']:.2f}"
    )
