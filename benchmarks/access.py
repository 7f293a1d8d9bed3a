"""Size and access time of the tables, against SA-1B JSON, COCO JSON and nested Parquet of the same masks.

    python -m benchmarks.access                     # 10,000 images with 100 masks each: 1 million masks
    python -m benchmarks.access --images 100000     # 10 million masks: about 8 GB, and ten times as long

The masks are synthetic; maskmill exports them to the other formats. JSON is written of fewer images, and its times are
scaled. All times are CPU seconds of one process, with the files in the cache of the operating system.
"""

from __future__ import annotations

import argparse
import datetime
import io
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import maskmill
from benchmarks.access_readers import Coco, Nested, Reader, Sa1b, Tables
from benchmarks.machine import RESULTS, describe_machine
from maskmill.jobs.cli import main as cli
from maskmill.pipeline.storage import open_storage
from testing.synthetic_runs import MaskPool, mask_pool, write_run

LARGE = 1_000_000  # images that the figures are scaled to
IOU_IMAGES = 10_000
LOOK_UPS = 20
NAMES = {"tables": "tables", "nested": "nested Parquet", "sa1b": "SA-1B JSON", "coco": "COCO JSON"}
FILTERS = ("score filter", "area filter")
ONE_IMAGE, ONE_IMAGE_IN_SQL = "one image", "one image, in SQL"
IOU = f"IoU of all pairs in {IOU_IMAGES:,} images"
QUESTIONS = {
    ONE_IMAGE: "all fields of its masks; tables: `run[image_id]`, which checks each RLE; COCO: reads the whole file",
    ONE_IMAGE_IN_SQL: "the same with DuckDB",
    "score filter": "ids of masks above a predicted IoU and a stability score",
    "area filter": "ids and RLEs of masks that cover more than an eighth of the image",
    "counts": "masks per image",
    "join": "images smaller than the total area of their masks: areas of masks, sizes of images",
    "scan": "all fields of all masks",
    IOU: "tables: `rle_algebra.iou_matrix`; others: `pycocotools.mask.iou`",
}
# Variants of the column rle_counts: name -> options of pyarrow.parquet.write_table.
CHOSEN = "zstd 9"
ENCODINGS: dict[str, dict[str, Any]] = {
    **{f"zstd {level}": {"compression_level": level} for level in (1, 3, 6, 9, 12, 15, 17, 19)},
    "snappy": {"compression": "snappy"},
    "lz4": {"compression": "lz4"},
    "gzip": {"compression": "gzip"},
    "brotli 5": {"compression": "brotli", "compression_level": 5},
    "none": {"compression": "none"},
    "zstd 9, dictionary": {"compression_level": 9, "use_dictionary": True},
    "zstd 9, DELTA_LENGTH_BYTE_ARRAY": {"compression_level": 9, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
    "zstd 9, DELTA_BYTE_ARRAY": {"compression_level": 9, "column_encoding": "DELTA_BYTE_ARRAY"},
    "zstd 9, pages of 1 MiB": {"compression_level": 9, "data_page_size": 1 << 20},
    "zstd 9, masks of an image sorted by area": {"compression_level": 9},
}


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    images: int
    masks: int  # per image
    json_images: int  # in the JSON files
    repeats: int
    height: int = 1500
    width: int = 2250
    pool: int = 30_000  # different masks, so many that compression hardly finds one twice


@dataclass(frozen=True)
class Result:
    """Times are CPU seconds for all images, scaled where fewer were read."""

    bytes_per_mask: dict[str, float]  # by format
    seconds: dict[str, dict[str, float]]  # question -> format -> seconds
    more: dict[str, float]  # further ways for the IoUs
    wide: dict[str, dict[str, float]]  # look-ups among ten times the images, with one mask each
    encodings: dict[str, tuple[float, float, float]]  # share of the bytes of the RLEs; MB/s written, read


def measure(folder: Path, sizes: Sizes) -> Result:
    """Writes all formats below `folder` and asks all questions. Raises AssertionError if two formats disagree."""
    pool = mask_pool(min(sizes.pool, sizes.images * sizes.masks), sizes.height, sizes.width)
    all_images, some_images, wide = (folder / name for name in ("all", "some", "wide"))
    _write(all_images, sizes.images, sizes.masks, pool)
    _write(some_images, sizes.json_images, sizes.masks, pool)  # the first images of the other run
    _write(wide, 10 * sizes.images, 1, pool)
    _export(all_images, folder / "nested", "hf")
    _export(wide, folder / "nested-wide", "hf")
    _export(some_images, folder / "sa1b", "sa1b")
    _export(some_images, folder / "coco", "coco")
    run, some = (maskmill.open_run(str(path)) for path in (all_images, some_images))

    n_masks, n_some = sizes.images * sizes.masks, sizes.json_images * sizes.masks
    bytes_per_mask = {
        "tables": _bytes(all_images, "*/*.parquet") / n_masks,
        "nested": _bytes(folder / "nested", "data/*.parquet") / n_masks,
        "sa1b": _bytes(folder / "sa1b", "**/*.json") / n_some,
        "coco": _bytes(folder / "coco", "instances.json") / n_some,
    }
    tables, nested, sa1b = Tables(run), Nested(folder / "nested"), Sa1b(folder / "sa1b")
    coco, reference = Coco(folder / "coco" / "instances.json"), Tables(some)
    scale = sizes.images / sizes.json_images
    least = sizes.height * sizes.width // 8
    questions: dict[str, Callable[[Reader], int]] = {
        "score filter": lambda reader: reader.score_filter(),
        "area filter": lambda reader: reader.area_filter(least),
        "counts": lambda reader: reader.counts(),
        "join": lambda reader: reader.join(),
        "scan": lambda reader: reader.scan(),
    }
    ids = list(some)
    seconds = _look_ups(tables, nested, ids[:: -(-len(ids) // LOOK_UPS)], sizes.repeats, sa1b, coco)
    seconds[ONE_IMAGE]["coco"] *= scale
    for question, ask in questions.items():
        complete: dict[str, Reader] = {"tables": tables, "nested": nested}
        in_json: dict[str, Reader] = {"sa1b": sa1b, "coco": coco}
        times = [
            _time({name: partial(ask, reader) for name, reader in readers.items()}, sizes.repeats, ask(expected))
            for readers, expected in ((complete, tables), (in_json, reference))
        ]
        seconds[question] = times[0] | {name: scale * value for name, value in times[1].items()}
        print(f"measured: {question}", file=sys.stderr)

    seconds[IOU], more = _ious(tables, nested, sa1b, coco, sizes, ids)
    one = list(maskmill.open_run(str(wide)))[:: 10 * sizes.images // LOOK_UPS or 1][:LOOK_UPS]
    wide_seconds = _look_ups(Tables(maskmill.open_run(str(wide))), Nested(folder / "nested-wide"), one, sizes.repeats)
    return Result(bytes_per_mask, seconds, more, wide_seconds, measure_encodings(pool.counts, pool, sizes.masks))


def _write(out: Path, images: int, masks: int, pool: MaskPool) -> None:
    write_run(open_storage(str(out), make=True), images, masks, pool)


def _export(out: Path, dest: Path, name: str) -> None:
    with redirect_stdout(io.StringIO()):
        code = cli(["export", str(out), str(dest), "--format", name, "--images", "none"])
    assert code == 0


def _bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def _time(ways: Mapping[str, Callable[[], int]], repeats: int, expected: int) -> dict[str, float]:
    """The median CPU seconds of each. They take turns; the first call is not counted: it compiles and fills caches."""
    for name, way in ways.items():
        assert (answer := way()) == expected, f"{name}: {answer}, not {expected}"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    return {name: median(times) for name, times in seconds.items()}


def _look_ups(
    tables: Tables, nested: Nested, ids: list[str], repeats: int, sa1b: Sa1b | None = None, coco: Coco | None = None
) -> dict[str, dict[str, float]]:
    def each(look_up: Callable[[str], int]) -> Callable[[], int]:
        return lambda: sum(map(look_up, ids))

    expected = each(tables.one_image)()
    readers: dict[str, Reader] = {"tables": tables, "nested": nested}
    if sa1b:
        readers["sa1b"] = sa1b
    direct = _time({name: each(reader.one_image) for name, reader in readers.items()}, repeats, expected)
    in_sql = _time(
        {"tables": each(tables.one_image_in_sql), "nested": each(nested.one_image_in_sql)}, repeats, expected
    )
    seconds = {
        question: {name: value / len(ids) for name, value in of_all.items()}
        for question, of_all in ((ONE_IMAGE, direct), (ONE_IMAGE_IN_SQL, in_sql))
    }
    if coco:
        seconds[ONE_IMAGE] |= _time({"coco": lambda: coco.one_image(ids[0])}, repeats, tables.one_image(ids[0]))
    return seconds


def _ious(
    tables: Tables, nested: Nested, sa1b: Sa1b, coco: Coco, sizes: Sizes, ids: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds for IOU_IMAGES images by format, and of further ways."""
    tables.ious(1)  # compiles
    images, fewer = min(IOU_IMAGES, sizes.images), min(IOU_IMAGES, sizes.json_images)
    tenth = ids[: max(1, fewer // 10)]
    ways: dict[str, tuple[int, Callable[[], int]]] = {
        "tables": (images, lambda: tables.ious(images)),
        "nested": (images, lambda: nested.ious(images)),
        "sa1b": (fewer, lambda: sa1b.ious(fewer)),
        "coco": (fewer, lambda: coco.ious(fewer)),
        "tables, with pycocotools": (fewer, lambda: tables.ious_with_pycocotools(fewer)),
        "tables, `mask_iou` in SQL": (len(tenth), lambda: tables.ious_in_sql(tenth)),
    }
    seconds: dict[str, float] = {}
    found: dict[int, set[int]] = {}
    for name, (count, way) in ways.items():
        started = time.process_time()
        found.setdefault(count, set()).add(way())
        seconds[name] = (time.process_time() - started) * IOU_IMAGES / count
    found.setdefault(len(tenth), set()).add(tables.ious(len(tenth)))
    assert all(len(answers) == 1 for answers in found.values()), found
    return {name: seconds[name] for name in NAMES}, {name: s for name, s in seconds.items() if name not in NAMES}


def measure_encodings(
    counts: list[bytes], pool: MaskPool, per_image: int, rows: int = 8192, repeats: int = 3
) -> dict[str, tuple[float, float, float]]:
    """Writes and reads the first RLEs as a column of their own, in row groups of 4096 as in a part."""
    counts, area = counts[:rows], pool.area_K[:rows]
    image = np.arange(len(counts)) // per_image
    by_area = [counts[k] for k in np.lexsort((area, image))]
    length = sum(map(len, counts))
    figures: dict[str, tuple[float, float, float]] = {}
    for name, given in ENCODINGS.items():
        table = pa.table({"rle_counts": pa.array(by_area if "sorted" in name else counts, pa.binary())})
        options = {"compression": "zstd", "use_dictionary": False, "data_page_size": 64 << 10} | given
        if encoding := options.pop("column_encoding", None):
            options["column_encoding"] = {"rle_counts": encoding}
        data = b""
        writing: list[float] = []
        reading: list[float] = []
        for _ in range(repeats):
            sink = pa.BufferOutputStream()
            started = time.process_time()
            pq.write_table(table, sink, row_group_size=4096, write_statistics=False, **options)
            writing.append(time.process_time() - started)
            data = sink.getvalue().to_pybytes()
            started = time.process_time()
            pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            reading.append(time.process_time() - started)
        figures[name] = len(data) / length, length / min(writing) / 1e6, length / min(reading) / 1e6
    return figures


def _duration(seconds: float) -> str:
    return (
        f"{seconds:,.3g} s"
        if 1 <= seconds < 1000
        else f"{seconds:,.0f} s"
        if seconds > 1
        else f"{1000 * seconds:.3g} ms"
    )


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def report(result: Result, sizes: Sizes, machine: Mapping[str, str | float]) -> str:
    """The result as Markdown."""
    masks = sizes.images * sizes.masks
    sa1b = result.bytes_per_mask["sa1b"]
    of_large = LARGE / sizes.images
    others = [name for name in NAMES if name != "tables"]
    lines = [
        f"# Size and access time of the tables, {datetime.date.today()}",
        "",
        f"{sizes.images:,} synthetic images of {sizes.width} x {sizes.height} pixels with {sizes.masks} masks each: "
        f"{masks:,} masks, exported by maskmill to the other formats. The JSON files have the first "
        f"{sizes.json_images:,} images; their times are multiplied by {sizes.images / sizes.json_images:.3g}, except "
        "for one image of SA-1B.",
        "",
        f"Times are CPU seconds of all threads of one process: medians of {sizes.repeats}, the IoUs once. The files "
        "were in the cache of the operating system, so the times leave out the disk.",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
        "## Size",
        "",
        f"| format | bytes per mask | of SA-1B JSON | {LARGE:,} images, GB |",
        "|---|---:|---:|---:|",
    ]
    for name, size in result.bytes_per_mask.items():
        large = size * LARGE * sizes.masks / 1e9
        lines.append(f"| {NAMES[name]} | {size:.0f} | {100 * size / sa1b:.0f} % | {large:,.3g} |")
    lines += [
        "",
        "## Time",
        "",
        "| question | tables | " + " | ".join(f"{NAMES[name]} | times as long" for name in others) + " |",
        "|---|---:" + 2 * len(others) * "|---:" + "|",
    ]
    for question, seconds in result.seconds.items():
        ours = seconds["tables"]
        cells = [
            f"{_duration(seconds[name])} | {_times(seconds[name] / ours)}" if name in seconds else "|"
            for name in others
        ]
        lines.append(f"| {question} | {_duration(ours)} | {' | '.join(cells)} |")
    lines += ["", *(f"- {question}: {meaning}" for question, meaning in QUESTIONS.items()), ""]
    lines += ["Further ways for the IoUs: " + "; ".join(f"{n}: {_duration(s)}" for n, s in result.more.items()) + "."]
    lines += [
        "",
        "pyarrow reads nested Parquet, because it can read single fields of the structs. JSON is parsed for each "
        "question.",
        "",
        "### One image among more images",
        "",
        f"{10 * sizes.images:,} images with one mask each:",
        "",
        "| question | tables | nested Parquet | times as long |",
        "|---|---:|---:|---:|",
    ]
    for question, seconds in result.wide.items():
        ratio = _times(seconds["nested"] / seconds["tables"])
        lines.append(f"| {question} | {_duration(seconds['tables'])} | {_duration(seconds['nested'])} | {ratio} |")
    lines += [
        "",
        f"### {LARGE:,} images with {sizes.masks} masks each, by scaling",
        "",
        f"Not measured: the times above multiplied by {of_large:.3g}.",
        "",
        "| question | " + " | ".join(NAMES.values()) + " |",
        "|---|" + len(NAMES) * "---:|",
    ]
    for question, seconds in result.seconds.items():
        if question not in (ONE_IMAGE, ONE_IMAGE_IN_SQL, IOU):
            lines.append(f"| {question} | {' | '.join(_duration(of_large * seconds[name]) for name in NAMES)} |")
    lines += ["", "## Aims", "", "| aim | measured | |", "|---|---|---|", *_aims(result), "", "## RLEs", ""]
    lines += [
        f"The column `rle_counts` alone. All variants hold COCO's compressed RLE. Chosen: {CHOSEN}, plain encoding, in "
        "the order of the generator.",
        "",
        "| variant | bytes, % of the RLEs | written, MB/s | read, MB/s |",
        "|---|---:|---:|---:|",
    ]
    for name, (share, written, read) in result.encodings.items():
        lines.append(f"| {name} | {100 * share:.1f} | {written:,.0f} | {read:,.0f} |")
    return "\n".join([*lines, ""])


def _aims(result: Result) -> list[str]:
    def slowest(questions: tuple[str, ...], name: str) -> float:
        of = [result.seconds[question] for question in questions]
        return min(seconds[name] / seconds["tables"] for seconds in of if name in seconds)

    share = result.bytes_per_mask["tables"] / result.bytes_per_mask["sa1b"]
    rows = [("less than half of the bytes of SA-1B JSON", f"{100 * share:.0f} %", share < 0.5)]
    for what, questions in (
        ("filters", FILTERS),
        ("one image", (ONE_IMAGE,)),
        ("one image, in SQL", (ONE_IMAGE_IN_SQL,)),
    ):
        for name, least in (("sa1b", 20), ("coco", 20), ("nested", 1)):
            if any(name in result.seconds[question] for question in questions):
                ratio = slowest(questions, name)
                aim = f"at least {least} times as fast as" if least > 1 else "at least as fast as"
                rows.append((f"{what}: {aim} {NAMES[name]}", f"{_times(ratio)} times", ratio >= least))
    return [f"| {aim} | {measured} | {'met' if met else 'missed'} |" for aim, measured, met in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--masks", type=int, default=100, help="per image")
    parser.add_argument("--json-images", type=int, default=2_000, help="images in the JSON files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where a temporary folder is made")
    arguments = parser.parse_args()
    sizes = Sizes(arguments.images, arguments.masks, min(arguments.json_images, arguments.images), arguments.repeats)
    machine = describe_machine(torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        text = report(measure(Path(folder), sizes), sizes, machine)
    print(text)
    path = RESULTS / f"{datetime.date.today()}-access.md"
    path.write_text(text)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
