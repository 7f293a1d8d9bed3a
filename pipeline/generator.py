"""The engine: generates the masks of an image on one device, without Ray.

`prepare` resizes the views of an image. `generate` encodes each view, finds masks at its points (`one_pass.py`,
`two_pass.py`), filters the masks of all views together, and encodes them as run lengths (`encoding.py`).

Source: Kirillov et al. 2023, Appendix B; `SamAutomaticMaskGenerator` of segment-anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from maskmill.filters import chain
from maskmill.filters.masks import MaskBatch
from maskmill.filters.names import FILTERS
from maskmill.model.network import Network
from maskmill.model.optimize import device_answers
from maskmill.model.preprocess import normalise
from maskmill.model.threads import SingleCoreThreads, all_cores
from maskmill.pipeline.candidates import PointDecoder
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.encoding import MaskEncoder
from maskmill.pipeline.one_pass import OnePassSearch
from maskmill.pipeline.prompts import plan_views
from maskmill.pipeline.records import ImageMasks, StepTimer
from maskmill.pipeline.two_pass import TwoPassSearch
from maskmill.pipeline.views import EncodedView, ResizedImage, ResizedView

# Views of an image that a GPU encodes in one batch. A CPU encodes one view at a time: more do not fit in its caches.
GPU_VIEWS_PER_BATCH = 8

# Images that are processed concurrently on a GPU: the GPU computes one while the host filters or encodes the masks of
# the other.
GPU_IMAGES = 2


class MaskGenerator:
    """Generates the masks of images. Results do not depend on other images. Thread-safe."""

    def __init__(
        self, network: Network, config: GeneratorConfig, views_per_batch: int | None = None, gpu_share: float = 1
    ) -> None:
        """`views_per_batch` views are encoded in one batch; the default depends on the device.

        `gpu_share` is the share of the memory of a GPU that this generator may use. Batches of prompts depend on it.
        """
        self.network, self.config = network, config
        self._on_cpu = network.device.type == "cpu"
        self.at_once = 1 if self._on_cpu else GPU_IMAGES
        self._views_per_batch = views_per_batch or (1 if self._on_cpu else GPU_VIEWS_PER_BATCH)

        threads = all_cores()
        decoding = threads if self._on_cpu else SingleCoreThreads(1)
        self._find_masks = one_pass = OnePassSearch(PointDecoder(network, config, decoding, gpu_share), config)
        screen = network.screen() if config.can_be_screened else None
        if screen is not None:
            self._find_masks = TwoPassSearch(PointDecoder(screen, config, decoding, gpu_share), one_pass, config)
        self._encode_masks = MaskEncoder(network.config, config, threads)

    def prepare(self, pixels_HW3: NDArray[np.uint8]) -> ResizedImage:
        """Plans and resizes the views of an RGB image of any size. Other threads may call `generate` meanwhile."""
        height, width = pixels_HW3.shape[:2]
        views: list[ResizedView] = []
        for view in plan_views(height, width, self.config):
            x0, y0, x1, y1 = view.crop_box
            frame = self.network.config.frame(view.height, view.width)
            resized_rc3 = frame.resize(pixels_HW3[y0:y1, x0:x1])
            # Pinned memory is copied to a GPU asynchronously and at full bandwidth.
            views.append(ResizedView(view, resized_rc3 if self._on_cpu else resized_rc3.pin_memory()))
        return ResizedImage(height, width, tuple(views))

    @torch.inference_mode()
    def generate(self, image: ResizedImage, timer: StepTimer) -> ImageMasks:
        """The masks of an image, in the order of the published generator.

        Adds to the steps `encode`, `prompt`, `filter` and `rle` of the timer.
        """
        dropped: Counter[str] = Counter(dict.fromkeys(FILTERS, 0))
        by_view: list[MaskBatch] = []
        for encoded in self._encode_views(image, timer):
            masks = self._find_masks(encoded, timer, dropped)
            with timer.step("filter"):
                by_view.append(chain.apply(masks, [chain.box_nms(self.config.box_nms_thresh)], dropped))
        with timer.step("filter"):
            masks = chain.apply(MaskBatch.concat(by_view), self._image_filters(image), dropped)
        return self._encode_masks(masks, image.height, image.width, timer, dropped)

    def device_answers(self) -> bool:
        """Whether the device still computes, see `Engine.device_answers`."""
        return device_answers(self.network.device)

    def _encode_views(self, image: ResizedImage, timer: StepTimer) -> Iterator[EncodedView]:
        for first in range(0, len(image.views), self._views_per_batch):
            views = image.views[first : first + self._views_per_batch]
            with timer.step("encode"):
                on_device = (pixels_rc3.to(self.network.device, non_blocking=True) for _, pixels_rc3 in views)
                images = [normalise(pixels_rc3, self.network.config) for pixels_rc3 in on_device]
                embeddings = self.network.encode_images(torch.stack(images))
            for i, (view, _) in enumerate(views):
                yield EncodedView(view, embeddings[i : i + 1], image.height, image.width)

    def _image_filters(self, image: ResizedImage) -> list[chain.Filter]:
        """The filters that compare or measure the masks of all views in the image."""
        filters = [chain.crop_nms(self.config.crop_nms_thresh)] if len(image.views) > 1 else []
        if self.config.max_coverage is not None:
            filters.append(chain.coverage(self.config.max_coverage, image.height, image.width))
        return filters
