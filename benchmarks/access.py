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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import maskmill
from benchmarks.access_readers import Coco, Nested, Reader, Sa1b, Tables
from benchmarks.machine import RESULTS, cpu_seconds, describe_machine
from benchmarks.rle_encodings import MASKS, Encoded, measure_encodings
from maskmill.jobs.cli import main as cli
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.table import RLE_ZSTD_LEVEL
from testing.synthetic_runs import MaskPool, mask_pool, write_run

LARGE = 1_000_000  # images that the figures are scaled to
IOU_IMAGES = 10_000
LOOK_UPS = 20
NAMES = {"tables": "tables", "nested": "nested Parquet", "sa1b": "SA-1B JSON", "coco": "COCO JSON"}
WIDE = 4  # times the images, with one mask each
FILTERS = ("score filter", "area filter", "RLEs of large masks")
ONE_IMAGE, ONE_IMAGE_CHECKED, ONE_IMAGE_IN_SQL = "one image", "one image, checked", "one image, in SQL"
IOU = f"IoU of all pairs in {IOU_IMAGES:,} images"
QUESTIONS = {
    ONE_IMAGE: "all fields of its masks; Parquet: a pyarrow data set that is open; COCO: `json` reads the whole file",
    ONE_IMAGE_CHECKED: "tables: `run[image_id]`, which returns arrays and checks each RLE; nested: as above",
    ONE_IMAGE_IN_SQL: "DuckDB",
    "score filter": "ids of masks above a predicted IoU and a stability score",
    "area filter": "ids of masks that cover more than an eighth of the image",
    "RLEs of large masks": "ids and RLEs of the same masks",
    "counts": "masks per image",
    "join": "images smaller than the total area of their masks: areas of masks, sizes of images",
    "scan": "all fields of all masks",
    IOU: "tables: `rle_algebra.iou_matrix`; others: `pycocotools.mask.iou`",
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
    pool: int = 20_000  # different masks, so many that compression hardly finds one twice


@dataclass(frozen=True)
class Result:
    """Times are CPU seconds for all images, scaled where fewer were read."""

    bytes_per_mask: dict[str, float]  # by format
    seconds: dict[str, dict[str, float]]  # question -> format -> seconds
    more_ious: dict[str, float]  # further ways for the IoUs of the tables
    wide: dict[str, dict[str, float]]  # look-ups among WIDE times the images, with one mask each
    encodings: dict[str, Encoded]


def measure(folder: Path, sizes: Sizes) -> Result:
    """Writes all formats below `folder` and asks all questions. Raises AssertionError if two formats disagree."""
    pool = mask_pool(min(sizes.pool, sizes.images * sizes.masks), sizes.height, sizes.width)
    all_images, some_images, wide = (folder / name for name in ("all", "some", "wide"))
    _write(all_images, sizes.images, sizes.masks, pool)
    _write(some_images, sizes.json_images, sizes.masks, pool)  # the first images of the other run
    _write(wide, WIDE * sizes.images, 1, pool)
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
        "RLEs of large masks": lambda reader: reader.large_masks(least),
        "counts": lambda reader: reader.counts(),
        "join": lambda reader: reader.join(),
        "scan": lambda reader: reader.scan(),
    }
    ids = list(some)
    seconds = _look_ups(tables, nested, _spread(ids), sizes.repeats, sa1b, coco)
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

    seconds[IOU], more_ious = _ious(tables, nested, sa1b, coco, ids)
    wide_run = maskmill.open_run(str(wide))
    wide_seconds = _look_ups(Tables(wide_run), Nested(folder / "nested-wide"), _spread(list(wide_run)), sizes.repeats)
    return Result(bytes_per_mask, seconds, more_ious, wide_seconds, measure_encodings(pool, sizes.masks))


def _spread(ids: list[str]) -> list[str]:
    return ids[:: -(-len(ids) // LOOK_UPS)]


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
    return cpu_seconds(ways, repeats)


def _look_ups(
    tables: Tables, nested: Nested, ids: list[str], repeats: int, sa1b: Sa1b | None = None, coco: Coco | None = None
) -> dict[str, dict[str, float]]:
    def each(look_up: Callable[[str], int]) -> Callable[[], int]:
        return lambda: sum(map(look_up, ids))

    readers: dict[str, Reader] = {"tables": tables, "nested": nested}
    if sa1b:
        readers["sa1b"] = sa1b
    questions = {
        ONE_IMAGE: {name: reader.one_image for name, reader in readers.items()},
        ONE_IMAGE_CHECKED: {"tables": tables.one_image_checked, "nested": nested.one_image},
        ONE_IMAGE_IN_SQL: {"tables": tables.one_image_in_sql, "nested": nested.one_image_in_sql},
    }
    expected = each(tables.one_image)()
    seconds: dict[str, dict[str, float]] = {}
    for question, ways in questions.items():
        of_all = _time({name: each(way) for name, way in ways.items()}, repeats, expected)
        seconds[question] = {name: value / len(ids) for name, value in of_all.items()}
    if coco:
        seconds[ONE_IMAGE] |= _time({"coco": lambda: coco.one_image(ids[0])}, repeats, tables.one_image(ids[0]))
    return seconds


def _ious(
    tables: Tables, nested: Nested, sa1b: Sa1b, coco: Coco, ids: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds for IOU_IMAGES images by format, and of further ways for the tables."""
    tables.ious(1)  # compiles
    images = min(IOU_IMAGES, len(ids))
    tenth = ids[: max(1, images // 10)]
    ways: dict[str, tuple[int, Callable[[], int]]] = {
        "tables": (images, lambda: tables.ious(images)),
        "nested": (images, lambda: nested.ious(images)),
        "sa1b": (images, lambda: sa1b.ious(images)),
        "coco": (images, lambda: coco.ious(images)),
        "`pycocotools.mask.iou`": (images, lambda: tables.ious_with_pycocotools(images)),
        "`mask_iou` in SQL": (len(tenth), lambda: tables.ious_in_sql(tenth)),
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


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:#.2g}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), *map(list, rows)]
    cells.insert(1, ["---", *["---:"] * (len(cells[0]) - 1)])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _against(seconds: Mapping[str, float], names: Iterable[str]) -> list[str]:
    """The time of the tables, and for each other format its time and ratio; empty if it was not measured."""
    cells = [_duration(seconds["tables"])]
    for name in names:
        there = name in seconds
        cells += [_duration(seconds[name]), _times(seconds[name] / seconds["tables"])] if there else ["", ""]
    return cells


def _list(items: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in items.items())


def report(result: Result, sizes: Sizes, machine: Mapping[str, str | float]) -> str:
    """The result as Markdown."""
    sa1b = result.bytes_per_mask["sa1b"]
    gigabytes = {name: size * LARGE * sizes.masks / 1e9 for name, size in result.bytes_per_mask.items()}
    size = _table(
        ["format", "bytes per mask", "of SA-1B JSON", f"{LARGE:,} images, GB"],
        (
            [NAMES[name], f"{size:.0f}", f"{100 * size / sa1b:.0f} %", f"{gigabytes[name]:,.3g}"]
            for name, size in result.bytes_per_mask.items()
        ),
    )
    others = [name for name in NAMES if name != "tables"]
    time_table = _table(
        ["question", "tables", *(cell for name in others for cell in (NAMES[name], "times as long"))],
        ([question, *_against(seconds, others)] for question, seconds in result.seconds.items()),
    )
    wide = _table(
        ["question", "tables", NAMES["nested"], "times as long"],
        ([question, *_against(seconds, ["nested"])] for question, seconds in result.wide.items()),
    )
    of_large = LARGE / sizes.images
    scaled = _table(
        ["question", *NAMES.values()],
        (
            [question, *(_duration(of_large * seconds[name]) for name in NAMES)]
            for question, seconds in result.seconds.items()
            if question not in result.wide and question != IOU
        ),
    )
    encodings = _table(
        ["variant", "bytes, % of the RLEs", "written, MB/s", "read, MB/s"],
        (
            [name, f"{100 * e.share:.1f}", f"{e.written_mb:,.0f}", f"{e.read_mb:,.0f}"]
            for name, e in result.encodings.items()
        ),
    )
    more_ious = "; ".join(f"{name} {_duration(seconds)}" for name, seconds in result.more_ious.items())
    return f"""# Size and access time of the tables, {datetime.date.today()}

{sizes.images:,} synthetic images of {sizes.width} x {sizes.height} pixels with {sizes.masks} masks each, exported by
maskmill to the other formats. The JSON files have the first {sizes.json_images:,} images; their times are multiplied by
{sizes.images / sizes.json_images:.3g}, except for one image of SA-1B. Times are CPU seconds of all threads of one
process, medians of {sizes.repeats}. The files were in the cache of the operating system, so the times leave out the
disk.

{_list(machine)}

## Size

{size}

## Time

{time_table}

{_list(QUESTIONS)}

pyarrow reads nested Parquet, because it can read single fields of the structs. JSON is parsed for each question. The
IoUs are measured once, on {min(IOU_IMAGES, sizes.json_images):,} images, and multiplied. Further ways for the tables:
{more_ious}.

One image among {WIDE * sizes.images:,} images with one mask each:

{wide}

By scaling, not measured: {LARGE:,} images with {sizes.masks} masks each, the times above multiplied by {of_large:.3g}.

{scaled}

## Aims

{_table(["aim", "measured", "result"], _aims(result))}

## RLEs

The column `rle_counts` alone, at most {MASKS:,} masks. All variants hold COCO's compressed RLE. Parts have zstd
{RLE_ZSTD_LEVEL} with plain encoding, in the order of the generator.

{encodings}
"""


def _aims(result: Result) -> Iterator[list[str]]:
    share = result.bytes_per_mask["tables"] / result.bytes_per_mask["sa1b"]
    yield ["less than half of the bytes of SA-1B JSON", f"{100 * share:.0f} %", "met" if share < 0.5 else "missed"]
    for question in (ONE_IMAGE, ONE_IMAGE_CHECKED, ONE_IMAGE_IN_SQL, *FILTERS):
        for name, least in (("nested", 1), ("sa1b", 20), ("coco", 20)):
            if name in (seconds := result.seconds[question]):
                ratio = seconds[name] / seconds["tables"]
                aim = f"at least {least} times as fast as" if least > 1 else "at least as fast as"
                verdict = "met" if ratio >= least else "missed"
                yield [f"{question}: {aim} {NAMES[name]}", f"{_times(ratio)} times", verdict]


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
