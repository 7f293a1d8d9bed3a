"""`maskmill train`: makes the embedded model, or another like it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    out: Annotated[Path, typer.Argument(help="Folder of the run; a run that is in it goes on.", show_default=False)],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Photographs ID.jpg with ID.segK.png per annotator (BSDS layout). Repeatable."),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Photographs in the same layout, only for the figures in the log.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this step; later runs go on from there.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share each step; one per core is fastest on a CPU.")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")] = "auto",
) -> None:
    """Train the model "mini" from procedural scenes and labelled photographs.

    Without --data it learns from scenes alone, which need no download and carry no terms. Run the same command again
    to go on after an interruption. The result is OUT/model.safetensors, for `maskmill generate --checkpoint`.

    Examples:

      maskmill train runs/scenes --processes 2

      maskmill train runs/mini --data bsds500-train --validation bsds500-val --processes 2
    """
    # The libraries behind it take a while to load: `--help` must not wait for them.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from model.config import VARIANTS
    from model.optimize import resolve_device
    from model.training.recipe import RECIPES
    from model.training.session import Session, run

    recipe = RECIPES["mini"]
    session = Session(
        out, VARIANTS["mini"], recipe, tuple(data or ()), validation, str(resolve_device(device)), processes
    )
    last = min(steps or recipe.total_steps, recipe.total_steps)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=last)
        for state in run(session, last):
            bar.update(task, completed=state.step, description=f"loss {sum(state.losses.values()):.2f}")
    console.print(f"step {last} of {recipe.total_steps}: {out / 'model.safetensors'}", soft_wrap=True)
