"""The engine: one image to its masks, on one device, without Ray.

Shapes: N points or candidate masks, M masks per point (the single mask first), C embedding channels, S side
of the model's input, h w low-resolution logits, H W pixels of the image.
Source: Kirillov et al. 2023, Appendix B; `SamAutomaticMaskGenerator` of segment-anything.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskmill.filters import chain, mask_measure, rle
from maskmill.filters.boxes import xywh_to_xyxy, xyxy_to_xywh
from maskmill.filters.masks import MaskBatch
from maskmill.filters.names import FILTERS
from maskmill.filters.nms import nms
from maskmill.filters.regions import remove_small_regions
from maskmill.filters.screening import IOU_MARGIN, LOGIT_MARGIN, STABILITY_MARGIN, Screening
from maskmill.filters.upsampling import Upsampling, plan_upsampling
from maskmill.model.config import SamConfig
from maskmill.model.image_encoder import ImageEmbedding
from maskmill.model.optimize import device_answers
from maskmill.model.preprocess import normalise, resize, resized_size, to_input_frame
from maskmill.model.sam import Sam
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.prompts import View, plan_views
from maskmill.pipeline.records import ImageMasks, StepTimer

T = TypeVar("T")

# Of the largest tensor of a batch of prompts: on a CPU about what the caches hold, on a GPU a share of its memory that
# leaves room for others. The more prompts, the fewer kernels to launch.
CPU_TENSOR_BYTES = 32 * 2**20
GPU_TENSOR_SHARE = 1 / 32

# The borders of so many masks are in memory before they are compressed.
ENCODED_AT_ONCE = 64

# Views of an image that a GPU encodes at once.
GPU_VIEWS_PER_BATCH = 8

# Images on a GPU at once: while the host compresses the masks of one, or decides which it keeps, there is the other.
GPU_IMAGES = 2


@dataclass(frozen=True, eq=False)
class ResizedImage:
    """What the network needs to see of an image: each view at the scale of its input. Holds no other pixels."""

    height: int  # of the image, in pixels
    width: int
    views: tuple[Tensor, ...]  # (h, w, 3) uint8 on the CPU, in the order of `plan_views`


class MaskGenerator:
    """Finds the masks of images, each by itself; keeps nothing in between.

    On a CPU each thread that torch may use takes batches of prompts of its own: all that a batch needs stays in the
    caches of one core, and no thread waits for another. On a GPU these threads only edit masks.
    """

    def __init__(self, sam: Sam, config: GeneratorConfig, views_per_batch: int | None = None) -> None:
        """`views_per_batch` views are encoded at once; by default one on a CPU, whose caches hold no more."""
        self.sam = sam
        self._screen = sam.screen()
        self.config = config
        self._on_cpu = sam.device.type == "cpu"
        self.at_once = 1 if self._on_cpu else GPU_IMAGES
        self._views_per_batch = views_per_batch or (1 if self._on_cpu else GPU_VIEWS_PER_BATCH)
        bytes_per_prompt = 4 * sam.config.mask_size**2 * sam.config.embed_dim // 8
        largest = CPU_TENSOR_BYTES
        if not self._on_cpu:
            largest = GPU_TENSOR_SHARE * torch.cuda.get_device_properties(sam.device).total_memory
        suitable = max(1, int(largest / bytes_per_prompt))
        self._batch_size = min(suitable, config.points_per_batch or suitable)
        threads = torch.get_num_threads()
        self._pool = _single_threads(threads) if threads > 1 else None
        self._threads = threads if self._on_cpu else 1  # that take batches of prompts

    def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
        """Resizes the views of an RGB image of any size. Threads may do so while others generate."""
        height, width = pixels_HW3.shape[:2]
        boxes = [view.crop_box for view in plan_views(height, width, self.config)]
        views = [resize(pixels_HW3[y0:y1, x0:x1], self.sam.config.image_size) for x0, y0, x1, y1 in boxes]
        # Pinned memory is copied to a GPU at full speed, and nobody waits for it.
        return ResizedImage(height, width, tuple(views if self._on_cpu else (view.pin_memory() for view in views)))

    @torch.inference_mode()
    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        """The masks of an image, in the order in which the published generator returns them.

        Adds to the timer's steps `encode`, `prompt`, `filter` and `rle`.
        """
        height, width = image.height, image.width
        dropped: Counter[str] = Counter(dict.fromkeys(FILTERS, 0))
        views = plan_views(height, width, self.config)
        batches = [
            self._view_masks(_SeenView(embedding, view, height, width), timer, dropped)
            for embedding, view in zip(self._embeddings(image, timer), views, strict=True)
        ]
        with timer.step("filter"):
            batch = chain.apply(MaskBatch.concat(batches), self._image_filters(height, width, len(views)), dropped)
        encoded = self._encode(batch, height, width, timer, dropped)
        batch = batch.select(torch.tensor([mask.row for mask in encoded], dtype=torch.int64))
        return ImageMasks(
            height=height,
            width=width,
            area=np.array([rle.area(mask.counts, height, width) for mask in encoded], dtype=np.int64),
            boxes=_boxes(encoded, height, width),
            predicted_iou=batch.predicted_iou.cpu().numpy(),
            stability_score=batch.stability_score.cpu().numpy(),
            points=batch.points.cpu().numpy(),
            crop_boxes=xyxy_to_xywh(batch.crop_boxes).cpu().numpy(),
            rle_counts=tuple(mask.counts for mask in encoded),
            dropped=dropped,
        )

    def device_answers(self) -> bool:
        return device_answers(self.sam.device)

    def _mask_filters(self, height: int, width: int, inner_boxes_N4: Tensor | None = None) -> list[chain.Filter]:
        """What applies to each mask by itself; leniently, where N masks are only roughly known."""
        filters, threshold = [], self.config.stability_score_thresh
        if threshold > 0:
            margin = 0 if inner_boxes_N4 is None else STABILITY_MARGIN
            filters.append(chain.stability_score(threshold - margin))
        return [*filters, chain.crop_edge(height, width, inner_boxes_N4)]

    def _image_filters(self, height: int, width: int, views: int) -> list[chain.Filter]:
        """What applies to the masks of all views together."""
        filters = []
        if views > 1:
            filters.append(chain.crop_nms(self.config.crop_nms_thresh))
        if self.config.max_coverage is not None:
            filters.append(chain.coverage(self.config.max_coverage, height, width))
        return filters

    def _embeddings(self, image: ResizedImage, timer: StepTimer) -> Iterator[ImageEmbedding]:
        """One for each view."""
        for first in range(0, len(image.views), self._views_per_batch):
            with timer.step("encode"):
                resized = image.views[first : first + self._views_per_batch]
                on_device = (x_hw3.to(self.sam.device, non_blocking=True) for x_hw3 in resized)
                images = [normalise(x_hw3, self.sam.config) for x_hw3 in on_device]
                embeddings = self.sam.encode_images(torch.stack(images))
            for i in range(len(resized)):
                yield embeddings[i : i + 1]

    def _view_masks(self, seen: _SeenView, timer: StepTimer, dropped: Counter[str]) -> MaskBatch:
        """The masks that remain of one view of the image."""
        points_P2 = torch.from_numpy(seen.view.points_P2)
        if self._screen is None:
            batch = self._masks_at(seen, points_P2, timer, dropped)
        else:
            batch = self._screened_masks(seen, points_P2, self._screen, timer, dropped)
        with timer.step("filter"):
            return chain.apply(batch, [chain.box_nms(self.config.box_nms_thresh)], dropped)

    def _screened_masks(
        self, seen: _SeenView, points_P2: Tensor, screen: Sam, timer: StepTimer, dropped: Counter[str]
    ) -> MaskBatch:
        """Those of the masks at some points that NMS may keep, once `screen` has looked at all points."""
        screening = Screening.concat(
            list(self._by_batches(lambda points_N2: self._screen_points(seen, points_N2, screen, timer), points_P2))
        )
        batch = MaskBatch.empty(self.sam.config.mask_size, self.sam.device)
        open_P = torch.ones(len(points_P2), dtype=torch.bool)
        while True:
            with timer.step("filter"):
                chosen = screening.contenders(open_P, batch, self.config.box_nms_thresh)
            if len(chosen) == 0:
                dropped.update(screening.dropped(open_P))
                return batch
            open_P[chosen] = False
            batch = MaskBatch.concat([batch, self._masks_at(seen, points_P2[chosen], timer, dropped)])

    def _masks_at(self, seen: _SeenView, points_P2: Tensor, timer: StepTimer, dropped: Counter[str]) -> MaskBatch:
        """The masks at some points that pass each by itself."""
        batches = [MaskBatch.empty(self.sam.config.mask_size, self.sam.device)]
        find = self._by_batches(lambda points_N2: self._point_masks(seen, points_N2, timer), points_P2)
        for batch, dropped_of_batch in find:
            batches.append(batch)
            dropped.update(dropped_of_batch)
        return MaskBatch.concat(batches)

    def _by_batches(self, function: Callable[[Tensor], T], points_P2: Tensor) -> Iterator[T]:
        """What a function makes of each batch of points, in order."""
        batches = points_P2.split(self._batch_size)
        return self._pool.map(function, batches) if self._pool and self._on_cpu else map(function, batches)

    @torch.inference_mode()  # each thread has a mode of its own
    def _point_masks(self, seen: _SeenView, points_N2: Tensor, timer: StepTimer) -> tuple[MaskBatch, Counter[str]]:
        """The masks at a batch of points that pass, and how many did not, by filter."""
        found = self._candidates(self.sam, seen, points_N2, self.config.pred_iou_thresh, 0.0, timer)
        dropped = Counter({"predicted_iou": found.predicted_iou_NM[:, 1:].numel() - len(found.masks)})
        with timer.step("filter", self._threads):
            filters = self._mask_filters(seen.image_height, seen.image_width)
            return chain.apply_together(found.masks, filters, dropped), dropped

    @torch.inference_mode()
    def _screen_points(self, seen: _SeenView, points_N2: Tensor, screen: Sam, timer: StepTimer) -> Screening:
        """What `screen` makes of a batch of points."""
        threshold = self.config.pred_iou_thresh
        threshold = threshold - IOU_MARGIN if threshold > 0 else 0
        found = self._candidates(screen, seen, points_N2, threshold, LOGIT_MARGIN, timer)
        with timer.step("filter", self._threads):
            filters = self._mask_filters(seen.image_height, seen.image_width, found.inner_boxes_K4)
            return Screening.of(found.masks, found.inner_boxes_K4, found.predicted_iou_NM, found.chosen, filters)

    def _candidates(
        self, sam: Sam, seen: _SeenView, points_N2: Tensor, threshold: float, logit_margin: float, timer: StepTimer
    ) -> _Candidates:
        """The masks at a batch of points whose predicted IoU passes. The others are never computed.

        Their boxes are those of `filters.mask_measure.measure` with the margin.
        """
        view, device = seen.view, self.sam.device
        with timer.step("prompt", self._threads):
            points_N2 = points_N2.to(device, non_blocking=True)
            inputs_N2 = to_input_frame(points_N2, view.height, view.width, sam.config.image_size)
            decoded = sam.decode_points(seen.embedding, inputs_N2)
            iou_NM = decoded.predicted_iou_NM
            keep_NM = iou_NM > threshold if threshold > 0 else torch.ones_like(iou_NM, dtype=torch.bool)
            # A lone click is ambiguous: its candidates are the three ambiguity masks, not the single one.
            keep_NM[:, 0] = False
            keep_NM = keep_NM.cpu()  # Here the host waits for a GPU, and then knows how many there are.
            chosen = keep_NM.nonzero().to(device, non_blocking=True).unbind(dim=1)
            logits_Khw = sam.decode_masks(decoded, keep_NM)
        with timer.step("filter", self._threads):
            upsampling = crop_upsampling(sam.config, view.height, view.width)
            measures = mask_measure.measure(logits_Khw, upsampling, self.config.stability_score_offset, logit_margin)
            crop_box_4 = torch.tensor(view.crop_box).to(device, non_blocking=True)
            corner_4 = crop_box_4[:2].repeat(2)
            masks = MaskBatch(
                logits=logits_Khw,
                predicted_iou=iou_NM[chosen],
                stability_score=measures.stability_score,
                area=measures.area,
                boxes=measures.boxes + corner_4,
                points=points_N2[chosen[0]] + crop_box_4[:2],
                crop_boxes=crop_box_4.expand(len(logits_Khw), 4),
            )
        return _Candidates(masks, measures.inner_boxes + corner_4, iou_NM, chosen)

    def _encode(
        self, batch: MaskBatch, height: int, width: int, timer: StepTimer, dropped: Counter[str]
    ) -> list[_EncodedMask]:
        """The masks of the rows that remain after small regions are removed, in the order to return them."""
        with timer.step("rle"):
            encoded = [
                _EncodedMask(row, counts, False) for row, counts in enumerate(self._counts(batch, height, width))
            ]
        if self.config.min_mask_region_area > 0:
            with timer.step("filter"):
                encoded = self._remove_small_regions(encoded, height, width)
        dropped["small_regions"] += len(batch) - len(encoded)
        return encoded

    def _counts(self, batch: MaskBatch, height: int, width: int) -> list[bytes]:
        """The RLE of each mask in the image."""
        counts = [b""] * len(batch)
        crop_boxes_N4 = batch.crop_boxes.cpu()
        for crop_box_4 in crop_boxes_N4.unique(dim=0):
            rows = (crop_boxes_N4 == crop_box_4).all(dim=1).nonzero()[:, 0]
            x0, y0, x1, y1 = crop_box_4.tolist()
            upsampling = crop_upsampling(self.sam.config, y1 - y0, x1 - x0)
            for block in rows.split(ENCODED_AT_ONCE):
                logits = batch.logits[block.to(batch.logits.device, non_blocking=True)]
                of_block = mask_measure.encode(logits, upsampling, (x0, y0), height, width)
                for row, text in zip(block.tolist(), of_block, strict=True):
                    counts[row] = text
        return counts

    def _remove_small_regions(self, masks: list[_EncodedMask], height: int, width: int) -> list[_EncodedMask]:
        min_area, keep_largest = self.config.min_mask_region_area, not self.config.drop_small_masks

        def edit(mask: _EncodedMask) -> _EncodedMask:
            counts, edited = remove_small_regions(mask.counts, height, width, min_area, keep_largest)
            return _EncodedMask(mask.row, counts, edited)

        edited = self._pool.map(edit, masks) if self._pool else map(edit, masks)
        kept = [mask for mask in edited if keep_largest or rle.area(mask.counts, height, width)]
        # Editing may have made duplicates: of two, the unedited one stays.
        boxes_N4 = xywh_to_xyxy(torch.from_numpy(_boxes(kept, height, width)))
        scores_N = torch.tensor([0.0 if mask.edited else 1.0 for mask in kept])
        rows = nms(boxes_N4, scores_N, max(self.config.box_nms_thresh, self.config.crop_nms_thresh))
        return [kept[row] for row in rows.tolist()]


def crop_upsampling(config: SamConfig, height: int, width: int) -> Upsampling:
    """From the logits of a network to the pixels of a crop that it has seen whole."""
    resized = resized_size(height, width, config.image_size)
    return plan_upsampling(config.mask_size, config.image_size, resized, height, width)


def _single_threads(count: int) -> ThreadPoolExecutor:
    """Threads in each of which torch uses that one only."""
    pool = ThreadPoolExecutor(count, "maskmill", torch.set_num_threads, (1,))
    all_started = threading.Barrier(count)
    list(pool.map(lambda _: all_started.wait(), range(count)))
    torch.set_num_threads(count)  # again: what was set last is what threads begin with that come later
    return pool


class _SeenView(NamedTuple):
    """A view, as the network has seen it, of an image whose size is in pixels."""

    embedding: ImageEmbedding
    view: View
    image_height: int
    image_width: int


class _Candidates(NamedTuple):
    """K of the masks of N points."""

    masks: MaskBatch
    inner_boxes_K4: Tensor
    predicted_iou_NM: Tensor
    chosen: tuple[Tensor, ...]  # (K,) each: the points and the masks


class _EncodedMask(NamedTuple):
    row: int  # of the batch
    counts: bytes
    edited: bool  # by the removal of small regions


def _boxes(masks: list[_EncodedMask], height: int, width: int) -> NDArray[np.int64]:
    """Boxes (N, 4) XYWH, w = x1 - x0."""
    return np.array([rle.bbox(mask.counts, height, width) for mask in masks], dtype=np.int64).reshape(-1, 4)
