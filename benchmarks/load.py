"""Replays the masks of `mini` in networks with random weights, which gives the filters a realistic load.

Random weights produce random masks that cover the whole image, and NMS keeps only one of them. Therefore the network
runs completely, but the outputs of its mask decoder are replaced by the predicted IoUs and the resized low-resolution
logits of `mini` for the same points of the same photograph. The replacement happens at the same place in every engine.

Shapes: N points, G points per side of a grid, M = 3 ambiguity masks, h w mask side in logit pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from maskmill.evaluation.candidates import grid_logits
from maskmill.filters.boxes import masks_to_boxes
from maskmill.filters.nms import nms
from maskmill.model.checkpoint import load_model
from maskmill.model.config import NetworkConfig
from maskmill.model.embedding import ImageEmbedding
from maskmill.model.frame import Frame
from maskmill.model.mask_decoder import DecodedPrompts
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from maskmill.model.prompts import AMBIGUITY_MASKS, SINGLE_MASK
from maskmill.pipeline.config import GeneratorConfig
from testing.scores import stability_score

# Approximate pass rates and number of masks for released weights with the `official` thresholds.
PROMPTS_PASSING_IOU = 0.6
MASKS_PASSING_STABILITY = 0.25
MASKS_LEFT_BY_NMS = 100


@dataclass(frozen=True, eq=False)
class Candidates:
    """The unfiltered predictions of `mini` for a grid of points on one photograph."""

    points_per_side: int
    extent: tuple[float, float]  # width and height of the photograph as fractions of the square network input
    predicted_iou_NM: Tensor
    logits_NMhw: Tensor

    def visible_logits(self) -> Tensor:
        """Returns the logits (N, M, h, w), cropped to the photograph, without the padding of the input."""
        side = self.logits_NMhw.shape[-1]
        width, height = (round(share * side) for share in self.extent)
        return self.logits_NMhw[..., :height, :width]

    def prompts_passing(self, threshold: float) -> float:
        """Returns the fraction of points that have a mask with a predicted IoU above the threshold."""
        return float((self.predicted_iou_NM > threshold).any(dim=1).float().mean())

    def stability_scores(self, offset: float) -> Tensor:
        """Returns stability scores (N, M) at the resolution of the logits; 0 for masks without pixels."""
        scores_K = stability_score(self.visible_logits().flatten(0, 1), offset)
        return scores_K.nan_to_num(0).unflatten(0, self.logits_NMhw.shape[:2])

    def left_by_nms(self, keep_NM: Tensor, threshold: float) -> int:
        """Returns the number of masks that NMS keeps of those selected by `keep_NM`."""
        boxes_K4 = masks_to_boxes(self.visible_logits()[keep_NM] > 0)
        return len(nms(boxes_K4, self.predicted_iou_NM[keep_NM], threshold))


class CandidateFinder:
    """Runs `mini` on a photograph for every point of a grid."""

    def __init__(self, points_per_side: int, device: torch.device) -> None:
        self._sam = optimize(load_model("mini", None).network, "exact", device)
        self._points_per_side = points_per_side

    def __call__(self, pixels_HW3: NDArray[np.uint8]) -> Candidates:
        """Returns the candidates of an RGB photograph as CPU tensors."""
        height, width = pixels_HW3.shape[:2]
        side, masks = self._sam.config.image_size, self._sam.config.multimask_outputs
        batches = grid_logits(self._sam, pixels_HW3, self._points_per_side)
        logits, iou = zip(*((logits_Khw.cpu(), iou_K.cpu()) for logits_Khw, iou_K in batches), strict=True)
        resized_height, resized_width = Frame(height, width, side).resized
        return Candidates(
            points_per_side=self._points_per_side,
            extent=(resized_width / side, resized_height / side),
            predicted_iou_NM=torch.cat(iou).unflatten(0, (-1, masks)),
            logits_NMhw=torch.cat(logits).unflatten(0, (-1, masks)),
        )


def thresholds_by_rank(config: GeneratorConfig, photographs: Sequence[Candidates]) -> GeneratorConfig:
    """Returns `config` with thresholds that give PROMPTS_PASSING_IOU, MASKS_PASSING_STABILITY and MASKS_LEFT_BY_NMS.

    The pass rates and the mean number of masks are computed over all photographs.
    """
    iou = torch.cat([candidates.predicted_iou_NM for candidates in photographs])
    stability = torch.cat([each.stability_scores(config.stability_score_offset) for each in photographs])
    iou_threshold = float(iou.max(dim=1).values.quantile(1 - PROMPTS_PASSING_IOU))
    ranked = stability[iou > iou_threshold].sort(descending=True).values
    stability_threshold = float(ranked[: round(MASKS_PASSING_STABILITY * iou.numel())][-1])
    keep_NM = (iou > iou_threshold) & (stability >= stability_threshold)
    keep_by_photograph = keep_NM.split([len(candidates.predicted_iou_NM) for candidates in photographs])

    def left_by_nms(threshold: float) -> float:
        pairs = zip(photographs, keep_by_photograph, strict=True)
        return mean(each.left_by_nms(keep, threshold) for each, keep in pairs)

    return replace(
        config,
        pred_iou_thresh=iou_threshold,
        stability_score_thresh=stability_threshold,
        box_nms_thresh=next(
            threshold
            for threshold in [*np.arange(config.box_nms_thresh, 0.995, 0.01).tolist(), 1.0]
            if threshold == 1 or left_by_nms(threshold) >= MASKS_LEFT_BY_NMS
        ),
    )


class Replay:
    """Returns the candidates of the photograph passed to `show`, resized to the mask size of one network."""

    def __init__(self, config: NetworkConfig, device: torch.device) -> None:
        self._config, self._device = config, device

    def show(self, candidates: Candidates) -> None:
        """Sets the candidates that are replayed."""
        size = (self._config.mask_size, self._config.mask_size)
        # mini pads photographs. A network with a square input gets what mini sees of the photograph, stretched.
        square = self._config.square_input
        source_NMhw = candidates.visible_logits() if square else candidates.logits_NMhw
        self._extent = (1.0, 1.0) if square else candidates.extent
        # A loop over points: `F.interpolate` on thousands of masks at once could exceed 2^31 elements.
        logits_NMhw = torch.cat([F.interpolate(x[None], size, mode="bilinear") for x in source_NMhw])
        self._candidates, self._logits_NMhw = candidates, logits_NMhw.to(self._device)
        self._predicted_iou_NM = candidates.predicted_iou_NM.to(self._device)

    def rows(self, points_N2: Tensor) -> Tensor:
        """Returns the index of the nearest grid point for each point (in input pixels)."""
        side = self._candidates.points_per_side
        extent_2 = torch.tensor(self._extent, device=points_N2.device)
        cells_N2 = (points_N2 / (self._config.image_size * extent_2) * side).long().clamp(0, side - 1)
        return cells_N2[:, 1] * side + cells_N2[:, 0]

    def predicted_iou(self, rows_N: Tensor) -> Tensor:
        """Returns the predicted IoUs (N, M) of the grid points with these indices."""
        return self._predicted_iou_NM[rows_N]

    def logits(self, rows_N: Tensor) -> Tensor:
        """Returns the logits (N, M, h, w) of the grid points with these indices."""
        return self._logits_NMhw[rows_N]

    def chosen_logits(self, rows_N: Tensor, keep_NM: Tensor) -> Tensor:
        """Returns the logits (K, h, w) of the masks selected by `keep_NM`."""
        prompts, masks = keep_NM.nonzero().to(self._device, non_blocking=True).unbind(dim=1)
        return self._logits_NMhw[rows_N[prompts], masks]


@dataclass(frozen=True, kw_only=True)
class _ReplayedPrompts(DecodedPrompts):
    computed: DecodedPrompts
    rows_N: Tensor


class ReplayedNetwork(Network):
    """Our network with replayed outputs. It performs all of its computation before its outputs are replaced."""

    def __init__(self, network: Network, replay: Replay) -> None:
        nn.Module.__init__(self)
        self.config = network.config
        self._sam, self._replay = network, replay

    @property
    def device(self) -> torch.device:
        return self._sam.device

    def screen(self) -> Network | None:
        screen = self._sam.screen()
        return None if screen is None else ReplayedNetwork(screen, self._replay)

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        return self._sam.encode_images(images_B3SS)

    def decode_points(self, embedding: ImageEmbedding, points_N2: Tensor) -> DecodedPrompts:
        decoded = self._sam.decode_points(embedding, points_N2)
        rows_N = self._replay.rows(points_N2)
        iou_NM = torch.cat([decoded.predicted_iou_NM[:, [SINGLE_MASK]], self._replay.predicted_iou(rows_N)], dim=1)
        names = [column.name for column in fields(DecodedPrompts)]
        columns: dict[str, Any] = {name: getattr(decoded, name) for name in names} | {"predicted_iou_NM": iou_NM}
        return _ReplayedPrompts(**columns, computed=decoded, rows_N=rows_N)

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        # The replayed IoUs select the masks, so the number of upscaled masks is the same as with a trained network.
        assert isinstance(decoded, _ReplayedPrompts)
        self._sam.decode_masks(decoded.computed, keep_NM)
        return self._replay.chosen_logits(decoded.rows_N, keep_NM[:, AMBIGUITY_MASKS])


def replay_in_published(network: nn.Module, replay: Replay, prefix: str = "") -> None:
    """Registers hooks on a network of segment_anything or sam2 that replace its outputs by the replayed masks.

    `prefix` begins the names of its prompt encoder and its mask decoder.
    """
    shown: list[Tensor] = []

    def remember(module: nn.Module, args: tuple, kwargs: dict) -> None:
        shown[:] = [kwargs["points"][0][:, 0]]

    def substitute(module: nn.Module, args: tuple, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows_N = replay.rows(shown[0])
        return replay.logits(rows_N), replay.predicted_iou(rows_N), *output[2:]

    network.get_submodule(f"{prefix}prompt_encoder").register_forward_pre_hook(remember, with_kwargs=True)
    network.get_submodule(f"{prefix}mask_decoder").register_forward_hook(substitute)


def replay_in_transformers(network: nn.Module, replay: Replay) -> None:
    """Registers a hook on a `transformers.SamModel` that replaces its outputs by the replayed masks."""

    def substitute(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        rows_N = replay.rows(kwargs["input_points"][0, :, 0])
        output.pred_masks, output.iou_scores = replay.logits(rows_N)[None], replay.predicted_iou(rows_N)[None]
        return output

    network.register_forward_hook(substitute, with_kwargs=True)
