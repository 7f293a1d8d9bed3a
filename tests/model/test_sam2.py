"""The networks of SAM 2 equal two independent implementations, `transformers` and `sam2`, on the same weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from maskmill.model.checkpoint import build_network, read_checkpoint, save_checkpoint
from maskmill.model.errors import CheckpointError
from maskmill.model.families import FAMILIES, VARIANTS
from maskmill.model.families.sam2 import fast_encoder
from maskmill.model.families.sam2.config import Sam2Config
from maskmill.model.families.sam2.encoder import Block, Sam2Encoder
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from maskmill.model.predictor import encode_image
from maskmill.model.preprocess import preprocess
from maskmill.model.vitdet import join_windows, split_windows
from testing.hugging_face import prompt_arguments, random_hugging_face_sam2
from testing.networks import SMALL_SAM2_CONFIGS, randomise
from testing.sam2_oracles import published_predictor, published_sam2
from tests.model.test_against_oracles import decode_ours, prompts, relative_error
from tests.pipeline.test_batches import torch_threads

TOLERANCE = 1e-4
SMALL = SMALL_SAM2_CONFIGS["grid6"]
# Smaller and larger than the input, wide, tall, square, and exactly its size.
SIZES = [(30, 50), (300, 217), (96, 96), (500, 20), (13, 400), (1, 1)]


def published(config: Sam2Config) -> Any:
    network = published_sam2(config)
    randomise(network)
    return network


def both_networks(config: Sam2Config, directory: Path) -> tuple[Network, Any]:
    """The same weights in both, carried over by our own checkpoint loader."""
    theirs, path = published(config), directory / "sam2.pt"
    torch.save({"model": theirs.state_dict()}, path)
    return build_network(config, read_checkpoint(path)), theirs


def pixels_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SMALL_SAM2_CONFIGS)
@torch.no_grad()
def test_small_network_equals_transformers(name: str, tmp_path: Path) -> None:
    config = SMALL_SAM2_CONFIGS[name]
    # Not "mask": transformers adds two padding points; sam2's predictor, which the next tests use, does not.
    assert_equals_transformers(config, [kind for kind in prompts(config) if kind != "mask"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@torch.no_grad()
def test_hiera_t_equals_transformers(tmp_path: Path) -> None:
    config = VARIANTS["hiera_t"]
    assert isinstance(config, Sam2Config)
    assert_equals_transformers(config, ["points, box and mask"], tmp_path)


def assert_equals_transformers(config: Sam2Config, kinds: list[str], directory: Path) -> None:
    theirs, path = random_hugging_face_sam2(config), directory / "model.safetensors"
    save_file({key: tensor.clone() for key, tensor in theirs.state_dict().items()}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.layout == "Hugging Face"
    ours = build_network(config, checkpoint)
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(2))
    embedding = ours.encode_images(image)
    their_embeddings = theirs.get_image_embeddings(image)
    for found, expected in zip((*embedding.skips[::-1], embedding.grid_BCYX), their_embeddings, strict=True):
        assert relative_error(found, expected) < TOLERANCE
    fast = optimize(build_network(config, checkpoint), "exact", "cpu")
    for kind in kinds:
        prompt = prompts(config)[kind]
        logits, ious = decode_ours(ours, embedding, prompt)
        fast_logits, fast_ious = decode_ours(fast, fast.encode_images(image), prompt)
        score_N = ours.decode_prompts(embedding, **prompt).object_score_N
        assert score_N is not None
        their_scores = []
        for i in range(3):
            arguments = prompt_arguments(prompt, i)
            several = theirs(image_embeddings=their_embeddings, multimask_output=True, **arguments)
            for found, found_ious in ((logits, ious), (fast_logits, fast_ious)):
                assert relative_error(found[i, 1:], several.pred_masks[0, 0]) < TOLERANCE, kind
                assert relative_error(found_ious[i, 1:], several.iou_scores[0, 0]) < TOLERANCE, kind
            their_scores.append(several.object_score_logits[0, 0, 0])
        assert relative_error(score_N, torch.stack(their_scores)) < TOLERANCE, kind


PROMPTS: dict[str, dict[str, Any]] = {
    "click": {"points": [[20, 9]]},
    "clicks": {"points": [[20, 9], [3, 25.5], [40, 12]], "labels": [1, 0, 1]},
    "box": {"box": [4, 5, 33, 21.5]},
    "clicks and box": {"points": [[20, 9], [3, 25.5]], "labels": [1, 0], "box": [4, 5, 33, 21]},
    "mask": {},
    "click, box and mask": {"points": [[20, 9]], "box": [4, 5, 33, 21]},
}


@pytest.mark.parametrize("dynamic_multimask", [True, False])
@pytest.mark.parametrize("name", SMALL_SAM2_CONFIGS)
@torch.no_grad()
def test_predictor_equals_the_published_one(name: str, dynamic_multimask: bool, tmp_path: Path) -> None:
    config = replace(SMALL_SAM2_CONFIGS[name], dynamic_multimask=dynamic_multimask)
    assert_same_predictions(config, list(PROMPTS), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@torch.no_grad()
def test_predictor_of_hiera_t_equals_the_published_one(tmp_path: Path) -> None:
    config = VARIANTS["hiera_t"]
    assert isinstance(config, Sam2Config)
    assert_same_predictions(config, ["click", "click, box and mask"], tmp_path)


def assert_same_predictions(config: Sam2Config, kinds: list[str], directory: Path) -> None:
    network, oracle = both_networks(config, directory)
    pixels = pixels_of(30, 50)
    theirs = published_predictor(oracle)
    theirs.set_image(pixels)
    mask_input = 4 * np.random.default_rng(1).standard_normal((config.mask_size, config.mask_size)).astype(np.float32)
    for ours in (encode_image(network, pixels), encode_image(optimize(network, "exact", "cpu"), pixels)):
        assert relative_error(ours.embedding.grid_BCYX, theirs.get_image_embedding()) < TOLERANCE
        for kind in kinds:
            prompt = PROMPTS[kind]
            mask = {"mask_input": mask_input} if "mask" in kind else {}
            for multimask in (True, False):
                found = ours.predict(**prompt, **mask, multimask=multimask)
                masks, scores, logits = theirs.predict(
                    point_coords=np.array(prompt["points"]) if "points" in prompt else None,
                    point_labels=np.array(prompt.get("labels", [1])) if "points" in prompt else None,
                    box=np.array(prompt["box"]) if "box" in prompt else None,
                    mask_input=mask_input[None] if mask else None,
                    multimask_output=multimask,
                )
                assert relative_error(torch.from_numpy(found.logits), torch.from_numpy(logits)) < TOLERANCE, kind
                assert relative_error(torch.from_numpy(found.scores), torch.from_numpy(scores)) < TOLERANCE, kind
                assert (found.masks != masks.astype(bool)).mean() < 1e-3, kind


@pytest.mark.parametrize(("height", "width"), [*SIZES, (1100, 40)])
def test_preprocessing_equals_the_published_one(height: int, width: int) -> None:
    transforms = published_predictor(published_sam2(SMALL))._transforms
    pixels, frame = pixels_of(height, width), SMALL.frame(height, width)
    torch.testing.assert_close(preprocess(pixels, SMALL), transforms(pixels), rtol=0, atol=1e-5)
    xy = torch.from_numpy(np.random.default_rng(0).uniform(0, (width, height), (9, 2)))
    theirs = transforms.transform_coords(xy.float(), normalize=True, orig_hw=(height, width))
    assert torch.equal(frame.to_input(xy), theirs)
    logits = torch.randn(4, SMALL.mask_size, SMALL.mask_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(frame.to_image_logits(logits), transforms.postprocess_masks(logits[None], (height, width))[0])


# Parameters for images and, with those for videos, in all: the published figure, in millions.
PARAMETERS = {
    "hiera_t": (31_440_721, 38.9),
    "hiera_s": (38_538_577, 46.0),
    "hiera_b+": (73_328_401, 80.8),
    "hiera_l": (216_924_865, 224.4),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(name: str) -> None:
    with torch.device("meta"):
        network = Network(VARIANTS[name])
    for_images = sum(parameter.numel() for parameter in network.parameters())
    for_videos = sum(
        parameter.numel()
        for key, parameter in published_sam2(SMALL).named_parameters()
        if key.startswith(FAMILIES["sam2"].unused_keys)
    )
    assert for_images == PARAMETERS[name][0]
    assert int((for_images + for_videos) / 1e5) / 10 == PARAMETERS[name][1]
    assert FAMILIES["sam2"].variant_of(network.state_dict()) == name


@pytest.fixture(scope="module")
def states() -> dict[str, dict[str, Tensor]]:
    """By layout, the weights of a small network as they are published, with those for videos."""
    hugging_face = {key: tensor.clone() for key, tensor in random_hugging_face_sam2(SMALL).state_dict().items()}
    return {"official": dict(published_sam2(SMALL).state_dict()), "Hugging Face": hugging_face}


def load(state: dict[str, Any], directory: Path, config: Any = SMALL) -> Network:
    torch.save({"model": state}, directory / "sam2.pt")
    return build_network(config, read_checkpoint(directory / "sam2.pt"))


def refusal(state: dict[str, Any], directory: Path, config: Any = SMALL) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        load(state, directory, config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_weights_for_videos_are_ignored_when_in_either_release(tmp_path: Path) -> None:
    for release in ("sam2", "sam2.1"):
        state = dict(published_sam2(SMALL, release).state_dict())
        assert "memory_attention.norm.weight" in state
        load(state, tmp_path)


def test_weights_for_videos_are_known_when_in_the_layout_of_hugging_face() -> None:
    with torch.device("meta"):
        with_videos = transformers.Sam2VideoModel(transformers.Sam2VideoConfig()).state_dict().keys()
        only_images = transformers.Sam2Model(transformers.Sam2Config()).state_dict().keys()
    unused = with_videos - only_images
    assert "memory_temporal_positional_encoding" in unused
    assert [key for key in unused if not key.startswith(FAMILIES["sam2"].unused_keys)] == []


IOU_TOKENS = {"official": "sam_mask_decoder.iou_token.weight", "Hugging Face": "mask_decoder.iou_token.weight"}


@pytest.mark.parametrize("layout", IOU_TOKENS)
def test_keys_are_strict(layout: str, states: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    key, state = IOU_TOKENS[layout], states[layout]
    without = {name: tensor for name, tensor in state.items() if name != key}
    assert "missing keys: 1 (mask_decoder.iou_token.weight)" in refusal(without, tmp_path)
    extra = key.replace("iou", "other")
    assert "unexpected keys: 1 (mask_decoder.other_token.weight)" in refusal(state | {extra: state[key]}, tmp_path)
    renamed = refusal(without | {extra: state[key]}, tmp_path)
    assert "missing keys: 1 (mask_decoder.iou_token.weight); unexpected keys: 1 (mask_decoder.other_token" in renamed
    narrow = refusal(state | {key: torch.zeros(1, 8)}, tmp_path)
    assert "differing shapes: 1 (mask_decoder.iou_token.weight (1, 8) instead of (1, 256))" in narrow


def stem_and_blocks(name: str) -> dict[str, Tensor]:
    """The part of a published file that shows the variant."""
    config = VARIANTS[name]
    assert isinstance(config, Sam2Config)
    blocks = {f"image_encoder.trunk.blocks.{i}.norm1.bias": torch.zeros(1) for i in range(sum(config.stage_blocks))}
    return blocks | {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(config.encoder_width, 3, 7, 7)}


def test_another_variant_or_family_is_named(tmp_path: Path) -> None:
    small, sam1 = stem_and_blocks("hiera_s"), {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}
    sam1 |= {f"image_encoder.blocks.{i}.norm1.bias": torch.zeros(768) for i in range(12)}
    for model in ("hiera_t", "hiera_b+", "vit_b", "mini"):
        message = refusal(small, tmp_path, VARIANTS[model])
        assert f"is not {model}: it looks like hiera_s; choose that model (--model hiera_s)" in message
    message = refusal(sam1, tmp_path, VARIANTS["hiera_t"])
    assert "is not hiera_t: it looks like vit_b; choose that model (--model vit_b)" in message


def test_saved_network_loads(states: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    network, path = load(states["official"], tmp_path), tmp_path / "ours.safetensors"
    save_checkpoint(network, path)
    loaded = build_network(SMALL, read_checkpoint(path)).state_dict()
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in network.state_dict().items())


@torch.inference_mode()
def test_fast_encoder_is_as_close_as_autocast_when_in_bfloat16() -> None:
    published, images = Sam2Encoder(SMALL).eval(), torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    randomise(published)
    exact, ours = published(images), copy.deepcopy(published)
    fast_encoder.speed_up(ours, torch.bfloat16)
    assert set(ours.state_dict()) == set(published.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        errors = [relative_error(encoder(images).grid_BCYX.float(), exact.grid_BCYX) for encoder in (ours, published)]
        alone = ours(images[1:]).grid_BCYX.float()
        assert relative_error(alone, ours(images).grid_BCYX[1:].float()) < 0.02
    assert 1e-4 < errors[0] < 1.3 * errors[1] < 0.1


def test_speed_up_refuses_a_block_of_another_class() -> None:
    class OtherBlock(Block):
        pass

    encoder = Sam2Encoder(SMALL)
    blocks = encoder.trunk.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    blocks[2] = OtherBlock(24, 24, heads=1, mlp_ratio=4, window_size=4)
    with pytest.raises(TypeError, match=r"image_encoder\.trunk\.blocks\.2: OtherBlock has no form for inference"):
        fast_encoder.speed_up(encoder, torch.float32)


@pytest.mark.parametrize(("grid", "side"), [((64, 64), 16), ((64, 64), 14), ((40, 24), 8)])
def test_cores_compute_tiles_of_whole_windows(grid: tuple[int, int], side: int) -> None:
    shapes: list[torch.Size] = []

    def block(x_BYXC: Tensor) -> Tensor:
        shapes.append(x_BYXC.shape)
        windows = split_windows(x_BYXC, side)
        return join_windows(windows + windows.amax(dim=(1, 2), keepdim=True), side, x_BYXC.shape[1:3])

    x_BYXC = torch.rand(2, *grid, 3)
    expected = block(x_BYXC)
    shapes.clear()
    with torch_threads(2):
        assert torch.equal(fast_encoder._in_tiles(block, x_BYXC, side), expected)
    assert len(shapes) > 1
    shapes.clear()
    with torch_threads(32):  # too many for the tiles
        assert torch.equal(fast_encoder._in_tiles(block, x_BYXC, side), expected)
    assert shapes == [x_BYXC.shape]
