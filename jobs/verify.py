"""`maskmill verify`: proof that an output is whole."""

from __future__ import annotations

from typing import Annotated

import typer


def verify(
    out: Annotated[str, typer.Argument(help="The output of a run.", show_default=False)],
    limit: Annotated[int, typer.Option(min=0, help="How many offences to print; all are counted.")] = 20,
) -> None:
    """Check an output: every planned image has exactly one row, counts agree, every RLE decodes to its area and box.

    Nothing is changed. Exits with 1 where anything is wrong or missing, as in a run that is not finished.

    Example:

      maskmill verify out/
    """
    # The libraries behind it take a while to load: `--help` must not wait for them.
    from rich.console import Console

    from maskmill.jobs.progress import ProgressBar
    from maskmill.pipeline.storage import open_storage
    from maskmill.pipeline.verify import verify as checks

    first: list[str] = []
    shards = done = images = failed = masks = offences = 0
    with ProgressBar("verifying", "shards") as bar:
        for number, check in enumerate(checks(open_storage(out))):
            shards += check.shards
            done += check.done
            images += check.images
            failed += check.failed
            masks += check.masks
            offences += len(check.offences)
            first += check.offences[: limit - len(first)]
            bar.update(total=shards, completed=number)  # the first check is of the run around the shards
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for offence in first:
        console.print(offence)
    if offences > limit:
        console.print(f"... and {offences - limit} more")
    console.print(
        f"{done} of {shards} shards, {images} images ({failed} failed), {masks} masks: "
        f"{'nothing wrong' if offences == 0 else f'{offences} wrong'}"
    )
    if offences:
        raise typer.Exit(1)
