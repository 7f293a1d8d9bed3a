"""`maskmill preview`: draws masks over their images."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from maskmill.jobs.output_file import beside
from maskmill.jobs.run import MovedTo, RunOutput


def preview(
    out: RunOutput,
    image_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE_ID]...", help="Images to draw. Default: the first ones.", show_default=False),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Output file: .png or .jpg. Default: preview.png next to OUT, or in the working directory if "
            "OUT is on S3.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of images on a contact sheet.")] = 12,
    moved_to: MovedTo = None,
) -> None:
    """Draw the masks of a run over its images: one image at full size, or several as a contact sheet.

    Each mask is filled and outlined in its own colour; small masks lie on top of large ones.

    Examples:

      maskmill preview out/

      maskmill preview out/ kitchen/cup.jpg --to cup.png
    """
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.jobs.console import plain_console
    from maskmill.model.errors import MaskmillError
    from maskmill.pipeline.overlay import contact_sheet, write_picture
    from maskmill.pipeline.preview import overlays
    from maskmill.pipeline.storage import open_storage

    drawn = list(islice(overlays(open_storage(out), image_ids or (), moved_to), len(image_ids or ()) or limit))
    if not drawn:
        raise MaskmillError(f"{out}: no image is done yet, so there is nothing to draw")
    if len(drawn) == 1:
        picture = drawn[0].pixels
    else:
        picture = contact_sheet([(overlay.caption, overlay.pixels) for overlay in drawn])
    path = to or beside(out, "preview.png")
    write_picture(path, picture)
    console = plain_console()
    console.print(f"images    {len(drawn)}, with {sum(overlay.n_masks for overlay in drawn)} masks")
    console.print(f"picture   {path}")
