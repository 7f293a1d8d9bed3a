"""Device and precision, applied to the network from outside.

Shapes: B images, N prompts, P points per prompt, M masks per prompt, K chosen masks, C embedding
channels, H W embedding grid, S input side, h w mask side.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.errors import DeviceError
from model.image_encoder import ImageEmbedding
from model.mask_decoder import DecodedPrompts
from model.sam import Sam


def optimize(sam: Sam, precision: str, device: torch.device | str) -> Sam:
    """The network on `device`: "exact" in float32, "fast" in bf16 where the device multiplies that natively.

    Embeddings, predicted IoUs and logits come out as float32 either way. `sam` itself is moved.

    Raises:
        DeviceError: an unknown precision, or a device that this machine does not have.
    """
    device = resolve_device(str(device))
    if precision not in ("exact", "fast"):
        raise DeviceError(f"there is no precision {precision!r}; choose exact or fast")
    sam = sam.to(device)
    if precision == "fast" and multiplies_bfloat16(device):
        return Bfloat16Sam(sam)
    # Otherwise cuDNN rounds what convolutions multiply to ten bits (TF32). Has no effect on other devices.
    torch.backends.cudnn.allow_tf32 = False
    return sam


def resolve_device(name: str) -> torch.device:
    """The device of a name: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<index>". Raises DeviceError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"there is no device {name!r}; choose auto, cpu, cuda or cuda:<index>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"there is no {name} on this machine ({torch.cuda.device_count()} GPUs); choose auto or cpu")
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 matrix products; without them bf16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return not flags.isdisjoint({"amx_bf16", "avx512_bf16"})


class Bfloat16Sam(Sam):
    """A `Sam` whose matrix products and convolutions run in bf16; residual sums, norms and positions stay float32."""

    def __init__(self, sam: Sam) -> None:
        with torch.device("meta"):
            super().__init__(sam.config)
        self.load_state_dict(sam.state_dict(), assign=True)
        self.eval()
        # Autocast would convert these weights again in every call.
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.to(torch.bfloat16)

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        with self._autocast():
            embedding = super().encode_images(images_B3SS)
        # The skips are added to products in bf16.
        return replace(embedding, grid_BEHW=embedding.grid_BEHW.float())

    def decode_prompts(
        self,
        embedding: ImageEmbedding,
        points_NP2: Tensor | None = None,
        labels_NP: Tensor | None = None,
        boxes_N4: Tensor | None = None,
        masks_N1hw: Tensor | None = None,
    ) -> DecodedPrompts:
        with self._autocast():
            decoded = super().decode_prompts(embedding, points_NP2, labels_NP, boxes_N4, masks_N1hw)
        return replace(decoded, predicted_iou_NM=decoded.predicted_iou_NM.float())

    def decode_masks(self, decoded: DecodedPrompts, keep_NM: Tensor) -> Tensor:
        with self._autocast():
            return super().decode_masks(decoded, keep_NM).float()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)
