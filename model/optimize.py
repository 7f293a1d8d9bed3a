"""Device and precision, applied to the network from outside.

Shapes: B images, N prompts, P points per prompt, M masks per prompt, K chosen masks, C embedding
channels, H W embedding grid, S input side, h w mask side.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from model.errors import DeviceError
from model.fast_decoder import FastMaskDecoder
from model.fast_encoder import speed_up
from model.image_encoder import ImageEmbedding
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
    if device.type == "cpu":
        _keep_freed_memory()
    dtype = torch.bfloat16 if precision == "fast" and multiplies_bfloat16(device) else torch.float32
    # Otherwise cuDNN rounds what convolutions multiply to ten bits (TF32). Has no effect on other devices.
    torch.backends.cudnn.allow_tf32 = False
    return OptimizedSam(sam.to(device), dtype)


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


def _keep_freed_memory() -> None:
    """Has this process keep the memory that it frees: large tensors come and go with every batch, and new pages cost as
    much as the work on them. Pieces of more than 32 MiB, glibc's limit, are given back as ever.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    trim_threshold, mmap_threshold = -1, -3
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 32 * 2**20)


class OptimizedSam(Sam):
    """A `Sam` for inference whose large products and convolutions run in a dtype of choice, fewer of them.

    In bf16, too, the encoder's residual sums, norms, prompt tokens and predicted IoUs are float32.
    """

    def __init__(self, sam: Sam, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            super().__init__(sam.config)
        self.load_state_dict(sam.state_dict(), assign=True)
        self.eval()
        self._dtype = dtype
        speed_up(self.image_encoder, dtype)
        self.mask_decoder = FastMaskDecoder(sam.config, self.mask_decoder, dtype)
        self._grid_positions = self.prompt_encoder.grid_positions().detach()

    def grid_positions(self) -> Tensor:
        return self._grid_positions

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            return super().encode_images(images_B3SS).map(Tensor.float)
