"""The Python API: load a model, generate the masks of an image, prompt an image, open a run.

It does not import Ray, and imports pyarrow only to open a run. `maskmill/__init__.py` exports it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskmill.model import checkpoint as checkpoints
from maskmill.model.errors import PromptError
from maskmill.model.optimize import optimize
from maskmill.model.predictor import EncodedImage, check_pixels, encode_image
from maskmill.model.sam import Sam
from maskmill.pipeline.config import DEFAULT_DECODING, generator_config
from maskmill.pipeline.errors import ConfigError, ImageError, one_line_cause
from maskmill.pipeline.generator import MaskGenerator
from maskmill.pipeline.images import decode_image, to_pixels
from maskmill.pipeline.records import ImageMasks, StepTimer

if TYPE_CHECKING:
    from maskmill.tables.run import Run

# An RGB array (H, W, 3) uint8, a Pillow image, or the path of an image file.
ImageLike = NDArray[np.uint8] | Image.Image | str | os.PathLike[str]


def load_model(
    variant: str = "mini",
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: str = "exact",
) -> Sam:
    """Loads a network with its weights, ready for inference.

    Args:
        variant: mini, vit_b, vit_l or vit_h.
        checkpoint: a `.pth`, `.bin` or `.safetensors` file. Default for mini: the embedded weights.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
        precision: exact computes in float32, as published. fast pre-selects masks in float16 or bf16, where the device
            has instructions for it: nearly always the same masks.

    Raises:
        ConfigError: an unknown variant.
        CheckpointError: a variant without weights; a file that is missing, damaged, unsafe or of another variant.
        DeviceError: an unknown precision, or a device that this machine does not have.
    """
    loaded = checkpoints.load_model(variant, None if checkpoint is None else Path(checkpoint))
    return optimize(loaded.sam, precision, device)


def generate(image: ImageLike, model: Sam, preset: str | None = None, **overrides: Any) -> ImageMasks:
    """Generates the masks of everything in an image.

    Args:
        image: an RGB array (H, W, 3) uint8, a Pillow image, or the path of an image file. For the latter two,
            the EXIF orientation is applied and transparency is composited over white.
        model: from `load_model`.
        preset: official (the defaults of `SamAutomaticMaskGenerator`), sa1b or mini. Default: the preset of the model.
        overrides: fields of `GeneratorConfig` to change: points_per_side=16, pred_iou_thresh=0.9 ...

    Raises:
        PromptError: an array of another shape or type, or an object that is not an image.
        ImageError: an image file that is missing or cannot be decoded.
        ConfigError: an unknown preset or option, or a value out of range.
    """
    _check_model(model)
    config = generator_config(preset or model.config.default_preset, overrides)
    generator = MaskGenerator(model, config)
    return generator.generate(generator.prepare(_pixels(image)), StepTimer())


def encode(image: ImageLike, model: Sam) -> EncodedImage:
    """Encodes an image. Call `predict` on the result, any number of times, with points, a box or a mask.

    Takes the same `image` and `model` as `generate`, and raises the same errors.
    """
    _check_model(model)
    return encode_image(model, _pixels(image))


def open_run(uri: str | os.PathLike[str], moved_to: str | os.PathLike[str] | None = None) -> Run:
    """Opens the output of `maskmill generate`, finished or not.

    Args:
        uri: a folder or s3://bucket/prefix.
        moved_to: the new address of the images, if they are no longer where the run read them.

    Raises:
        RunMismatchError: the folder or prefix has no run.
        StorageError: the store cannot be reached.
        ConfigError: `moved_to` names another file or pattern than the run was made of.
    """
    from maskmill.tables.run import open_run  # imported here because pyarrow takes long to import

    return open_run(os.fspath(uri), None if moved_to is None else os.fspath(moved_to))


def _pixels(image: ImageLike) -> NDArray[np.uint8]:
    if isinstance(image, (str, os.PathLike)):
        return _read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return to_pixels(image)
        except (OSError, ValueError) as error:  # Pillow reads the file lazily
            raise ImageError(f"the Pillow image cannot be read: {one_line_cause(error)}; open it again") from error
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise PromptError(f"the image is a {kind}; give a numpy array (height, width, 3), a Pillow image or a path")
    check_pixels(image)
    return image


def _read_image(path: Path) -> NDArray[np.uint8]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the image {path}: {error.strerror}") from error
    try:
        return decode_image(data, DEFAULT_DECODING).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _check_model(model: object) -> None:
    if not isinstance(model, Sam):
        raise ConfigError(f"the model is a {type(model).__name__}; make one with maskmill.load_model()")
