"""The GPU kernels of mask_measure against the reference, which stores every pixel.

They run on a GPU where there is one and in Triton's interpreter where there is none, which needs milliseconds for a row
of pixels. What only a GPU can show is marked.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.filters import rle
from maskmill.filters.boxes import masks_to_boxes
from maskmill.filters.upsampling import plan_upsampling
from maskmill.model.frame import Frame

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

OFFSET, MARGIN = 0.7, 0.2

Kernels = Callable[
    ..., Any
]  # (function of mask_measure_gpu, logits, sizes, its other arguments) -> its result, in NumPy


def run(function: str, logits_Nhw: Tensor, image_size: int, height: int, width: int, *arguments: float) -> Any:
    """What a function of `mask_measure_gpu` returns for a crop of (height, width) pixels."""
    from maskmill.filters import mask_measure_gpu  # here: it imports triton

    device = "cuda" if torch.cuda.is_available() else "cpu"
    resized = Frame(height, width, image_size).resized
    upsampling = plan_upsampling(logits_Nhw.shape[-1], image_size, resized, height, width)
    found = getattr(mask_measure_gpu, function)(logits_Nhw.to(device), upsampling, *arguments)
    return found if isinstance(found, list) else [tensor.cpu() for tensor in found]


def interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    """`run`, in a process of its own where the interpreter is needed: triton reads the variable as it is imported."""
    if torch.cuda.is_available():
        yield run
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=interpret) as pool:
        yield lambda *arguments: pool.submit(run, *arguments).result()


def smooth(count: int, side: int) -> Tensor:
    """Logits of masks with smooth borders."""
    generator = torch.Generator().manual_seed(side)
    return F.interpolate(4 * torch.randn(count, 1, 5, 5, generator=generator), (side, side), mode="bicubic")[:, 0]


def assert_as_reference(kernels: Kernels, logits_Nhw: Tensor, image_size: int, height: int, width: int) -> None:
    """Counts, boxes and run lengths are those of all pixels; in the image there is a margin around the crop."""
    sizes = (image_size, height, width)
    counts_N3, boxes_N24 = kernels("measure", logits_Nhw, *sizes, OFFSET, MARGIN)
    left, top, right, bottom = 2, 1, 3, 4
    H, W = top + height + bottom, left + width + right
    changes = kernels("find_changes", logits_Nhw, *sizes, left * H + top, H)
    for n, logits_1hw in enumerate(logits_Nhw.split(1)):
        logits_1HW = Frame(height, width, image_size).to_image_logits(logits_1hw)
        expected = [int((logits_1HW > threshold).sum()) for threshold in (OFFSET, -OFFSET, 0)]
        assert counts_N3[n].tolist() == expected, f"mask {n}"
        for box_4, threshold in zip(boxes_N24[n].tolist(), (-MARGIN, MARGIN), strict=True):
            mask_1HW = logits_1HW > threshold
            if mask_1HW.any():
                assert box_4 == masks_to_boxes(mask_1HW)[0].tolist(), f"mask {n}"
            else:
                assert box_4[0] > box_4[2], f"mask {n}"
        mask_HW = F.pad(logits_1HW[0] > 0, (left, right, top, bottom)).numpy()
        assert rle.from_changes(changes[n : n + 1], H * W) == [rle.encode(mask_HW)], f"mask {n}"


# Where height and width are together 128 or less torch adds in another order, and last bits may differ.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width"),
    [(20, 135), (9, 300), (50, 128), (10, 13), (1, 150), (40, 1)],
    ids=["strip and a bit", "three strips", "as wide as the input", "smaller than the logits", "a row", "a column"],
)
def test_kernels_see_the_pixels_of_the_reference(kernels: Kernels, height: int, width: int) -> None:
    assert_as_reference(kernels, smooth(2, 16), 128, height, width)


@pytest.mark.slow
def test_kernels_see_the_pixels_of_the_reference_when_masks_are_odd(kernels: Kernels) -> None:
    noise = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(1))
    empty, full, dot = (torch.full((1, 16, 16), value) for value in (-3.0, 3.0, -9.0))
    dot[0, 1, 11] = 9.0
    corner = empty.clone()
    corner[0, -1, -1] = 2.0  # where the input is padding
    assert_as_reference(kernels, torch.cat([noise, empty, full, dot, corner]), 128, 20, 120)


@pytest.mark.parametrize("count", [0, 1])
def test_few_masks(kernels: Kernels, count: int) -> None:
    logits_Nhw = smooth(count, 8) if count else torch.empty(0, 8, 8)
    counts_N3, boxes_N24 = kernels("measure", logits_Nhw, 32, 10, 10, OFFSET, MARGIN)
    assert (counts_N3.shape, counts_N3.dtype) == ((count, 3), torch.int64)
    assert (boxes_N24.shape, boxes_N24.dtype) == ((count, 2, 4), torch.int64)
    assert len(kernels("find_changes", logits_Nhw, 32, 10, 10, 0, 10)) == count


def test_positions_may_be_beyond_32_bits(kernels: Kernels) -> None:
    full = torch.full((1, 8, 8), 3.0)
    (changes,) = kernels("find_changes", full, 32, 5, 4, 2**40, 2**30)
    starts = 2**40 + 2**30 * np.arange(4)
    assert changes.tolist() == np.stack([starts, starts + 5], axis=1).ravel().tolist()


def compile_for_hopper(cache: Path) -> list[int]:
    """The size of each kernel's machine code, in bytes."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from maskmill.filters import mask_measure_gpu

    strips = {"logits": "*fp32", "windows": "*i32", "to_input": "*fp32", "last_logit": "i32"}
    strips |= {"rows": "*fp32", "last_row": "i32", "columns": "*fp32", "last_column": "i32"}
    found = {"offset": "fp32", "margin": "fp32", "counts": "*i64", "boxes": "*i64"}
    changes = {"width": "i32", "stride": "i32", "changes": "*i32"}
    sizes: list[int] = []
    for kernel, types, fixed in [
        (mask_measure_gpu._measure, found, {}),
        (mask_measure_gpu._changes, changes, {"ends": None, "positions": None}),
        (mask_measure_gpu._changes, changes | {"ends": "*i64", "positions": "*i64"}, {}),
    ]:
        constants = {"STRIP": mask_measure_gpu._LAUNCH["STRIP"], **fixed}
        signature = {name: "constexpr" if name in constants else {**strips, **types}[name] for name in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): value for n, value in constants.items()})
        options = {name: value for name, value in mask_measure_gpu._LAUNCH.items() if name != "STRIP"}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        sizes.append(len(compiled.asm["cubin"]))
    return sizes


@pytest.mark.slow
def test_kernels_compile_where_there_is_no_gpu(tmp_path: Path) -> None:
    # In another process than the interpreter's.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert min(pool.submit(compile_for_hopper, tmp_path).result()) > 0


# Triton's interpreter rounds a multiply-add twice before 3.9.
@pytest.mark.gpu
@on_gpu
def test_kernels_see_the_pixels_of_the_reference_when_the_last_bit_decides() -> None:
    steps = torch.randint(-1, 2, (2, 256, 256), generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([-1, 1])[:, None, None].expand(2, 256, 256)
    assert_as_reference(run, OFFSET * torch.cat([steps, levels]), 1024, 427, 640)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(
    ("height", "width", "count"), [(1500, 2250, 16), (427, 640, 32), (2000, 90, 16), (8192, 8192, 3)]
)
def test_kernels_see_the_pixels_of_the_reference_when_images_are_real(height: int, width: int, count: int) -> None:
    noise = torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(1))
    assert_as_reference(run, torch.cat([smooth(count - 1, 256), noise]), 1024, height, width)


@pytest.mark.gpu
@on_gpu
def test_an_image_may_have_more_than_2_to_the_31_pixels() -> None:
    side = 50_000
    counts_N3, boxes_N24 = run("measure", torch.full((1, 256, 256), 3.0), 1024, side, side, OFFSET, MARGIN)
    assert counts_N3.tolist() == [[side**2] * 3]
    assert boxes_N24.tolist() == [[[0, 0, side - 1, side - 1]] * 2]
    (changes,) = run("find_changes", torch.full((1, 256, 256), 3.0), 1024, side, side, 0, side)
    assert np.array_equal(changes, np.repeat(side * np.arange(side + 1), 2)[1:-1])


@pytest.mark.gpu
@on_gpu
def test_masks_may_have_more_than_2_to_the_31_logits() -> None:
    logits_Nhw = torch.full((2**15 + 1, 256, 256), -3.0, device="cuda")
    logits_Nhw[-1] = 3
    counts_N3, _ = run("measure", logits_Nhw, 1024, 30, 20, OFFSET, MARGIN)
    assert counts_N3[-2:].tolist() == [[0, 0, 0], [600, 600, 600]]
    changes = run("find_changes", logits_Nhw, 1024, 30, 20, 0, 30)
    assert [len(of_mask) for of_mask in changes[-2:]] == [0, 40]


@pytest.mark.gpu
@on_gpu
def test_memory_is_independent_of_the_pixels() -> None:
    logits_Nhw = smooth(1000, 256).cuda()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run("measure", logits_Nhw, 1024, 8192, 8192, OFFSET, MARGIN)
    run("find_changes", logits_Nhw[:100], 1024, 8192, 8192, 0, 8192)
    assert torch.cuda.max_memory_allocated() - before < 2**29  # one mask of these is 2**28 bytes of float32


@pytest.mark.gpu
@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_measuring_does_not_wait_for_the_gpu() -> None:
    from maskmill.filters import mask_measure_gpu

    logits_Nhw = smooth(4, 256).cuda()
    upsampling = plan_upsampling(256, 1024, Frame(300, 400, 1024).resized, 300, 400)
    mask_measure_gpu.measure(logits_Nhw, upsampling, OFFSET, MARGIN)  # copies the taps
    torch.cuda.set_sync_debug_mode("error")
    try:
        mask_measure_gpu.measure(logits_Nhw, upsampling, OFFSET, MARGIN)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@on_gpu
def test_no_kernel_is_compiled_again_for_another_size() -> None:
    from maskmill.filters import mask_measure_gpu

    for side, image_size in ((64, 256), (256, 1024)):
        for height, width in ((320, 480), (1, 300), (300, 1), (1021, 733)):
            run("measure", smooth(2, side), image_size, height, width, OFFSET, MARGIN)
            run("find_changes", smooth(2, side), image_size, height, width, 3 * height, height)
    kernels = [
        kernel.device_caches[torch.cuda.current_device()][0]
        for kernel in (mask_measure_gpu._measure, mask_measure_gpu._changes)
    ]
    assert [len(compiled) for compiled in kernels] == [1, 2]  # changes are counted, then written
