"""The interface of segment_anything over our engine: what the published notebooks call, through both, compared."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch

from maskmill.compat import segment_anything as ours
from maskmill.compat.segment_anything.modeling import Sam
from maskmill.compat.segment_anything.utils.transforms import ResizeLongestSide
from maskmill.filters import rle
from maskmill.model.errors import CheckpointError, PromptError
from maskmill.model.network import Network as PlainSam
from testing import oracles
from testing.colour_sam import CONFIG, ColourSam
from testing.networks import SMALL_CONFIGS, randomise

PUBLISHED = "segment_anything"
OURS = "maskmill.compat.segment_anything"
IMAGE = skimage.data.chelsea()[60:200, 100:300]
TALL = np.ascontiguousarray(skimage.data.coffee()[:150, 200:260])


class ColourfulSam(Sam):
    """`Sam` with the network `ColourSam`: realistic masks, and the same logits on both sides."""

    def __init__(self) -> None:
        super().__init__(CONFIG)

    def for_inference(self) -> PlainSam:
        return ColourSam()


def small_sam() -> Sam:
    sam = Sam(SMALL_CONFIGS["grid7"]).eval()
    randomise(sam)
    return sam


SAM = small_sam()
MODELS: dict[str, Any] = {OURS: SAM, PUBLISHED: oracles.published_sam(SAM)}


def test_public_names_and_signatures_are_the_published_ones():
    published = importlib.import_module(PUBLISHED)
    for name in ("build_sam", "build_sam_vit_h", "build_sam_vit_l", "build_sam_vit_b"):
        assert _parameters(getattr(ours, name)) == _parameters(getattr(published, name))
    assert ours.sam_model_registry.keys() >= published.sam_model_registry.keys()
    transforms = importlib.import_module(f"{PUBLISHED}.utils.transforms")
    for class_, of_published in (
        (ours.SamPredictor, published.SamPredictor),
        (ours.SamAutomaticMaskGenerator, published.SamAutomaticMaskGenerator),
        (ResizeLongestSide, transforms.ResizeLongestSide),
    ):
        methods = [name for name, _ in inspect.getmembers(of_published, callable) if not name.startswith("_")]
        for name in {"__init__", *methods} - {"postprocess_small_regions"}:  # takes a published MaskData
            assert _parameters(getattr(class_, name)) == _parameters(getattr(of_published, name)), name


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    return [(parameter.name, parameter.default) for parameter in inspect.signature(function).parameters.values()]


# The published notebooks.


def predictor_notebook(package: str) -> dict[str, Any]:
    """The calls of predictor_example.ipynb, with other numbers."""
    SamPredictor = importlib.import_module(package).SamPredictor
    transforms = importlib.import_module(f"{package}.utils.transforms")
    sam = MODELS[package]
    sam.to(device="cpu")
    results: dict[str, Any] = {}

    predictor = SamPredictor(sam)
    predictor.set_image(IMAGE)
    results["embedding"] = predictor.get_image_embedding()

    input_point, input_label = np.array([[100, 75]]), np.array([1])
    masks, scores, logits = predictor.predict(point_coords=input_point, point_labels=input_label, multimask_output=True)
    results["click"] = masks, scores, logits
    mask_input = logits[np.argmax(scores), :, :]
    input_point, input_label = np.array([[100, 75], [150, 25]]), np.array([1, 0])
    results["refined"] = predictor.predict(
        point_coords=input_point, point_labels=input_label, mask_input=mask_input[None, :, :], multimask_output=False
    )
    input_box = np.array([42, 60, 170, 107])
    results["box"] = predictor.predict(
        point_coords=None, point_labels=None, box=input_box[None, :], multimask_output=False
    )
    results["box and point"] = predictor.predict(
        point_coords=np.array([[57, 75]]), point_labels=np.array([0]), box=input_box, multimask_output=False
    )
    results["logits"] = predictor.predict(input_point, input_label, return_logits=True)

    input_boxes = torch.tensor([[7, 60, 170, 87], [42, 60, 70, 87], [137, 55, 168, 60]], device=predictor.device)
    boxes = predictor.transform.apply_boxes_torch(input_boxes, IMAGE.shape[:2])
    results["boxes"] = predictor.predict_torch(
        point_coords=None, point_labels=None, boxes=boxes, multimask_output=False
    )
    points = predictor.transform.apply_coords_torch(torch.tensor([[[5, 5], [90, 80]], [[60, 70], [0, 0]]]), (140, 200))
    results["points"] = predictor.predict_torch(points, torch.tensor([[1, 0], [1, -1]]), return_logits=True)

    predictor.set_image(IMAGE[..., ::-1], image_format="BGR")
    results["embedding of BGR"] = predictor.get_image_embedding()
    predictor.reset_image()
    assert predictor.features is None

    transform = transforms.ResizeLongestSide(sam.image_encoder.img_size)

    def prepare_image(image: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(transform.apply_image(image), device=sam.device).permute(2, 0, 1).contiguous()

    batched_input = [
        {
            "image": prepare_image(IMAGE),
            "boxes": transform.apply_boxes_torch(input_boxes, IMAGE.shape[:2]),
            "original_size": IMAGE.shape[:2],
        },
        {
            "image": prepare_image(TALL),
            "point_coords": transform.apply_coords_torch(torch.tensor([[[30, 20]]]), TALL.shape[:2]),
            "point_labels": torch.tensor([[1]]),
            "original_size": TALL.shape[:2],
        },
    ]
    for index, output in enumerate(sam(batched_input, multimask_output=False)):
        assert list(output) == ["masks", "iou_predictions", "low_res_logits"]
        results[f"image {index}"] = tuple(output.values())
    return results


def test_predictor_notebook_gives_the_published_results():
    published, got = predictor_notebook(PUBLISHED), predictor_notebook(OURS)
    assert got.keys() == published.keys()
    for name, expected in published.items():
        arrays = zip(_tuple(got[name]), _tuple(expected), strict=True)
        for array, of_published in arrays:
            assert type(array) is type(of_published), name
            assert (array.dtype, array.shape) == (of_published.dtype, of_published.shape), name
            array, of_published = np.asarray(array), np.asarray(of_published)
            if array.dtype == bool:
                assert (array == of_published).mean() > 0.999, name  # elsewhere the sign is a matter of rounding
                assert 0 < array.mean() < 1
            else:
                np.testing.assert_allclose(array, of_published, atol=2e-4, err_msg=name)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


NOTEBOOK_2 = {"points_per_side": 16, "pred_iou_thresh": 0.86, "stability_score_thresh": 0.92, "crop_n_layers": 1}
GENERATORS: dict[str, dict[str, Any]] = {
    "notebook": {},
    "notebook_2": {**NOTEBOOK_2, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 100},
    "uncompressed": {"points_per_side": 8, "stability_score_thresh": 0.8, "output_mode": "uncompressed_rle"},
    "coco": {"points_per_side": 8, "pred_iou_thresh": 0.5, "stability_score_offset": 0.5, "output_mode": "coco_rle"},
    "nms": {"points_per_side": 8, "points_per_batch": 7, "box_nms_thresh": 0.2, "stability_score_thresh": 0},
    "crops": {"points_per_side": 8, "crop_n_layers": 1, "crop_nms_thresh": 0.3, "crop_overlap_ratio": 0.1},
    "grids": {
        "points_per_side": None,
        "point_grids": [np.array([[0.2, 0.3], [0.5, 0.5], [0.8, 0.1]]), np.array([[0.5, 0.5]])],
        "crop_n_layers": 1,
        "stability_score_thresh": 0.5,
    },
}


@pytest.mark.parametrize("case", GENERATORS)
def test_generator_gives_the_published_masks_with_each_argument(case: str):
    Published = importlib.import_module(PUBLISHED).SamAutomaticMaskGenerator
    published = Published(oracles.published_colour_sam(), **GENERATORS[case]).generate(IMAGE)
    got = ours.SamAutomaticMaskGenerator(ColourfulSam(), **GENERATORS[case]).generate(IMAGE)
    assert len(got) == len(published) > 1
    for mask, expected in zip(got, published, strict=True):
        assert list(mask) == list(expected)
        segmentation, of_published = mask.pop("segmentation"), expected.pop("segmentation")
        assert _types(segmentation) == _types(of_published)
        np.testing.assert_equal(segmentation, of_published)
        assert _types(mask) == _types(expected)
        for key, value in mask.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-6, err_msg=key)


def _types(value: Any) -> Any:
    """The types of a value and of all that is in it."""
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_types(item) for item in value]
    return (type(value), value.dtype, value.shape) if isinstance(value, np.ndarray) else type(value)


def test_embedded_model_gives_the_masks_of_the_published_code():
    arguments = {"points_per_side": 5, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.4}
    sam = ours.sam_model_registry["mini"]()
    Published = importlib.import_module(PUBLISHED).SamAutomaticMaskGenerator
    published = Published(oracles.published_sam(sam), **arguments).generate(IMAGE)
    got = ours.SamAutomaticMaskGenerator(sam, **arguments).generate(IMAGE)
    assert len(got) == len(published) > 0
    for mask, expected in zip(got, published, strict=True):
        a, b = mask["segmentation"], expected["segmentation"]
        assert (a & b).sum() / (a | b).sum() > 0.999
        assert mask["point_coords"][0] == pytest.approx(expected["point_coords"][0])


def test_generator_follows_attributes_that_are_changed_later():
    generator = ours.SamAutomaticMaskGenerator(ColourfulSam(), points_per_side=8)
    few = len(generator.generate(IMAGE))
    generator.stability_score_thresh = 0.5
    assert len(generator.generate(IMAGE)) > few


def test_generator_returns_no_masks_where_none_passes():
    assert ours.SamAutomaticMaskGenerator(ColourfulSam(), points_per_side=2, pred_iou_thresh=5).generate(IMAGE) == []


# Misuse.


def _predictor(package: str) -> Any:
    return importlib.import_module(package).SamPredictor(MODELS[package])


def _reset(predictor: Any) -> Any:
    predictor.set_image(IMAGE)
    predictor.reset_image()
    return predictor


def _generator(package: str, **arguments: Any) -> Any:
    return importlib.import_module(package).SamAutomaticMaskGenerator(MODELS[package], **arguments)


def _predict_points_without_labels(package: str) -> None:
    predictor = _predictor(package)
    predictor.set_image(IMAGE)
    predictor.predict(point_coords=np.array([[1, 2]]))


MISUSES: dict[str, Callable[[str], object]] = {
    "predict": lambda package: _predictor(package).predict(np.array([[1, 2]]), np.array([1])),
    "predict_torch": lambda package: _predictor(package).predict_torch(torch.zeros(1, 1, 2), torch.ones(1, 1)),
    "predict after reset_image": lambda package: _reset(_predictor(package)).predict(box=np.array([1, 2, 3, 4])),
    "get_image_embedding": lambda package: _predictor(package).get_image_embedding(),
    "points without labels": _predict_points_without_labels,
    "image format": lambda package: _predictor(package).set_image(IMAGE, "HSV"),
    "size of a torch image": lambda package: _predictor(package).set_torch_image(torch.zeros(1, 3, 5, 7), (5, 7)),
    "no batch of torch images": lambda package: _predictor(package).set_torch_image(torch.zeros(3, 112, 112), (1, 1)),
    "no points": lambda package: _generator(package, points_per_side=None),
    "points twice": lambda package: _generator(package, point_grids=[np.zeros((1, 2))]),
    "output mode": lambda package: _generator(package, output_mode="png"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_raises_the_published_exception(misuse: str):
    raised = []
    for package in (PUBLISHED, OURS):
        with pytest.raises((RuntimeError, AssertionError)) as caught:
            MISUSES[misuse](package)
        raised.append((caught.type, str(caught.value).splitlines()[0]))
    assert raised[0] == raised[1]


def test_generator_refuses_what_is_no_rgb_image():
    with pytest.raises(PromptError, match=r"drop the alpha channel with image\[\.\.\., :3\]"):
        ours.SamAutomaticMaskGenerator(ColourfulSam()).generate(np.zeros((8, 8, 4), np.uint8))


# The network.


def test_network_has_the_published_weights_under_the_published_names():
    published = importlib.import_module(PUBLISHED)
    with torch.device("meta"):
        for name in ("vit_b", "vit_l", "vit_h", "default"):
            expected = {key: value.shape for key, value in published.sam_model_registry[name]().state_dict().items()}
            state = ours.sam_model_registry[name]().state_dict()
            assert {key: value.shape for key, value in state.items()} == expected


@pytest.mark.slow
def test_checkpoint_of_the_published_network_is_loaded(tmp_path):
    with torch.device("meta"):
        published = importlib.import_module(PUBLISHED).sam_model_registry["vit_b"]()
    published.to_empty(device="cpu")
    randomise(published)
    torch.save(published.state_dict(), tmp_path / "sam_vit_b.pth")
    sam = ours.sam_model_registry["vit_b"](checkpoint=str(tmp_path / "sam_vit_b.pth"))
    assert not sam.training
    for key, value in published.state_dict().items():
        assert torch.equal(sam.state_dict()[key], value), key


def test_checkpoint_is_refused_in_one_line_when_it_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        ours.build_sam_vit_b(tmp_path / "none.pth")


def test_masks_follow_weights_that_are_loaded_later():
    sam = small_sam()
    predictor = ours.SamPredictor(sam)
    predictor.set_image(IMAGE)
    before = predictor.get_image_embedding()
    other = Sam(SMALL_CONFIGS["grid7"])
    randomise(other, seed=1)
    sam.load_state_dict(other.state_dict())
    predictor.set_image(IMAGE)
    assert not torch.allclose(predictor.get_image_embedding(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sam: pickle.loads(pickle.dumps(sam))])
def test_network_is_copied_after_its_use(copied: Callable[[Sam], Sam]):
    predictors = [ours.SamPredictor(SAM), ours.SamPredictor(copied(SAM))]
    for predictor in predictors:
        predictor.set_image(IMAGE)
    a, b = (predictor.predict(box=np.array([1, 2, 30, 40])) for predictor in predictors)
    np.testing.assert_array_equal(a[2], b[2])


def test_embedding_that_was_kept_can_be_set_again():
    predictor = ours.SamPredictor(SAM)
    predictor.set_image(IMAGE)
    kept, expected = predictor.features, predictor.predict(box=np.array([1, 2, 30, 40]))
    assert kept is not None
    predictor.set_image(IMAGE[::-1])
    assert not np.array_equal(predictor.predict(box=np.array([1, 2, 30, 40]))[2], expected[2])
    predictor.features = kept
    np.testing.assert_array_equal(predictor.predict(box=np.array([1, 2, 30, 40]))[2], expected[2])


def test_results_need_no_gradients():
    predictor = ours.SamPredictor(SAM)
    predictor.set_image(IMAGE)
    masks, scores, logits = predictor.predict_torch(None, None, torch.tensor([[1.0, 2, 30, 40]]), return_logits=True)
    assert [x.requires_grad for x in (masks, scores, logits)] == [False, False, False]


def test_transform_gives_the_published_coordinates():
    published = importlib.import_module(f"{PUBLISHED}.utils.transforms").ResizeLongestSide(112)
    transform = ResizeLongestSide(112)
    size, xy = IMAGE.shape[:2], np.array([[3, 5, 70, 80], [0, 1, 2, 3]])
    np.testing.assert_array_equal(transform.apply_image(IMAGE), published.apply_image(IMAGE))
    np.testing.assert_array_equal(transform.apply_boxes(xy, size), published.apply_boxes(xy, size))
    boxes = torch.from_numpy(xy)
    assert torch.equal(transform.apply_boxes_torch(boxes, size), published.apply_boxes_torch(boxes, size))
    assert transform.get_preprocess_shape(100, 33, 112) == published.get_preprocess_shape(100, 33, 112)
    image_1CHW = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float()
    resized = transform.apply_image_torch(image_1CHW)[0].permute(1, 2, 0)
    assert (resized - torch.from_numpy(transform.apply_image(IMAGE))).abs().mean() < 1


def test_rle_of_every_mode_is_the_same_mask():
    generators = (
        ours.SamAutomaticMaskGenerator(ColourfulSam(), points_per_side=4, output_mode=mode, stability_score_thresh=0.5)
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    for binary, uncompressed, coco in zip(*(generator.generate(IMAGE) for generator in generators), strict=True):
        mask = binary["segmentation"]
        assert coco["segmentation"]["counts"].encode() == rle.encode(np.ascontiguousarray(mask))
        runs = uncompressed["segmentation"]["counts"]
        assert (mask == np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(mask.T.shape).T).all()
