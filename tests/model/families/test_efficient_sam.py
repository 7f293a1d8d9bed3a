"""EfficientSAM equals its formula in float64, with the same weights under their published keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskmill.model.checkpoint import build_network, read_checkpoint
from maskmill.model.errors import PromptError
from maskmill.model.families.efficient_sam.config import VARIANTS, EfficientSamConfig
from maskmill.model.network import Network
from maskmill.model.optimize import OptimizedNetwork, optimize
from maskmill.model.predictor import encode_image
from testing.efficient_sam_formula import EfficientSamFormula, published_shapes, random_state
from testing.networks import random_network
from tests.model.test_against_oracles import TOLERANCE, decode_ours, relative_error

TI, S = VARIANTS
SMALL_CONFIGS = {
    "grid7": replace(
        TI,
        name="grid7",
        encoder_width=48,
        encoder_depth=3,
        global_attention_blocks=(0, 1, 2),
        encoder_heads=3,
        position_size=3,
        image_size=112,
        embed_dim=32,
        decoder_heads=4,
        decoder_mlp_dim=40,
        iou_head_width=24,
    ),
    "grid5": replace(
        TI,
        name="grid5",
        encoder_width=24,
        encoder_depth=1,
        global_attention_blocks=(0,),
        encoder_heads=2,
        position_size=5,
        image_size=40,
        patch_size=8,
        embed_dim=48,
        decoder_depth=3,
        decoder_heads=3,
        decoder_mlp_dim=64,
        multimask_outputs=4,
        iou_head_width=48,
    ),
}


def prompts(config: EfficientSamConfig) -> dict[str, tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Three prompts of each kind: the arguments of `decode_prompts`, and the same as six points with labels."""
    generator = torch.Generator().manual_seed(1)
    one_N12 = torch.rand(3, 1, 2, generator=generator) * config.image_size
    four_N42 = torch.rand(3, 4, 2, generator=generator) * config.image_size
    labels_N4 = torch.tensor([[1, 0, 1, 1], [0, 1, 1, -1], [1, 1, 1, 1]])
    corners_N22 = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values * config.image_size
    one = {"points_NP2": one_N12, "labels_NP": torch.ones(3, 1, dtype=torch.int64)}
    four, box = {"points_NP2": four_N42, "labels_NP": labels_N4}, {"boxes_N4": corners_N22.flatten(1)}
    corner_labels_N2 = torch.tensor([2, 3]).expand(3, 2)

    def pad(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        missing = 6 - points.shape[1]
        no_points, no_labels = points.new_full((3, missing, 2), -1), labels.new_full((3, missing), -1)
        return torch.cat([points, no_points], dim=1), torch.cat([labels, no_labels], dim=1)

    return {
        "one point": (one, *pad(one_N12, one["labels_NP"])),
        "points": (four, *pad(four_N42, labels_N4)),
        "box": (box, *pad(corners_N22, corner_labels_N2)),
        "points and box": (
            four | box,
            *pad(torch.cat([four_N42, corners_N22], dim=1), torch.cat([labels_N4, corner_labels_N2], dim=1)),
        ),
    }


@torch.no_grad()
def assert_equals_formula(config: EfficientSamConfig, kinds: list[str], directory: Path) -> None:
    state, path = random_state(config), directory / "efficient_sam.pt"
    torch.save({"model": state}, path)
    formula = EfficientSamFormula(state, config.encoder_heads, config.decoder_heads, config.image_size)
    network = build_network(config, read_checkpoint(path))
    fast = optimize(build_network(config, read_checkpoint(path)), "exact", "cpu")
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(2))
    expected = formula.encode(image)
    for kind in kinds:
        prompt, points, labels = prompts(config)[kind]
        expected_logits, expected_ious = formula.decode(expected, points, labels)
        for ours in (network, fast):
            embedding = ours.encode_images(image)
            assert relative_error(embedding.grid_BCYX, expected) < TOLERANCE
            logits, ious = decode_ours(ours, embedding, prompt)
            assert relative_error(logits, expected_logits) < TOLERANCE, kind
            assert relative_error(ious, expected_ious) < TOLERANCE, kind


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_small_network_equals_the_formula(name: str, tmp_path: Path) -> None:
    config = SMALL_CONFIGS[name]
    assert_equals_formula(config, list(prompts(config)), tmp_path)


@torch.no_grad()
def test_prediction_equals_the_formula_on_the_stretched_image(tmp_path: Path) -> None:
    config = SMALL_CONFIGS["grid7"]
    state, path, side = random_state(config), tmp_path / "efficient_sam.pt", config.image_size
    torch.save({"model": state}, path)
    pixels_HW3 = torch.randint(256, (30, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    prediction = encode_image(build_network(config, read_checkpoint(path)), pixels_HW3.numpy()).predict([[20, 10]])
    image = F.interpolate(pixels_HW3.permute(2, 0, 1)[None].float(), (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.pixel_mean, config.pixel_std))
    formula = EfficientSamFormula(state, config.encoder_heads, config.decoder_heads, side)
    points = torch.full((1, 6, 2), -1.0)
    points[0, 0] = torch.tensor([20 / 50, 10 / 30]) * side
    logits, ious = formula.decode(formula.encode((image - mean) / std), points, torch.tensor([[1, -1, -1, -1, -1, -1]]))
    assert relative_error(torch.from_numpy(prediction.logits), logits[0, 1:]) < TOLERANCE
    assert relative_error(torch.from_numpy(prediction.scores), ious[0, 1:]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seconds on a free core, minutes on a busy one
def test_efficient_sam_ti_equals_the_formula(tmp_path: Path) -> None:
    assert_equals_formula(TI, ["points and box"], tmp_path)


@pytest.mark.parametrize(("config", "count"), [(TI, 10_223_204), (S, 26_413_028)])
def test_parameters_are_those_of_the_published_files(config: EfficientSamConfig, count: int) -> None:
    shapes = published_shapes(config)
    with torch.device("meta"):
        network = Network(config)
    # The frequencies of the positions are no parameters.
    parameters = {name: shape for name, shape in shapes.items() if not name.endswith("gaussian_matrix")}
    assert sum(torch.Size(shape).numel() for shape in parameters.values()) == count
    assert sum(weight.numel() for weight in network.parameters()) == count


def test_masks_and_too_many_points_are_refused() -> None:
    config = SMALL_CONFIGS["grid5"]
    network = random_network(config)
    embedding = network.encode_images(torch.zeros(1, 3, config.image_size, config.image_size))
    with pytest.raises(PromptError, match="grid5 takes no masks as prompts; give points or a box"):
        network.decode_prompts(embedding, masks_N1hw=torch.zeros(1, 1, config.mask_size, config.mask_size))
    points = {"points_NP2": torch.zeros(1, 5, 2), "labels_NP": torch.ones(1, 5)}
    with pytest.raises(PromptError, match="grid5 takes 6 points at most, where a box counts as two; there are 7"):
        network.decode_prompts(embedding, **points, boxes_N4=torch.tensor([[0.0, 0, 9, 9]]))


@torch.inference_mode()
def test_screen_in_bfloat16_is_close_to_float32() -> None:
    config = SMALL_CONFIGS["grid7"]
    network = OptimizedNetwork(random_network(config), torch.float32, screen_dtype=torch.bfloat16)
    screen = network.screen()
    assert screen is not None
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(2))
    embedding, (prompt, _, _) = network.encode_images(image), prompts(config)["one point"]
    for rough, precise in zip(
        decode_ours(screen, embedding, prompt), decode_ours(network, embedding, prompt), strict=True
    ):
        assert rough.dtype == torch.float32
        assert 0 < relative_error(rough, precise) < 0.05
