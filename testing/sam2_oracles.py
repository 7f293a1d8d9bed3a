"""The networks, predictor and generator of the package `sam2`, as a reference for tests and benchmarks.

`sam2` imports packages that it needs for training and for its configuration files. They are replaced by stubs.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from maskmill.model.families.sam2.config import VARIANTS, Sam2Config
from maskmill.pipeline.config import GeneratorConfig
from testing import oracles
from testing.torchvision_stub import batched_nms, box_area, import_with


class ToTensor:
    """RGB pixels (H, W, 3) uint8 to (3, H, W) float32 from 0 to 1."""

    def __call__(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


class Resize(nn.Module):
    """Resizes images (..., H, W) with antialiasing."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(image[None], self.size, mode="bilinear", align_corners=False, antialias=True)[0]


class Normalize(nn.Module):
    """Subtracts the mean and divides by the standard deviation of each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, image: Tensor) -> Tensor:
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (image - mean[:, None, None]) / std[:, None, None]


def connected_components(masks_N1hw: Tensor) -> tuple[Tensor, Tensor]:
    """The function of sam2's CUDA extension: labels (0 outside) and areas of the 8-connected regions of each pixel."""
    labels, areas = torch.zeros_like(masks_N1hw, dtype=torch.int32), torch.zeros_like(masks_N1hw, dtype=torch.int32)
    for n, mask_hw in enumerate(masks_N1hw[:, 0].numpy()):
        _, label_hw, stats, _ = cv2.connectedComponentsWithStats(mask_hw, connectivity=8)
        labels[n, 0] = torch.from_numpy(label_hw)
        areas[n, 0] = torch.from_numpy(stats[:, cv2.CC_STAT_AREA][label_hw] * (label_hw > 0))
    return labels, areas


_hydra_is_ready = SimpleNamespace(instance=lambda: SimpleNamespace(is_initialized=lambda: True))
_contents: dict[str, dict[str, object]] = {
    "hydra": {"initialize_config_module": None},
    "hydra.core": {},
    "hydra.core.global_hydra": {"GlobalHydra": _hydra_is_ready},
    "iopath": {},
    "iopath.common": {},
    "iopath.common.file_io": {"g_pathmgr": None},
    "torchvision": {},
    "torchvision.ops": {},
    "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
    "torchvision.transforms": {"Normalize": Normalize, "Resize": Resize, "ToTensor": ToTensor},
}
import_with(
    {name: content for name, content in _contents.items() if not importlib.util.find_spec(name.split(".")[0])},
    "sam2.automatic_mask_generator",
    "sam2.modeling.backbones.hieradet",
)
# The extension is not part of the package when it is installed without CUDA.
extension: Any = ModuleType("sam2._C")
extension.get_connected_componnets = connected_components
package: Any = importlib.import_module("sam2")
package._C = extension

# isort: split
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator  # noqa: E402
from sam2.modeling.sam2_base import SAM2Base  # noqa: E402
from sam2.sam2_image_predictor import SAM2ImagePredictor  # noqa: E402


def published_sam2(config: Sam2Config, release: str = "sam2.1") -> SAM2Base:
    """The network of a variant, as its published configuration file describes it.

    A config with another name differs from `hiera_t` in its image encoder only.
    """
    published = config.name in (variant.name for variant in VARIANTS)
    name = f"{release}_{config.name if published else 'hiera_t'}.yaml"
    text = (Path(package.__file__).parent / "configs" / release / name).read_text()
    spec = yaml.safe_load(text.replace("1e-6", "1.0e-6"))["model"]  # YAML 1.1 takes numbers without a dot for text
    encoder = spec["image_encoder"]
    if not published:
        encoder["trunk"] |= {
            "embed_dim": config.encoder_width,
            "num_heads": config.encoder_heads,
            "stages": config.stage_blocks,
            "global_att_blocks": config.global_attention_blocks,
            "window_spec": config.window_sizes,
            "window_pos_embed_bkg_spatial_size": [config.position_size] * 2,
        }
        encoder["neck"]["backbone_channel_list"] = [config.encoder_width << stage for stage in (3, 2, 1, 0)]
    spec["image_size"] = config.image_size
    spec["sam_mask_decoder_extra_args"] = {"dynamic_multimask_via_stability": config.dynamic_multimask}
    return _instantiate(spec).eval()


def published_predictor(network: SAM2Base) -> SAM2ImagePredictor:
    """The predictor of a network with any input side."""
    with _jit_allowed():
        predictor = SAM2ImagePredictor(network)
    predictor._bb_feat_sizes = _feature_sizes(network)
    return predictor


def published_generator(network: SAM2Base, config: GeneratorConfig) -> SAM2AutomaticMaskGenerator:
    """The generator with our arguments, which gives COCO run lengths. It has no `sa1b` additions."""
    factory = partial(
        SAM2AutomaticMaskGenerator,
        mask_threshold=config.mask_threshold,
        use_m2m=config.use_m2m,
        multimask_output=config.multimask_output,
    )
    with _jit_allowed():
        generator = oracles.published_generator(network, config, factory)
    generator.predictor._bb_feat_sizes = _feature_sizes(network)
    return generator


@contextmanager
def _jit_allowed() -> Iterator[None]:
    """The predictor compiles its transform with torch.jit.script, which is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _feature_sizes(network: SAM2Base) -> list[tuple[int, int]]:
    return [(network.image_size // stride, network.image_size // stride) for stride in (4, 8, 16)]


def _instantiate(spec: Any) -> Any:
    """What hydra makes of a configuration: a call of `_target_` with the other entries."""
    if isinstance(spec, list):
        return [_instantiate(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    arguments = {key: _instantiate(value) for key, value in spec.items() if key != "_target_"}
    if "_target_" not in spec:
        return arguments
    module, name = spec["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**arguments)
