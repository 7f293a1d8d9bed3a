"""`maskmill info`: what a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A .pth, .bin or .safetensors file; without one, the embedded model.", show_default=False),
    ] = None,
) -> None:
    """Show what a checkpoint is: its variant, layout, sizes and sha256. A damaged or unsafe one is refused.

    Examples:

      maskmill info

      maskmill info sam_vit_b_01ec64.pth
    """
    # torch takes a while to load: `--help` must not wait for it.
    from rich.console import Console
    from rich.table import Table

    from maskmill.model.checkpoint import build_sam, embedded_checkpoint, file_sha256, read_checkpoint
    from maskmill.model.config import VARIANTS
    from maskmill.model.errors import CheckpointError

    path = checkpoint or embedded_checkpoint("mini")
    content = read_checkpoint(path)
    if content.variant not in VARIANTS:
        raise CheckpointError(f"{path} is none of the models {', '.join(VARIANTS)}")
    config = VARIANTS[content.variant]
    sam = build_sam(config, content)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("checkpoint", str(path))
    table.add_row("model", config.name)
    table.add_row("layout", content.layout)
    table.add_row("stored as", str(content.stored_dtype).removeprefix("torch."))
    table.add_row("sha256", file_sha256(path))
    table.add_row("input", f"{config.image_size} x {config.image_size} pixels")
    for name, part in (
        ("image encoder", sam.image_encoder),
        ("prompt encoder", sam.prompt_encoder),
        ("mask decoder", sam.mask_decoder),
        ("all parts", sam),
    ):
        table.add_row(name, f"{sum(parameter.numel() for parameter in part.parameters()):,} parameters")
    for fact in sorted(content.metadata.keys() - {"variant"}):
        table.add_row(fact, content.metadata[fact])
    Console().print(table)
