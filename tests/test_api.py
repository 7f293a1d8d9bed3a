"""The Python API: what it returns, what it takes for an image, what it refuses, and that importing it loads nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest
import skimage.data
from PIL import Image
from pycocotools import mask as coco

import maskmill
from maskmill.model.errors import CheckpointError, DeviceError, PromptError
from maskmill.model.network import Network
from maskmill.model.predictor import encode_image
from maskmill.pipeline.config import GeneratorConfig
from maskmill.pipeline.errors import ConfigError, ImageError, RunMismatchError
from testing import oracles
from testing.colour_sam import ColourSam
from tests.fakes import picture
from tests.runs import run

PIXELS = skimage.data.chelsea()[60:200, 100:300]
FEW: dict[str, Any] = {"preset": "official", "points_per_side": 8, "stability_score_thresh": 0.85}


@pytest.fixture(scope="module")
def mini() -> Network:
    return maskmill.load_model(device="cpu")


@pytest.fixture(scope="module")
def masks() -> maskmill.ImageMasks:
    return maskmill.generate(PIXELS, ColourSam(), **FEW)


# The package.


def _loaded(code: str) -> set[str]:
    """Which of the large libraries a program has loaded at its end."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) & {"torch", "numpy", "pyarrow", "ray", "cv2", "PIL", "numba", "boto3", "typer"}


def test_import_loads_no_large_library():
    assert _loaded("import maskmill; maskmill.__version__; dir(maskmill)") == set()


def test_masks_need_neither_ray_nor_parquet():
    code = """
import numpy, maskmill
model = maskmill.load_model(device="cpu")
maskmill.encode(numpy.zeros((8, 8, 3), numpy.uint8), model).predict(points=[[4, 4]])
"""
    assert _loaded(code) & {"ray", "pyarrow", "boto3", "typer"} == set()


def test_all_names_are_there():
    assert dir(maskmill) == maskmill.__all__
    for name in maskmill.__all__:
        getattr(maskmill, name)
    assert maskmill.__version__ == version("maskmill")
    with pytest.raises(AttributeError, match="module 'maskmill' has no attribute 'nothing'"):
        maskmill.nothing  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from maskmill import nothing  # type: ignore[attr-defined]  # noqa: F401


# Models.


def test_embedded_model_is_loaded_by_default(mini: Network):
    assert mini.config.name == "mini"
    assert not mini.training


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"variant": "vit_x"}, ConfigError, "no model 'vit_x'; choose one of"),
        (
            {"variant": "vit_b"},
            CheckpointError,
            r"give a file \(--checkpoint FILE, or load_model\('vit_b', FILE\)\)",
        ),
        ({"checkpoint": "/no/such.pth"}, CheckpointError, "cannot read the checkpoint /no/such.pth"),
        ({"device": "tpu"}, DeviceError, "no device 'tpu'"),
        ({"precision": "double"}, DeviceError, "no precision 'double'"),
    ],
)
def test_model_is_refused_in_one_line(arguments: dict[str, str], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        maskmill.load_model(**arguments)


# Masks.


def test_dictionaries_are_those_of_the_published_generator(masks: maskmill.ImageMasks):
    config = GeneratorConfig(points_per_side=8, stability_score_thresh=0.85)
    published = oracles.published_generator(oracles.published_colour_sam(), config).generate(PIXELS)
    dicts = masks.to_dicts("coco_rle")
    assert len(dicts) == len(published) > 5
    for mask, expected in zip(dicts, published, strict=True):
        assert list(mask) == list(expected)
        assert mask["segmentation"] == expected["segmentation"]
        for name in ("area", "bbox", "crop_box"):
            assert mask[name] == expected[name]
        for name in ("predicted_iou", "stability_score", "point_coords"):
            np.testing.assert_allclose(mask[name], expected[name], rtol=1e-6)


def test_columns_describe_the_same_masks(masks: maskmill.ImageMasks):
    assert_type(masks, maskmill.ImageMasks)
    assert masks.masks.shape == (len(masks), *PIXELS.shape[:2])
    assert masks.masks.dtype == bool
    assert masks.masks is masks.masks  # decoded once
    np.testing.assert_array_equal(masks.masks, [dictionary["segmentation"] for dictionary in masks.to_dicts()])
    np.testing.assert_array_equal(masks.masks.sum(axis=(1, 2)), masks.area)
    np.testing.assert_array_equal(np.moveaxis(coco.decode(masks.rles), 2, 0) == 1, masks.masks)  # type: ignore[arg-type]
    for mask, (x, y, w, h) in zip(masks.masks, masks.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min(), columns.max(), rows.max()) == (x, y, x + w, y + h)
    assert masks.scores.tolist() == [dictionary["predicted_iou"] for dictionary in masks.to_dicts()]


def test_result_cannot_be_changed(masks: maskmill.ImageMasks):
    for array in (masks.masks, masks.boxes, masks.scores, masks.area, masks.points):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        masks.area = masks.area  # type: ignore[misc]


def test_output_mode_is_refused_by_name(masks: maskmill.ImageMasks):
    with pytest.raises(ConfigError, match="no output mode 'png'; choose one of binary_mask"):
        masks.to_dicts("png")  # type: ignore[arg-type]


def test_models_own_preset_is_taken_when_none_is_given(mini: Network):
    few: dict[str, Any] = {"points_per_side": 3}
    own, named = maskmill.generate(PIXELS, mini, **few), maskmill.generate(PIXELS, mini, "mini", **few)
    assert own.rle_counts == named.rle_counts
    assert len(own) > 0
    assert maskmill.generate(PIXELS, mini, "official", **few).rle_counts != own.rle_counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "best"}, "no preset 'best'; choose one of official"),
        ({"points": 8}, "no generator option 'points'; choose from points_per_side"),
        ({"pred_iou_thresh": -1}, "pred_iou_thresh is -1; it must be at least 0"),
        ({"points_per_side": "8"}, "points_per_side is '8'; it must be a number"),
        ({"point_grids": [[0.5, 0.5]]}, "a generator option has a value of the wrong type"),
    ],
)
def test_option_is_refused_by_name(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        maskmill.generate(PIXELS, ColourSam(), **arguments)


def test_anything_but_a_model_is_refused():
    for function in (maskmill.generate, maskmill.encode):
        with pytest.raises(ConfigError, match=r"the model is a str; make one with maskmill.load_model\(\)"):
            function(PIXELS, "vit_b")  # type: ignore[arg-type]


# Images.


def test_array_pillow_image_and_path_are_the_same_image(masks: maskmill.ImageMasks, tmp_path: Path):
    picture = Image.fromarray(PIXELS)
    picture.save(tmp_path / "cat.png")
    for image in (picture, tmp_path / "cat.png", str(tmp_path / "cat.png"), np.flip(np.flip(PIXELS, 1).copy(), 1)):
        assert maskmill.generate(image, ColourSam(), **FEW).rle_counts == masks.rle_counts


def test_photograph_on_its_side_is_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(PIXELS).save(tmp_path / "cat.jpg", exif=exif)
    height, width = PIXELS.shape[:2]
    for image in (tmp_path / "cat.jpg", Image.open(tmp_path / "cat.jpg")):
        upright = maskmill.generate(image, ColourSam(), preset="official", points_per_side=1)
        assert (upright.height, upright.width) == (width, height)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (PIXELS[..., 0], PromptError, r"uint8 \(140, 200\); .* repeat grey values"),
        (PIXELS / 255, PromptError, r"float64 \(140, 200, 3\); .* values from 0 to 1 with \(image \* 255\)"),
        (np.zeros((9, 9, 4), np.uint8), PromptError, "drop the alpha channel"),
        (np.zeros((3, 9, 9), np.uint8), PromptError, "its channels last"),
        (np.zeros((0, 9, 3), np.uint8), PromptError, "not empty"),
        (PIXELS.tolist(), PromptError, "the image is a list; give a numpy array"),
        ("/no/such.jpg", ImageError, "cannot read the image /no/such.jpg: No such file"),
        (Path(__file__), ImageError, r"test_api\.py: not a readable image"),
        (Image.new("F", (9, 9)), ImageError, "mode F has more than 8 bits per sample; give the path"),
    ],
)
def test_anything_but_an_image_is_refused(image: Any, error: type[Exception], message: str):
    for function in (maskmill.generate, maskmill.encode):
        with pytest.raises(error, match=message):
            function(image, ColourSam())


def test_pillow_image_of_a_truncated_file_is_refused(tmp_path: Path):
    Image.fromarray(PIXELS).save(tmp_path / "cat.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cat.jpg").read_bytes()[:5000])
    with Image.open(tmp_path / "cut.jpg") as image, pytest.raises(ImageError, match=r"cannot be read: .*truncated"):
        maskmill.generate(image, ColourSam())


# Clicks and runs.


def test_encoded_image_answers_prompts(mini: Network):
    image = maskmill.encode(PIXELS, mini)
    assert_type(image, maskmill.EncodedImage)
    prediction = image.predict(points=[[100, 70]])
    assert_type(prediction, maskmill.Prediction)
    assert prediction.masks.shape == (3, *PIXELS.shape[:2])
    best = int(prediction.scores.argmax())
    more: dict[str, Any] = {
        "points": [[100, 70], [5, 5]],
        "labels": [1, 0],
        "mask_input": prediction.logits[best],
        "multimask": False,
    }
    refined = image.predict(**more)
    expected = encode_image(mini, PIXELS).predict(**more).masks
    np.testing.assert_array_equal(refined.masks, expected)
    assert refined.masks.shape == (1, *PIXELS.shape[:2])


def test_run_is_opened(tmp_path: Path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(picture(0))
    run(tmp_path / "photographs", tmp_path / "out")
    for uri in (tmp_path / "out", str(tmp_path / "out")):
        opened = maskmill.open_run(uri)
        assert_type(opened, maskmill.Run)
        assert list(opened) == ["a.png"]
        assert opened["a.png"].masks.shape[0] == opened.masks.count_rows() == 3
    with pytest.raises(RunMismatchError, match="not an output of maskmill"):
        maskmill.open_run(tmp_path / "photographs")
