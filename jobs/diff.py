"""`maskmill diff`: shows which masks changed between two runs."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from heapq import heappush, heappushpop
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskmill.jobs.console import aligned
from maskmill.jobs.run import MovedTo

if TYPE_CHECKING:
    from maskmill.tables.diff import Change, ImageChanges


def diff(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="The output of a run.", show_default=False)],
    run_b: Annotated[
        str, typer.Argument(metavar="RUN_B", help="The output of another run on the same images.", show_default=False)
    ],
    to: Annotated[Path | None, typer.Option(help="Write all changes to this Parquet file.", show_default=False)] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Write pictures of the images that changed most to this folder.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of images to name and to draw.")] = 10,
    same: Annotated[float, typer.Option(min=0, max=1, help="Masks are the same if their IoU is at least this.")] = 0.9,
    moved: Annotated[float, typer.Option(min=0, max=1, help="Masks have moved if their IoU is at least this.")] = 0.5,
    moved_to: MovedTo = None,
) -> None:
    """Show which masks changed between two runs on the same images.

    Each mask is the same, moved, split (into several masks that lie inside it), merged, born (only in RUN_B) or died
    (only in RUN_A). The file has a row for each change: image_id, change, mask_ids_a, mask_ids_b, iou, area_a, area_b.

    Pictures show RUN_A on the left and RUN_B on the right, without the masks that are the same: moved yellow, split
    blue, merged magenta, born green, died red.

    Examples:

      maskmill diff out-v1/ out-v2/

      maskmill diff out-v1/ s3://bucket/out-v2 --to changes.parquet --pictures changes/
    """
    # Imported here because torch and pyarrow take seconds to import and `--help` does not need them.
    from maskmill.annotations.pairs import index_run, pair_images, read_pairs
    from maskmill.jobs.output_file import replaced_file
    from maskmill.jobs.progress import ProgressBar
    from maskmill.model.errors import ConfigError
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.overlay import write_picture
    from maskmill.pipeline.storage import open_storage
    from maskmill.tables.diff import Change, diff_masks, draw_changes, write_changes

    if moved > same:
        raise ConfigError(f"--moved {moved:g} is larger than --same {same:g}: give a smaller one")
    a, b = (index_run(open_storage(run)) for run in (run_a, run_b))
    pairs = pair_images(a, b, limit)
    rows: Counter[Change] = Counter()
    images_with: Counter[Change] = Counter()
    largest: list[tuple[float, int, ImageChanges]] = []
    with ProgressBar("comparing", "images", len(pairs)) as bar, replaced_file(to) if to else nullcontext() as stream:
        images = (diff_masks(masks, same, moved) for masks in read_pairs(pairs))
        for number, image in enumerate(bar.track(write_changes(images, stream) if stream else images)):
            rows.update(image.counts)
            images_with.update(image.counts.keys())
            if image.share > 0 and limit:
                entry = (image.share, -number, image)  # of equal shares, the first image
                heappush(largest, entry) if len(largest) < limit else heappushpop(largest, entry)
    ranked = [image for *_, image in sorted(largest, reverse=True)]
    typer.echo("\n".join(_summary(len(pairs), rows, images_with, ranked, list(Change))))
    for reason, left_out in pairs.left_out.items():
        if left_out.images:
            typer.echo(f"not compared: {left_out.images} images, {reason}  {', '.join(left_out.first)}".rstrip())
    if to:
        typer.echo(f"changes  {to}")
    if pictures:
        runs = [open_finished_run(open_storage(run), moved_to) for run in (run_a, run_b)]
        for rank, image in enumerate(ranked, 1):
            name = re.sub(r"[^\w.-]", "_", image.image_id)[-100:]
            in_a, in_b = (run[image.image_id] for run in runs)
            write_picture(pictures / f"{rank:02d}-{name}.png", draw_changes(in_a, in_b, image))
        typer.echo(f"pictures  {len(ranked)} in {pictures}")


def _summary(
    images: int,
    rows: Counter[Change],
    images_with: Counter[Change],
    ranked: list[ImageChanges],
    kinds: list[Change],
) -> list[str]:
    """The lines about all images, and about those that changed most."""
    lines = [f"compared  {images} images", ""]
    lines += aligned(
        ("change", "count", "images"), *((kind, str(rows[kind]), str(images_with[kind])) for kind in kinds)
    )
    if ranked:
        header = ("changed most", "of the image", *kinds)
        lines += ["", *aligned(header, *(_image_line(image, kinds) for image in ranked))]
    return lines


def _image_line(image: ImageChanges, kinds: list[Change]) -> tuple[str, ...]:
    return (image.image_id, f"{100 * image.share:.1f} %", *(str(image.counts[kind]) for kind in kinds))
