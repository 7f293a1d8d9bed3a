"""`maskmill export`: writes the masks of a run in another format."""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from maskmill.jobs.run import MovedTo, RunOutput

if TYPE_CHECKING:
    from maskmill.annotations.export import Format


class FormatName(StrEnum):
    COCO = "coco"
    SA1B = "sa1b"
    WEBDATASET = "webdataset"
    HF = "hf"
    YOLO = "yolo"
    LABELS = "labels"
    CVAT = "cvat"
    LABELSTUDIO = "labelstudio"


class Images(StrEnum):
    COPY = "copy"
    LINK = "link"
    NONE = "none"


class Segmentation(StrEnum):
    COMPRESSED = "compressed"
    UNCOMPRESSED = "uncompressed"
    POLYGON = "polygon"


class Layout(StrEnum):
    NESTED = "nested"
    TABLES = "tables"


def export(
    out: RunOutput,
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="An empty folder, or s3://bucket/prefix.", show_default=False)
    ],
    format_name: Annotated[FormatName, typer.Option("--format", help="See below.", show_default=False)],
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="SQL condition as for `maskmill query`: only masks that meet it, and images with such masks.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images.", show_default=False)] = None,
    images: Annotated[
        Images | None,
        typer.Option(
            help="Image files: copied, linked (symbolic links; images and DEST on this machine) or none. "
            "Default: copy for webdataset and hf, which have them inside of their files; none for the others.",
            show_default=False,
        ),
    ] = None,
    segmentation: Annotated[
        Segmentation, typer.Option(help="coco: masks as RLE or as polygons, which lose holes.")
    ] = Segmentation.COMPRESSED,
    layout: Annotated[
        Layout, typer.Option(help="hf: one row per image with a list of masks, or the two tables of maskmill.")
    ] = Layout.NESTED,
    images_per_file: Annotated[int, typer.Option(min=1, help="webdataset and hf: images per file.")] = 1000,
    moved_to: MovedTo = None,
) -> None:
    """Write the masks of a run in a format that other tools read.

    The formats:

      coco: instances.json with one category, in the format of COCO

      sa1b: a JSON file per image, as the published files

      webdataset: tars with image and JSON per sample

      hf: Parquet files with a card, for Hugging Face data sets

      yolo: a text file per image with one polygon per mask, which loses holes and smaller parts

      labels: a PNG of 16 bits per image, in which smaller masks cover larger ones

      cvat: annotations.xml with exact masks

      labelstudio: tasks.json with the masks as predictions

    Images that failed or are not done yet are left out. A killed export is resumed by the same command.

    Examples:

      maskmill export out/ coco/ --format coco

      maskmill export out/ coco/ --format coco --where "predicted_iou > 0.9 AND area > 1000" --images copy
    """
    # Imported here because pyarrow takes long to import and `--help` does not need it.
    from maskmill.annotations.export import count_steps, write_export
    from maskmill.annotations.selection import select
    from maskmill.jobs.progress import ProgressBar
    from maskmill.pipeline.finished import open_finished_run
    from maskmill.pipeline.storage import open_storage
    from maskmill.tables.query import read_rows

    form = _format(format_name, segmentation, layout, images_per_file, images)
    mode = (images or (Images.COPY if form.images_inside else Images.NONE)).value
    run = open_finished_run(open_storage(out), moved_to)
    selection = select(run, read_rows, where, limit, form.unique_stems)
    storage = open_storage(dest, make=True)
    settings = {"where": where, "limit": limit}
    with ProgressBar("exporting", "images", count_steps(selection, form, mode)) as bar:
        write_export(selection, form, storage, settings, mode, lambda done: bar.update(advance=done))
    typer.echo(f"images  {len(selection)}, with {selection.n_masks} masks")
    if selection.failed:
        typer.echo(f"failed  {selection.failed} images, left out")
    if selection.shards_missing:
        typer.echo(f"note    {selection.shards_missing} shards of the run are not done yet")
    if selection.renamed:
        typer.echo(f"note    {selection.renamed} images have files of another name: theirs repeats or is not a path")
    for what, count in form.lost.items():
        if count:
            typer.echo(f"lost    {count} {what}: {form.name} cannot express them")
    typer.echo(f"output  {storage.uri}")


def _format(
    name: FormatName, segmentation: Segmentation, layout: Layout, images_per_file: int, images: Images | None
) -> Format:
    """The format with its options."""
    from maskmill.annotations.coco import coco_format
    from maskmill.annotations.cvat import cvat_format
    from maskmill.annotations.hugging_face import hugging_face_format
    from maskmill.annotations.label_maps import label_map_format
    from maskmill.annotations.label_studio import label_studio_format
    from maskmill.annotations.sa1b import sa1b_format
    from maskmill.annotations.webdataset import webdataset_format
    from maskmill.annotations.yolo import yolo_format

    match name:
        case FormatName.COCO:
            return coco_format(segmentation.value)
        case FormatName.SA1B:
            return sa1b_format()
        case FormatName.WEBDATASET:
            return webdataset_format(images_per_file)
        case FormatName.HF:
            return hugging_face_format(layout.value, images_per_file)
        case FormatName.YOLO:
            return yolo_format()
        case FormatName.LABELS:
            return label_map_format()
        case FormatName.CVAT:
            return cvat_format()
        case FormatName.LABELSTUDIO:
            return label_studio_format("images/" if images in (Images.COPY, Images.LINK) else "")
