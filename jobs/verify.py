"""`maskmill verify`: checks that an output is complete and consistent."""

from __future__ import annotations

from typing import Annotated

import typer


def verify(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The output of a run.", show_default=False)],
    limit: Annotated[int, typer.Option(min=0, help="Number of errors to print; all are counted.")] = 20,
) -> None:
    """Check an output: each planned image has one row, counts agree, each RLE decodes to its area and box.

    Nothing is changed. The exit code is 1 if anything is wrong or missing; an unfinished run counts as missing.

    Example:

      maskmill verify out/
    """
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.jobs.console import plain_console
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
            bar.update(total=shards, completed=number)  # the first check is of the run itself, not of a shard
    console = plain_console()
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
