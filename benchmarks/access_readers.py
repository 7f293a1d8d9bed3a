"""The readers that benchmarks.access compares: one class per format, each answers the same questions about its masks.

Each takes the fastest reader that people use for its format: DuckDB and `maskmill.open_run` for the tables, pyarrow for
nested Parquet, where it reads single fields of the structs and DuckDB does not, `json` and pycocotools for JSON files.
"""

# pyarrow ships no types: strict checking would find every line that touches it unknown.
# pyright: standard
from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as coco

import maskmill
from maskmill.filters import rle_algebra
from maskmill.tables.query import connect

# Numbers that float32 and float64 both hold, so that all formats give the same answer.
PREDICTED_IOU, STABILITY_SCORE = 1.0, 0.96875
SAME = 0.5  # IoU


class Reader(Protocol):
    """Each method returns a number that is the same for the same masks in any format."""

    def one_image(self, image_id: str) -> int:
        """Reads all fields of the masks of one image. Returns their total area."""
        ...

    def score_filter(self) -> int:
        """Finds the ids of masks with high scores. Returns how many there are."""
        ...

    def area_filter(self, least: int) -> int:
        """Finds the ids of masks with more than `least` pixels. Returns how many there are."""
        ...

    def large_masks(self, least: int) -> int:
        """Reads the RLEs of masks with more than `least` pixels. Returns their total length."""
        ...

    def counts(self) -> int:
        """Counts the masks of each image. Returns the sum of squares."""
        ...

    def join(self) -> int:
        """Compares the total area of masks with the size of their image. Returns how many images are smaller."""
        ...

    def scan(self) -> int:
        """Reads all fields of all masks. Returns the total length of RLEs."""
        ...

    def ious(self, images: int) -> int:
        """Computes the IoU of all pairs of masks of the first images. Returns how many exceed SAME."""
        ...


def _call(function: str, column: Any) -> Any:
    return pc.call_function(function, [column])


def _sum(column: Any) -> int:
    return _call("sum", column).as_py() or 0  # None if there are no rows


def _length(counts: Any) -> int:
    return _sum(_call("binary_length", counts))


def _close_pairs(iou_NN: Any) -> int:
    return int((np.triu(iou_NN, 1) > SAME).sum())


def _close_pairs_of_coco(rles: list[Any]) -> int:
    return _close_pairs(coco.iou(rles, rles, [0] * len(rles))) if rles else 0


class Tables:
    """A run of maskmill. Views and data sets are open; each question reads the files again."""

    def __init__(self, run: maskmill.Run) -> None:
        self._run, self._masks, self._sql = run, run.masks, connect(run)

    def _select(self, sql: str) -> pa.Table:
        return self._sql.sql(sql).to_arrow_table()

    def one_image(self, image_id: str) -> int:
        return _sum(self._masks.to_table(filter=pc.field("image_id") == image_id)["area"])

    def one_image_checked(self, image_id: str) -> int:
        return int(self._run[image_id].area.sum())

    def one_image_in_sql(self, image_id: str) -> int:
        return _sum(self._select(f"SELECT * FROM masks WHERE image_id = '{image_id}'")["area"])

    def score_filter(self) -> int:
        return len(
            self._select(
                f"SELECT image_id, mask_id FROM masks "
                f"WHERE predicted_iou > {PREDICTED_IOU} AND stability_score > {STABILITY_SCORE}"
            )
        )

    def area_filter(self, least: int) -> int:
        return len(self._select(f"SELECT image_id, mask_id FROM masks WHERE area > {least}"))

    def large_masks(self, least: int) -> int:
        rows = self._select(f"SELECT image_id, mask_id, rle_counts FROM masks WHERE area > {least}")
        return _length(rows["rle_counts"])

    def counts(self) -> int:
        return int((self._select("SELECT image_id, n_masks FROM images")["n_masks"].to_numpy() ** 2).sum())

    def join(self) -> int:
        return len(
            self._select(
                "SELECT image_id FROM masks JOIN images USING (image_id) "
                "GROUP BY image_id, images.image_height, images.image_width "
                "HAVING sum(area) > images.image_height * images.image_width"
            )
        )

    def scan(self) -> int:
        return sum(_length(batch["rle_counts"]) for batch in self._run.masks.to_batches())

    def ious(self, images: int) -> int:
        found = 0
        for counts, height, width in islice(self._by_image(), images):
            found += _close_pairs(rle_algebra.iou_matrix(counts, counts, height, width))
        return found

    def ious_with_pycocotools(self, images: int) -> int:
        return sum(
            _close_pairs_of_coco([{"size": [height, width], "counts": mask} for mask in counts])
            for counts, height, width in islice(self._by_image(), images)
        )

    def ious_in_sql(self, image_ids: list[str]) -> int:
        where = f"image_id BETWEEN '{image_ids[0]}' AND '{image_ids[-1]}'"
        return self._select(
            f"WITH few AS (SELECT image_id, mask_id, rle_counts, image_height, image_width FROM masks WHERE {where}) "
            f"SELECT count(*) AS found FROM few a JOIN few b USING (image_id) WHERE a.mask_id < b.mask_id "
            f"AND mask_iou(a.rle_counts, b.rle_counts, a.image_height, a.image_width) > {SAME}"
        )["found"][0].as_py()

    def _by_image(self) -> Iterator[tuple[list[bytes], int, int]]:
        for rows in self._run.mask_parts(["image_id", "image_height", "image_width", "rle_counts"]):
            ids = rows["image_id"].combine_chunks().dictionary_encode().indices.to_numpy()
            counts = rows["rle_counts"].to_pylist()
            for start, stop in pairwise([0, *(np.flatnonzero(np.diff(ids)) + 1).tolist(), len(ids)]):
                yield counts[start:stop], rows["image_height"][start].as_py(), rows["image_width"][start].as_py()


class Nested:
    """Parquet files of Hugging Face: one row per image with a list of masks. The data set is open."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(str(path) for path in folder.glob("data/*.parquet"))
        self._dataset = ds.dataset(self._files)
        self._sql = duckdb.connect()

    def one_image(self, image_id: str) -> int:
        return self._area(self._dataset.to_table(filter=pc.field("image_id") == image_id))

    def one_image_in_sql(self, image_id: str) -> int:
        sql = f"SELECT * FROM read_parquet({self._files}) WHERE image_id = '{image_id}'"
        return self._area(self._sql.sql(sql).to_arrow_table())

    @staticmethod
    def _area(rows: pa.Table) -> int:
        return _sum(rows["annotations"].combine_chunks().flatten().field("area"))

    def _read(self, columns: list[str], fields: list[str]) -> Iterator[tuple[pa.Table, pa.ListArray, pa.StructArray]]:
        """Rows, their lists of masks, and all masks, of each file. Reads only these columns, and fields of masks."""
        for path in self._files:
            leaves = [f"annotations.list.element.{field}" for field in fields]
            rows = pq.ParquetFile(path).read([*columns, *leaves])
            lists = rows["annotations"].combine_chunks()
            yield rows, lists, lists.flatten()

    def _find(
        self, fields: list[str], condition: Callable[[pa.StructArray], NDArray[np.bool_]]
    ) -> Iterator[tuple[pa.Table, pa.StructArray]]:
        """The ids of the masks that meet the condition, and these masks with the given fields, of each file."""
        for rows, lists, masks in self._read(["image_id"], ["id", *fields]):
            where = pa.array(np.flatnonzero(condition(masks)))
            image_ids = rows["image_id"].take(_call("list_parent_indices", lists).take(where))
            found = masks.take(where)
            yield pa.table([image_ids, found.field("id")], ["image_id", "mask_id"]), found

    def score_filter(self) -> int:
        def high(masks: pa.StructArray) -> NDArray[np.bool_]:
            scores = (masks.field(name).to_numpy() for name in ("predicted_iou", "stability_score"))
            return np.logical_and(
                *(score > least for score, least in zip(scores, (PREDICTED_IOU, STABILITY_SCORE), strict=True))
            )

        return sum(len(ids) for ids, _ in self._find(["predicted_iou", "stability_score"], high))

    def area_filter(self, least: int) -> int:
        return sum(len(ids) for ids, _ in self._find(["area"], lambda masks: masks.field("area").to_numpy() > least))

    def large_masks(self, least: int) -> int:
        found = self._find(["area", "segmentation.counts"], lambda masks: masks.field("area").to_numpy() > least)
        return sum(_length(masks.field("segmentation").field("counts")) for _, masks in found)

    def counts(self) -> int:
        lengths = (_call("list_value_length", lists).to_numpy() for _, lists, _ in self._read(["image_id"], ["id"]))
        return sum(int((length**2).sum()) for length in lengths)

    def join(self) -> int:
        found = 0
        for rows, lists, masks in self._read(["image_id", "height", "width"], ["area"]):
            total = np.append(0, masks.field("area").to_numpy().cumsum())[
                lists.offsets.to_numpy() - lists.offsets[0].as_py()
            ]
            found += int((np.diff(total) > rows["height"].to_numpy() * rows["width"].to_numpy()).sum())
        return found

    def scan(self) -> int:
        length = 0
        for batch in self._dataset.to_batches():
            counts = batch["annotations"].flatten().field("segmentation").field("counts")
            length += _length(counts)
        return length

    def ious(self, images: int) -> int:
        return sum(_close_pairs_of_coco(rles) for rles in islice(self._by_image(), images))

    def _by_image(self) -> Iterator[list[Any]]:
        for rows, lists, masks in self._read(["height", "width"], ["segmentation.counts"]):
            counts = masks.field("segmentation").field("counts").to_pylist()
            offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
            sizes = zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True)
            for (start, stop), size in zip(pairwise(offsets), sizes, strict=True):
                yield [{"size": size, "counts": mask} for mask in counts[start:stop]]


class _Json:
    """JSON, which is parsed anew for each question: held in memory it takes several times the bytes of the files."""

    def _contents(self) -> Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Each image with its annotations."""
        raise NotImplementedError

    def score_filter(self) -> int:
        found = [
            (image["file_name"], mask["id"])
            for image, masks in self._contents()
            for mask in masks
            if mask["predicted_iou"] > PREDICTED_IOU and mask["stability_score"] > STABILITY_SCORE
        ]
        return len(found)

    def area_filter(self, least: int) -> int:
        found = [
            (image["file_name"], mask["id"])
            for image, masks in self._contents()
            for mask in masks
            if mask["area"] > least
        ]
        return len(found)

    def large_masks(self, least: int) -> int:
        found = [
            (image["file_name"], mask["id"], mask["segmentation"]["counts"])
            for image, masks in self._contents()
            for mask in masks
            if mask["area"] > least
        ]
        return sum(len(counts) for _, _, counts in found)

    def counts(self) -> int:
        return sum(len(masks) ** 2 for _, masks in self._contents())

    def join(self) -> int:
        return sum(
            sum(mask["area"] for mask in masks) > image["height"] * image["width"] for image, masks in self._contents()
        )

    def scan(self) -> int:
        return sum(len(mask["segmentation"]["counts"]) for _, masks in self._contents() for mask in masks)

    def ious(self, images: int) -> int:
        contents = islice(self._contents(), images)
        return sum(_close_pairs_of_coco([mask["segmentation"] for mask in masks]) for _, masks in contents)


class Sa1b(_Json):
    """A JSON file per image, which is found by the name of the image."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = sorted(folder.glob("**/*.json"))

    def _contents(self) -> Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]:
        for path in self._paths:
            content = json.loads(path.read_bytes())
            yield content["image"], content["annotations"]

    def one_image(self, image_id: str) -> int:
        path = self._folder / PurePosixPath(image_id).with_suffix(".json")
        return sum(mask["area"] for mask in json.loads(path.read_bytes())["annotations"])


class Coco(_Json):
    """One file, loaded with `json` as pycocotools.COCO does, without the further indices that COCO builds."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _contents(self) -> Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]:
        with open(self._path) as stream:
            content = json.load(stream)
        by_image: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        return [(image, by_image[image["id"]]) for image in content["images"]]

    def one_image(self, image_id: str) -> int:
        masks = next(masks for image, masks in self._contents() if image["file_name"] == image_id)
        return sum(mask["area"] for mask in masks)
