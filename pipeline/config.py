"""The configuration of a run: frozen dataclasses and named presets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskmill.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from maskmill.model.config import NetworkConfig  # here: the ledger uses this module, and is loaded without torch

Precision = Literal["exact", "fast", "half"]


@dataclass(frozen=True)
class GeneratorConfig:
    """The arguments of the mask generator. Fields up to `multimask_output` are those of the published generators.

    Source: `SamAutomaticMaskGenerator` of segment-anything; Kirillov et al. 2023, Appendix B;
    `SAM2AutomaticMaskGenerator` of sam2.
    """

    points_per_side: int | None = 32
    # An upper limit; None: sized for the device. Does not change the masks.
    points_per_batch: int | None = None
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    # One (P, 2) array of points in [0, 1] per crop layer, instead of `points_per_side`.
    point_grids: tuple[NDArray[np.float64], ...] | None = None
    min_mask_region_area: int = 0
    # A pixel belongs to a mask if its logit is above this.
    mask_threshold: float = 0.0
    # Refines each mask once, with its own logits and its point as the prompt.
    use_m2m: bool = False
    # Three masks per point, for objects and their parts; otherwise one.
    multimask_output: bool = True
    # Where `min_mask_region_area` counts. "pixels": in masks of the image, after NMS, as for SAM 1. "logits": in the
    # low-resolution logits of each candidate, before its scores are computed, as in the generator of SAM 2.
    min_mask_region_area_in: Literal["pixels", "logits"] = "pixels"
    # Drops masks that cover at least this fraction of the image, as for SA-1B. None keeps them.
    max_coverage: float | None = None
    # Drops masks without an island of at least `min_mask_region_area` pixels, as for SA-1B. The released code keeps
    # their largest island.
    drop_small_masks: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError with the name of the invalid argument."""
        if self.points_per_batch is not None:
            _check_range("points_per_batch", self.points_per_batch, 1)
        _check_range("pred_iou_thresh", self.pred_iou_thresh, 0)
        _check_range("stability_score_thresh", self.stability_score_thresh, 0, 1)
        _check_range("stability_score_offset", self.stability_score_offset, 0)
        _check_range("box_nms_thresh", self.box_nms_thresh, 0, 1)
        _check_range("crop_n_layers", self.crop_n_layers, 0)
        _check_range("crop_nms_thresh", self.crop_nms_thresh, 0, 1)
        # With a ratio of 1 all crops would be identical.
        _check_range("crop_overlap_ratio", self.crop_overlap_ratio, 0, 0.99)
        _check_range("crop_n_points_downscale_factor", self.crop_n_points_downscale_factor, 1)
        _check_range("min_mask_region_area", self.min_mask_region_area, 0)
        _check_range("mask_threshold", self.mask_threshold, -math.inf)
        if self.min_mask_region_area_in not in ("pixels", "logits"):
            raise ConfigError(
                f"min_mask_region_area_in is {self.min_mask_region_area_in!r}; it must be pixels or logits."
            )
        if self.max_coverage is not None:
            _check_range("max_coverage", self.max_coverage, 0, 1)
        if self.points_per_side is not None:
            # At least one point in every crop layer.
            fewest = self.crop_n_points_downscale_factor**self.crop_n_layers
            _check_range("points_per_side", self.points_per_side, fewest)
        if self.point_grids is not None:
            layers = self.crop_n_layers + 1
            _check_range("the number of point_grids", len(self.point_grids), layers, layers)
            for grid in self.point_grids:
                if grid.ndim != 2 or grid.shape[1] != 2 or len(grid) == 0:
                    raise ConfigError(f"A point grid has shape {grid.shape}; it must be (P, 2), P at least 1.")
                _check_range("the lowest coordinate of a point grid", grid.min(), 0)
                _check_range("the highest coordinate of a point grid", grid.max(), 0, 1)
        if (self.points_per_side is None) == (self.point_grids is None):
            raise ConfigError("Give either points_per_side or point_grids, and set the other to None.")

    @property
    def edits_logits(self) -> bool:
        """Whether small regions are removed from the logits of candidates."""
        return self.min_mask_region_area > 0 and self.min_mask_region_area_in == "logits"

    @property
    def can_be_screened(self) -> bool:
        """Whether low precision can pre-select candidates: it gives nearly the same mask for each prompt.

        Otherwise a small error can decide between two outputs for a prompt, or about a region of a mask.
        """
        return self.multimask_output and not self.use_m2m and not self.edits_logits


def _check_range(name: str, value: float, lowest: float, highest: float = math.inf) -> None:
    if not isinstance(value, Real):
        raise ConfigError(f"{name} is {value!r}; it must be a number.")
    if not lowest <= value <= highest:
        wanted = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
        raise ConfigError(f"{name} is {value}; it must be {wanted}.")


PRESETS: dict[str, GeneratorConfig] = {
    "official": GeneratorConfig(),
    "sa1b": GeneratorConfig(
        crop_n_layers=2,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=100,
        max_coverage=0.95,
        drop_small_masks=True,
    ),
    # The defaults of SAM 2's generator.
    "sam2": GeneratorConfig(pred_iou_thresh=0.8, min_mask_region_area_in="logits"),
    # For the embedded model, which predicts lower scores than the published models and more small islands. Chosen with
    # benchmarks/thresholds.py on the validation split of BSDS500 (docs/model-card.md).
    "mini": GeneratorConfig(
        pred_iou_thresh=0.2,
        stability_score_thresh=0.2,
        box_nms_thresh=0.62,
        min_mask_region_area=100,
        max_coverage=0.95,
        drop_small_masks=True,
    ),
}


def check_model(config: GeneratorConfig, model: NetworkConfig) -> None:
    """Raises ConfigError if the model lacks what the config needs."""
    if config.use_m2m and not model.takes_masks:
        raise ConfigError(f"use_m2m: {model.name} takes no masks as prompts; leave it out, or choose another model")


def generator_config(preset: str, overrides: Mapping[str, Any]) -> GeneratorConfig:
    """A preset with some fields replaced. Raises ConfigError if the preset, a field or its value is invalid."""
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    names = [field.name for field in fields(GeneratorConfig)]
    for name in overrides:
        if name not in names:
            raise ConfigError(f"there is no generator option {name!r}; choose from {', '.join(names)}")
    try:
        return replace(PRESETS[preset], **overrides)
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"a generator option has a value of the wrong type: {error}") from error


@dataclass(frozen=True)
class ValueRange:
    """The sample values that are mapped to black and white."""

    low: float
    high: float
    percentiles: bool = False  # low and high are percentiles (0 to 100) of each band of each image, not sample values

    def __post_init__(self) -> None:
        """Raises ConfigError if the range is empty or not finite, or percentiles are outside 0 to 100."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(f"the value range {self.low:g},{self.high:g} is empty: LOW must be below HIGH")
        if self.percentiles and not 0 <= self.low < self.high <= 100:
            raise ConfigError(f"the value range {self.low:g}%,{self.high:g}% must be within 0% and 100%")

    @staticmethod
    def parse(text: str) -> ValueRange:
        """Reads `LOW,HIGH` or `LOW%,HIGH%`. Raises ConfigError."""
        number = r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)"
        match = re.fullmatch(rf"{number}(%?)\s*,{number}(%?)\s*", text)
        try:
            if match and match[2] == match[4]:
                return ValueRange(float(match[1]), float(match[3]), match[2] == "%")
        except ValueError:  # such as 1.2.3
            pass
        raise ConfigError(f"{text!r} is no value range; give two numbers such as 0,4095 or percentiles such as 2%,98%")


Bands = tuple[int, int, int]


def parse_bands(text: str) -> Bands:
    """Reads `R,G,B`: three numbers from 1. Raises ConfigError."""
    match = re.fullmatch(r"\s*([1-9]\d{0,4})\s*,\s*([1-9]\d{0,4})\s*,\s*([1-9]\d{0,4})\s*", text)
    if not match:
        raise ConfigError(f"{text!r} are no bands; give the numbers of three, counted from 1, such as 3,2,1")
    return int(match[1]), int(match[2]), int(match[3])


@dataclass(frozen=True)
class DecodingConfig:
    """How images are decoded to 8-bit RGB pixels."""

    # Images with more pixels become failed rows. A decoded pixel takes three bytes.
    max_image_pixels: int = 200_000_000
    # The bands of a multi-band TIFF used as red, green and blue, counted from 1. None: the first ones.
    bands: Bands | None = None
    # The value range of samples with more than 8 bits. None: the range of the integer type.
    value_range: ValueRange | None = None

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> DecodingConfig:
        """Restores a config from the JSON of `dataclasses.asdict`."""
        bands, value_range = fields.get("bands"), fields.get("value_range")
        return DecodingConfig(
            fields.get("max_image_pixels", DecodingConfig.max_image_pixels),
            (bands[0], bands[1], bands[2]) if bands else None,
            ValueRange(**value_range) if value_range else None,
        )


DEFAULT_DECODING = DecodingConfig()


@dataclass(frozen=True)
class RunConfig:
    """The settings that determine the masks of a run, with weights and images. Part of the identity of the run."""

    model: str  # one of model.config.VARIANTS
    preset: str  # the base of `generator`, which may override some of its fields
    generator: GeneratorConfig
    precision: Precision = "exact"
    decoding: DecodingConfig = DEFAULT_DECODING
