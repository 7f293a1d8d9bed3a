"""The engines in the comparison. Each converts the encoded bytes of an image to the COCO run lengths of its masks."""

from __future__ import annotations

import importlib.util
import io
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from benchmarks.load import Replay, ReplayedNetwork, replay_in_published, replay_in_transformers
from maskmill.compat.segment_anything import SamAutomaticMaskGenerator
from maskmill.compat.segment_anything import modeling as compat_modeling
from maskmill.model.families.mobile_sam.config import MobileSamConfig
from maskmill.model.network import Network
from maskmill.pipeline.config import DecodingConfig, GeneratorConfig
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.images import decode_image
from maskmill.pipeline.records import Clock, ImageMasks, StepTimer

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base
    from transformers import SamModel

DECODING = DecodingConfig(max_image_pixels=10**9)
Engine = Callable[[bytes], list[bytes]]
# Creates an engine for a configuration. The warm-up and the measurement use different configurations.
EngineFactory = Callable[[GeneratorConfig], Engine]


class Maskmill:
    """The maskmill engine. Stores the masks of the last image and the milliseconds of its steps, timed by `clock`."""

    def __init__(self, sam: Network, replay: Replay | None, config: GeneratorConfig) -> None:
        self._generator = MaskGenerator(ReplayedNetwork(sam, replay) if replay else sam, config)
        self.clock: Clock = time.perf_counter
        self.timer = StepTimer()
        self.masks: ImageMasks | None = None

    def __call__(self, data: bytes) -> list[bytes]:
        self.timer = StepTimer(self.clock)
        with self.timer.step("decode"):
            image = self._generator.prepare(decode_image(data, DECODING).pixels)
        self.masks = self._generator.generate(image, self.timer)
        return list(self.masks.rle_counts)


def segment_anything(sam: Network, device: torch.device, replay: Replay | None) -> EngineFactory:
    """The generator and network of segment_anything or, for `vit_t`, of mobile_sam, in float32."""
    from testing import oracles

    if isinstance(sam.config, MobileSamConfig):
        from testing.published_mobile_sam import SamAutomaticMaskGenerator, published_mobile_sam

        network, factory = published_mobile_sam(sam).to(device), SamAutomaticMaskGenerator
    else:
        network, factory = oracles.published_sam(sam).to(device), oracles.SamAutomaticMaskGenerator
    if replay:
        replay_in_published(network, replay)
    return partial(_engine_of_generator, partial(oracles.published_generator, network, factory=factory))


def sam2(network: SAM2Base, device: torch.device, replay: Replay | None) -> EngineFactory:
    """The generator and network of sam2, in float32."""
    from testing import sam2_oracles

    if replay:
        replay_in_published(network, replay, prefix="sam_")
    return partial(_engine_of_generator, partial(sam2_oracles.published_generator, network.to(device)))


def compat(sam: Network, device: torch.device, replay: Replay | None) -> EngineFactory:
    """maskmill with the interface of segment_anything: `maskmill.compat.segment_anything`."""
    from testing import oracles

    network = _CompatNetwork(sam, replay).to(device)
    return partial(
        _engine_of_generator, partial(oracles.published_generator, network, factory=SamAutomaticMaskGenerator)
    )


class _CompatNetwork(compat_modeling.Sam):
    def __init__(self, sam: Network, replay: Replay | None) -> None:
        super().__init__(sam.config)
        self.load_state_dict(sam.state_dict())
        self._replay = replay

    def for_inference(self) -> Network:
        sam = super().for_inference()
        return ReplayedNetwork(sam, self._replay) if self._replay else sam


def _engine_of_generator(make_generator: Callable[[GeneratorConfig], Any], config: GeneratorConfig) -> Engine:
    generator = make_generator(config)

    def engine(data: bytes) -> list[bytes]:
        masks = generator.generate(decode_image(data, DECODING).pixels)
        return [mask["segmentation"]["counts"].encode() for mask in masks]

    return engine


def transformers(network: SamModel, side: int, device: torch.device, replay: Replay | None) -> EngineFactory:
    """The `mask-generation` pipeline of transformers, in float32. It does not remove small regions.

    `side` is the input side of the network in pixels.
    """
    from transformers import pipeline

    if replay:
        replay_in_transformers(network, replay)
    generate = pipeline("mask-generation", model=network, image_processor=_image_processor(side), device=device)

    def factory(config: GeneratorConfig) -> Engine:
        arguments = {
            "points_per_batch": config.points_per_batch or 64,
            "points_per_crop": config.points_per_side,
            "crops_n_layers": config.crop_n_layers,
            "crop_overlap_ratio": config.crop_overlap_ratio,
            "crop_n_points_downscale_factor": config.crop_n_points_downscale_factor,
            "pred_iou_thresh": config.pred_iou_thresh,
            "stability_score_thresh": config.stability_score_thresh,
            "stability_score_offset": config.stability_score_offset,
            # The pipeline has a single NMS for the masks of all crops.
            "crops_nms_thresh": config.box_nms_thresh,
        }

        def engine(data: bytes) -> list[bytes]:
            found = generate(Image.open(io.BytesIO(data)), output_rle_mask=True, **arguments)
            return [coco.frPyObjects(rle, *rle["size"])["counts"] for rle in found["rle_mask"]]

        return engine

    return factory


def _image_processor(side: int) -> Any:
    """Returns the default image processor of transformers. Without torchvision, this is the one based on PIL.

    The PIL processor imports `batched_nms` from torchvision, so this function replaces its post-processing step.
    """
    sizes: dict[str, Any] = {"size": {"longest_edge": side}, "pad_size": {"height": side, "width": side}}
    if importlib.util.find_spec("torchvision"):
        from transformers import SamImageProcessor

        return SamImageProcessor(**sizes)
    from transformers import SamImageProcessorPil
    from transformers.models.sam.image_processing_pil_sam import _rle_to_mask

    from testing.torchvision_stub import batched_nms

    class Processor(SamImageProcessorPil):
        def post_process_for_mask_generation(
            self, all_masks: list[dict], all_scores: Tensor, all_boxes: Tensor, crops_nms_thresh: float
        ) -> tuple:
            categories = torch.zeros(len(all_boxes))
            kept = batched_nms(all_boxes.float(), all_scores, categories, crops_nms_thresh)
            rles = [all_masks[row] for row in kept]
            return [_rle_to_mask(rle) for rle in rles], all_scores[kept], rles, all_boxes[kept]

    return Processor(**sizes)
