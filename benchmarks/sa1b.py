"""What a run over all images of SA-1B would take and cost, computed from stated inputs. Nothing of it has been run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

GPUS = (8, 64, 256, 1000)
NOTES = """
Storage: {read:.1f} TB of images are read. {masks:.2f} billion masks take {written:.2f} TB, which cost
{month:,.0f} dollars a month.

Inputs:

{speeds}
- {inputs.images:,} images (TensorFlow Datasets, `segment_anything`), {inputs.masks_per_image:g} masks each (SAM paper).
- Assumed: {megabytes:g} MB per image, {inputs.mask_bytes:g} bytes per mask, {inputs.gpu_price:g} dollars per GPU hour,
  shards of {inputs.shard_seconds:g} s, each image a file of its own, no traffic between regions.
- S3 Standard in us-east-1: {write_price:g} dollars for 1000 writes, {read_price:g} for 1000 reads,
  {inputs.gigabyte_month_price:g} per GB and month.
- The utilisation of the first table; for GPU hours that of the largest cluster. Requests: counted.
"""


@dataclass(frozen=True)
class Speed:
    """An engine on one GPU."""

    what: str
    images_per_second: float
    source: str


SPEEDS = (
    Speed("32x32 points, vit_h", 30.0, "our aim for one H200, not measured"),
    Speed("preset sa1b, vit_h", 3.0, "our aim for one H200, not measured"),
    Speed("32x32 points, vit_h, segment_anything", 0.5, "assumed: about 2 s per image on an A100"),
)


@dataclass(frozen=True)
class Inputs:
    """Everything the result depends on, beside the speed. Prices are dollars."""

    images: int = 11_185_362  # of the `train` split in the catalog of TensorFlow Datasets
    masks_per_image: float = 100.0  # SAM paper: 1.1 billion masks of 11 million images
    image_bytes: float = 1e6  # assumed: a JPEG with a short side of 1500 pixels
    mask_bytes: float = 500.0  # assumed: a row of the masks table, compressed
    shard_seconds: float = 60.0  # of one GPU: decides the images per shard
    gpu_price: float = 4.0  # assumed: of one GPU for an hour
    read_price: float = 0.0004 / 1000  # of a GET or HEAD request: S3 Standard, us-east-1
    write_price: float = 0.005 / 1000  # of a PUT or LIST request: the same
    gigabyte_month_price: float = 0.023  # the same


@dataclass(frozen=True)
class Requests:
    """Requests to storage. Counted with one shard and in a simulated run."""

    source_per_image: float
    reads_per_shard: float  # of the output
    writes_per_shard: float
    driver_reads: float  # of the output, of a whole run
    driver_writes: float


def report(inputs: Inputs, utilisation: Mapping[int, float], requests: Requests) -> Iterator[str]:
    """The section of the result as lines of Markdown. `utilisation`: by number of GPUs."""
    yield "| engine on one GPU | images/s | GPU hours | dollars | " + " | ".join(f"{gpus} GPUs" for gpus in GPUS) + " |"
    yield "|---|---:|---:|---:|" + "---:|" * len(GPUS)
    largest = utilisation[max(utilisation)]
    for speed in SPEEDS:
        hours = inputs.images / speed.images_per_second / 3600 / largest
        hours_each = (
            inputs.images / speed.images_per_second / 3600 / gpus / utilisation.get(gpus, largest) for gpus in GPUS
        )
        cells = [speed.what, f"{speed.images_per_second:g}", f"{hours:,.0f}", f"{hours * inputs.gpu_price:,.0f}"]
        yield f"| {' | '.join([*cells, *(f'{value:,.1f} h' for value in hours_each)])} |"
    yield ""
    yield "| engine | images per shard | reads of the source | reads of the output | writes | dollars for requests |"
    yield "|---|---:|---:|---:|---:|---:|"
    for speed in SPEEDS:
        per_shard = max(1, round(speed.images_per_second * inputs.shard_seconds))
        shards = -(-inputs.images // per_shard)
        source = requests.source_per_image * inputs.images
        reads = requests.reads_per_shard * shards + requests.driver_reads
        writes = requests.writes_per_shard * shards + requests.driver_writes
        dollars = (source + reads) * inputs.read_price + writes * inputs.write_price
        yield f"| {speed.what} | {per_shard:,} | {source:,.0f} | {reads:,.0f} | {writes:,.0f} | {dollars:,.2f} |"
    masks = inputs.images * inputs.masks_per_image
    yield NOTES.format(
        read=inputs.images * inputs.image_bytes / 1e12,
        masks=masks / 1e9,
        written=masks * inputs.mask_bytes / 1e12,
        month=masks * inputs.mask_bytes / 1e9 * inputs.gigabyte_month_price,
        speeds="\n".join(f"- {speed.what}: {speed.images_per_second:g} images/s, {speed.source}." for speed in SPEEDS),
        inputs=inputs,
        megabytes=inputs.image_bytes / 1e6,
        write_price=1000 * inputs.write_price,
        read_price=1000 * inputs.read_price,
    )
