"""`maskmill demo`: generates and draws masks for six photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskmill.jobs.extras import require_extra

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "coins", "motorcycle_left", "rocket")


def demo(
    out: Annotated[
        Path, typer.Argument(metavar="[OUT]", help="Folder for the photographs, tables and pictures.")
    ] = Path("out/demo"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Other weights of the embedded model, from `maskmill train`.", show_default=False),
    ] = None,
) -> None:
    """Generate and draw masks for six photographs with the embedded model.

    The photographs come with scikit-image. The command does what `maskmill generate` and `maskmill preview` do.
    Run it again to resume.

    Example:

      maskmill demo
    """
    require_extra("demo")
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.jobs.console import plain_console
    from maskmill.jobs.generate import generate_masks
    from maskmill.model.weights import MINI_TERMS
    from maskmill.pipeline.overlay import contact_sheet, write_picture
    from maskmill.pipeline.preview import overlays
    from maskmill.pipeline.storage import open_storage

    photographs, tables, pictures = out / "photographs", out / "tables", out / "overlays"
    _write_photographs(photographs)
    generate_masks(str(photographs), str(tables), checkpoint=checkpoint)
    drawn = list(overlays(open_storage(str(tables))))
    for overlay in drawn:
        write_picture(pictures / f"{Path(overlay.image_id).stem}.png", overlay.pixels)
    write_picture(
        out / "contact-sheet.png",
        contact_sheet([(overlay.caption, overlay.pixels) for overlay in drawn]),
    )
    console = plain_console()
    console.print(f"pictures  {pictures}/*.png")
    console.print(f"sheet     {out}/contact-sheet.png")
    if checkpoint is None:
        console.print(f"weights   {MINI_TERMS}")


def _write_photographs(folder: Path) -> None:
    """Copies the bundled photographs unchanged, so that the results are reproducible."""
    import shutil

    import skimage.data

    folder.mkdir(parents=True, exist_ok=True)
    bundled = Path(skimage.data.__file__).parent
    for name in PHOTOGRAPHS:
        (path,) = bundled.glob(f"{name}.*")
        shutil.copyfile(path, folder / path.name)
