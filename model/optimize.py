"""Moves a network to a device and sets its precision.

Shapes: B images, S input side in pixels.
"""

from __future__ import annotations

import copy
import ctypes
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.errors import DeviceError
from maskmill.model.families import FAMILIES
from maskmill.model.layers import require_same_classes
from maskmill.model.network import Network
from maskmill.model.prompts import AMBIGUITY_MASKS, choose

MEASURED_PROMPTS = 4
# Options of glibc's `mallopt`, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def optimize(network: Network, precision: str, device: torch.device | str) -> OptimizedNetwork:
    """The network for inference on `device`. Moves `network` itself.

    "exact" computes everything in float32. "fast" differs on devices with native half-precision multiplication:

    - a GPU encodes images in float16;
    - a network in half precision (float16 on a GPU, bf16 on a CPU) screens the prompts, see `Network.screen`. On a CPU
      it is measured first, which takes a fraction of a second: where screening would not save time, "fast" is "exact".

    "half" computes the encoder and, where that is faster, the image tokens of the decoder in half precision on these
    devices, without a second computation. Embeddings, predicted IoUs and logits are returned as float32 in all three.

    Raises:
        DeviceError: an unknown precision, or a device that this machine does not have.
    """
    device = resolve_device(str(device))
    if precision not in ("exact", "fast", "half"):
        raise DeviceError(f"there is no precision {precision!r}; choose exact, fast or half")
    if device.type == "cpu":
        keep_freed_memory()
    half = None if precision == "exact" else half_precision(device)
    # With TF32 cuDNN would round the operands of convolutions to 10 bits of mantissa. No effect on other devices.
    torch.backends.cudnn.allow_tf32 = False
    optimized = OptimizedNetwork(network.to(device), encoder_precision(half), screen_dtype=half)
    gain = gain_of_screen(optimized) if device.type == "cpu" and half is not None else math.inf
    if precision == "half" and half is not None:
        return OptimizedNetwork(network, half, half if gain > 1 else torch.float32)
    # At most half of the time: the other half pays for the prompts that are computed twice, 21 to 65 % of them
    # (docs/0008).
    if gain < 2:
        optimized.screen_dtype = None
    return optimized


@torch.inference_mode()
def gain_of_screen(network: Network) -> float:
    """Measures on this machine how many times faster than the network its screen decodes prompts."""
    screen, config = network.screen(), network.config
    assert screen is not None
    with torch.device("meta"):  # the shapes of an embedding, without computing one
        encoder = FAMILIES[config.family].build_encoder(config)
        shapes = encoder(torch.empty(1, 3, config.image_size, config.image_size))
    embedding = shapes.map(lambda x: torch.zeros(x.shape))
    points_N2 = torch.full((MEASURED_PROMPTS, 2), config.image_size / 2)
    keep_NM = choose(AMBIGUITY_MASKS, torch.empty(MEASURED_PROMPTS, config.multimask_outputs + 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # like each thread of a generator

    def seconds(network: Network) -> float:
        times = []
        for _ in range(3):  # the first one compiles the kernels
            start = time.perf_counter()
            network.decode_masks(network.decode_points(embedding, points_N2), keep_NM)
            times.append(time.perf_counter() - start)
        return min(times)

    try:
        return seconds(network) / seconds(screen)
    finally:
        torch.set_num_threads(threads)


def resolve_device(name: str) -> torch.device:
    """The device called "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<index>". Raises DeviceError."""
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
    """Whether a device still computes. After a fault of a GPU every later CUDA call of the process fails.

    Synchronises: waits for all work that was submitted to the device before.
    """
    if device.type == "cpu":
        return True
    try:
        torch.ones(1, device=device).add_(1)
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        return True  # the allocator raises this after a successful call to the device
    except RuntimeError:
        return False
    return True


def half_precision(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that the device multiplies natively, or None. Emulated 16-bit types are slower than float32."""
    if device.type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else None
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return None if flags.isdisjoint({"amx_bf16", "avx512_bf16"}) else torch.bfloat16


def encoder_precision(half: torch.dtype | None) -> torch.dtype:
    """The dtype of the image encoder for precision "fast", given the 16-bit type of the device.

    bf16 (8 significant bits) would change one mask in 25; float16 (11 bits) does not (docs/0008).
    """
    return torch.float16 if half == torch.float16 else torch.float32


def keep_freed_memory() -> None:
    """Configures glibc's malloc to keep freed memory of this process instead of returning it to the operating system.

    Each batch allocates large tensors, and page faults of new memory take as long as the computation. Blocks above
    32 MiB would be mapped one by one and returned when freed; without mapping they come from the heap, too.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_MMAP_MAX, 0)


class OptimizedNetwork(Network):
    """A `Network` for inference: the encoder computes in `encoder_dtype`, the decoder in `decoder_dtype`.

    `screen` returns the same network with a decoder in `screen_dtype`. Residual sums and norms of the encoder, prompt
    tokens and predicted IoUs are always float32. Raises TypeError if a submodule of `network` has another class than in
    `Network`.
    """

    def __init__(
        self,
        network: Network,
        encoder_dtype: torch.dtype,
        decoder_dtype: torch.dtype = torch.float32,
        screen_dtype: torch.dtype | None = None,
    ) -> None:
        with torch.device("meta"):
            super().__init__(network.config)
        self.load_state_dict(network.state_dict(), assign=True)
        require_same_classes(network, self)
        self.eval()
        self.encoder_dtype, self.decoder_dtype, self.screen_dtype = encoder_dtype, decoder_dtype, screen_dtype
        family = FAMILIES[self.config.family]
        family.speed_up(self.image_encoder, encoder_dtype)
        self.mask_decoder = family.fast_decoder(network.config, self.mask_decoder, decoder_dtype)
        self._grid_positions = self.prompt_encoder.grid_positions().detach()

    def screen(self) -> Network | None:
        if self.screen_dtype is None:
            return None
        screen = copy.copy(self)
        screen._modules = dict(self._modules)  # all submodules except the decoder are shared
        # Rounding can change which mask of a prompt is the best: the exact network chooses.
        screen.config = replace(self.config, best_candidate_only=False)
        fast_decoder = FAMILIES[self.config.family].fast_decoder
        screen.mask_decoder = fast_decoder(self.config, self.mask_decoder, self.screen_dtype)
        return screen

    def grid_positions(self) -> Tensor:
        return self._grid_positions

    def encode_images(self, images_B3SS: Tensor) -> ImageEmbedding:
        half = self.encoder_dtype != torch.float32
        with torch.autocast(self.device.type, self.encoder_dtype if half else None, enabled=half):
            return super().encode_images(images_B3SS).map(Tensor.float)
