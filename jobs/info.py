"""`maskmill info`: describes a checkpoint file or the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="A .pth, .bin or .safetensors file. Default: the embedded model.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show the model, preset, sizes and sha256 of a checkpoint.

    Without a file, show the embedded model with its terms of use and training data.

    A damaged or unsafe checkpoint is an error.

    Examples:

      maskmill info

      maskmill info sam_vit_b_01ec64.pth
    """
    # Imported here because torch takes seconds to import and `--help` does not need it.
    from rich.table import Table

    from maskmill.jobs.console import plain_console
    from maskmill.model.checkpoint import build_network, embedded_checkpoint, file_sha256, read_checkpoint
    from maskmill.model.errors import CheckpointError
    from maskmill.model.families import FAMILIES, VARIANTS
    from maskmill.pipeline.config import PRESETS

    path = checkpoint or embedded_checkpoint("mini")
    content = read_checkpoint(path)
    if content.variant not in VARIANTS:
        raise CheckpointError(f"{path} is not one of the models {', '.join(VARIANTS)}")
    config = VARIANTS[content.variant]
    network = build_network(config, content)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("checkpoint", str(path))
    table.add_row("model", config.name if checkpoint else f"{config.name} (embedded)")
    # Weights that a user trained have other terms.
    if checkpoint is None or content.layout != "maskmill":
        table.add_row("terms", FAMILIES[config.family].terms)
    preset = PRESETS[config.default_preset]
    table.add_row(
        "preset",
        f"{config.default_preset}: predicted IoU > {preset.pred_iou_thresh:g}, "
        f"stability score >= {preset.stability_score_thresh:g}, box NMS at {preset.box_nms_thresh:g}",
    )
    table.add_row("layout", content.layout)
    table.add_row("stored as", str(content.stored_dtype).removeprefix("torch."))
    table.add_row("sha256", file_sha256(path))
    table.add_row("input", f"{config.image_size} x {config.image_size} pixels")
    for name, part in (
        ("image encoder", network.image_encoder),
        ("prompt encoder", network.prompt_encoder),
        ("mask decoder", network.mask_decoder),
        ("all parts", network),
    ):
        table.add_row(name, f"{sum(parameter.numel() for parameter in part.parameters()):,} parameters")
    for fact in sorted(content.metadata.keys() - {"variant"}):
        table.add_row("training data" if fact == "data" else fact, content.metadata[fact])
    plain_console().print(table)
