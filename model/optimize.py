"""Device and precision, applied to the network from outside.

Shapes: B images, N prompts, P points per prompt, M masks per prompt, K chosen masks, C embedding
channels, H W embedding grid, S input side, h w mask side.
"""

from __future__ import annotations

import copy
import ctypes
from pathlib import Path

import torch
from torch import Tensor

from maskmill.model.errors import DeviceError
from maskmill.model.fast_decoder import FastMaskDecoder
from maskmill.model.fast_encoder import speed_up
from maskmill.model.image_encoder import ImageEmbedding
from maskmill.model.layers import require_same_classes
from maskmill.model.sam import Sam


def optimize(sam: Sam, precision: str, device: torch.device | str) -> Sam:
    """The network on `device`, all in float32 for "exact". "fast" where the device multiplies half precision natively:

    - a GPU encodes images in float16;
    - a network in half precision (float16 on a GPU, bf16 on a CPU) screens the prompts, see `Sam.screen`.

    Embeddings, predicted IoUs and logits come out as float32 either way. `sam` itself is moved.

    Raises:
        DeviceError: an unknown precision, or a device that this machine does not have.
    """
    device = resolve_device(str(device))
    if precision not in ("exact", "fast"):
        raise DeviceError(f"there is no precision {precision!r}; choose exact or fast")
    if device.type == "cpu":
        _keep_freed_memory()
    half = half_precision(device) if precision == "fast" else None
    # Otherwise cuDNN rounds what convolutions multiply to ten bits (TF32). Has no effect on other devices.
    torch.backends.cudnn.allow_tf32 = False
    return OptimizedSam(sam.to(device), encoder_precision(half), half)


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


def device_answers(device: torch.device) -> bool:
    """Whether a device still computes: false for a GPU after a fault, which fails every later call of its process.

    Waits until the device has done the work that it was given before.
    """
    if device.type == "cpu":
        return True
    try:
        torch.ones(1, device=device).add_(1)
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        return True  # the allocator says so, after asking the device
    except RuntimeError:
        return False
    return True


def half_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that the device has instructions to multiply; without them it would be slower than float32."""
    if device.type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else None
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return None if flags.isdisjoint({"amx_bf16", "avx512_bf16"}) else torch.bfloat16


def encoder_precision(half: torch.dtype | None) -> torch.dtype:
    """What the encoder of "fast" multiplies where `half` is the device's 16-bit type.

    The eight bits of bf16 would change one mask in twenty-five, the eleven of float16 do not (docs/0008).
    """
    return torch.float16 if half == torch.float16 else torch.float32


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
    """A `Sam` for inference with fewer products, those of the decoder in float32, those of the encoder in a dtype of
    choice; and the same with a decoder in another one, for screening.

    The encoder's residual sums and norms, prompt tokens and predicted IoUs are float32 in any case. Raises TypeError
    where a part of `sam` is of another class than `Sam` has.
    """

    def __init__(self, sam: Sam, encoder_dtype: torch.dtype, screen_dtype: torch.dtype | None = None) -> None:
        with torch.device("meta"):
            super().__init__(sam.config)
        self.load_state_dict(sam.state_dict(), assign=True)
        require_same_classes(sam, self)
        self.eval()
        self._encoder_dtype, self._screen_dtype = encoder_dtype, screen_dtype
        speed_up(self.image_encoder, encoder_dtype)
        self.mask_decoder = FastMaskDecoder(sam.config, self.mask_decoder, torch.float32)
        self._grid_positions = self.prompt_encoder.grid_positions().detach()

    def screen(self) -> Sam | None:
        if self._screen_dtype is None:
            return None
        screen = copy.copy(self)
        screen._modules = dict(self._modules)  # all but the decoder are shared
        screen.mask_decoder = FastMaskDecoder(self.config, self.mask_decoder, self._screen_dtype)
        return screen

    def grid_positions(self) -> Tensor:
        return self._grid_positions

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        half = self._encoder_dtype != torch.float32
        with torch.autocast(self.device.type, self._encoder_dtype if half else None, enabled=half):
            return super().encode_images(images_B3SS).map(Tensor.float)
