"""SAM-HQ equals independent implementations with the same weights: `transformers`, and MobileSAM's own encoder."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from maskmill.model.checkpoint import build_network, read_checkpoint
from maskmill.model.config import NetworkConfig
from maskmill.model.families import VARIANTS
from maskmill.model.families.mobile_sam.config import MobileSamConfig
from maskmill.model.families.sam_hq.config import SamHqTinyVitConfig, SamHqVitConfig
from maskmill.model.network import Network
from maskmill.model.optimize import OptimizedNetwork, optimize
from testing import networks
from testing.hugging_face import prompt_arguments, random_hugging_face_hq
from testing.networks import random_network
from testing.published_mobile_sam import published_mobile_sam
from tests.model.families import test_mobile_sam
from tests.model.test_against_oracles import TOLERANCE, decode_ours, prompts, relative_error


def _with_hq(name: str, **changes: object) -> SamHqVitConfig:
    config = networks.SMALL_CONFIGS[name]
    hq = {"family": "sam_hq", "early_width": config.encoder_width, "best_candidate_only": True}
    fields: dict[str, Any] = asdict(config) | hq | changes
    return SamHqVitConfig(**fields)


SMALL_CONFIGS = {
    "grid7": _with_hq("grid7"),
    "grid5": _with_hq("grid5", global_attention_blocks=(0, 1)),
    "grid9_without_relative_positions": _with_hq("grid9_without_relative_positions"),
}


def both_networks(config: SamHqVitConfig, directory: Path) -> tuple[Network, transformers.SamHQModel]:
    """The same weights in both, carried over by our own checkpoint loader."""
    theirs = random_hugging_face_hq(config)
    path = directory / "model.safetensors"
    save_file({key: tensor.clone() for key, tensor in theirs.state_dict().items()}, path)
    return build_network(config, read_checkpoint(path)), theirs


def decode_theirs(
    network: transformers.SamHQModel, embedding: Tensor, early_BCYX: Tensor, prompt: dict[str, Tensor], hq_only: bool
) -> tuple[Tensor, Tensor]:
    """Logits (N, M, h, w) and predicted IoUs (N, M): the single mask, then the ambiguity masks by falling IoU."""
    logits, ious = [], []
    for i in range(3):
        arguments = prompt_arguments(prompt, i)
        single, several = (
            network(
                image_embeddings=embedding,
                intermediate_embeddings=[early_BCYX.permute(0, 2, 3, 1)],
                multimask_output=multimask,
                hq_token_only=hq_only,
                **arguments,
            )
            for multimask in (False, True)
        )
        ious.append(torch.cat([single.iou_scores, several.iou_scores], dim=2)[0, 0])
        masks = torch.cat([single.pred_masks, several.pred_masks], dim=2)[0, 0]
        logits.append(masks[:1].expand(len(ious[-1]), -1, -1) if hq_only else masks)
    return torch.stack(logits), torch.stack(ious)


def by_falling_iou(logits_NMhw: Tensor, iou_NM: Tensor) -> tuple[Tensor, Tensor]:
    """The single mask, then the ambiguity masks by falling predicted IoU."""
    order_NM = torch.cat([torch.zeros(len(iou_NM), 1).long(), 1 + iou_NM[:, 1:].argsort(dim=1, descending=True)], dim=1)
    return logits_NMhw[torch.arange(len(iou_NM))[:, None], order_NM], iou_NM.gather(1, order_NM)


@torch.no_grad()
def assert_equal_networks(config: SamHqVitConfig, kinds: list[str], directory: Path) -> None:
    ours, theirs = both_networks(config, directory)
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(2))
    their_grid, their_early = theirs.get_image_embeddings(image)
    early_BCYX = their_early[0].permute(0, 3, 1, 2)
    for network in (ours, optimize(copy.deepcopy(ours), "exact", "cpu")):
        embedding = network.encode_images(image)
        assert relative_error(embedding.grid_BCYX, their_grid) < TOLERANCE
        assert relative_error(embedding.skips[0], early_BCYX) < TOLERANCE
        for kind in kinds:
            prompt = prompts(config)[kind]
            logits, ious = by_falling_iou(*decode_ours(network, embedding, prompt))
            their_logits, their_ious = decode_theirs(theirs, their_grid, early_BCYX, prompt, config.hq_token_only)
            assert relative_error(logits, their_logits) < TOLERANCE, kind
            assert relative_error(ious, their_ious) < TOLERANCE, kind


@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_small_network_equals_transformers(name: str, tmp_path: Path) -> None:
    config = SMALL_CONFIGS[name]
    assert_equal_networks(config, list(prompts(config)), tmp_path)


def test_small_network_equals_transformers_when_it_takes_the_high_quality_token_only(tmp_path: Path) -> None:
    assert_equal_networks(replace(SMALL_CONFIGS["grid7"], hq_token_only=True), ["one point", "box and mask"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seconds on a free core, minutes on a busy one
def test_hq_vit_b_equals_transformers(tmp_path: Path) -> None:
    config = VARIANTS["hq_vit_b"]
    assert isinstance(config, SamHqVitConfig)
    assert_equal_networks(config, ["points, box and mask"], tmp_path)


@pytest.mark.parametrize("name", test_mobile_sam.SMALL_CONFIGS)
@torch.no_grad()
def test_small_tiny_vit_equals_the_encoder_of_mobile_sam_and_the_decoder_of_transformers(
    name: str, tmp_path: Path
) -> None:
    mobile = test_mobile_sam.SMALL_CONFIGS[name]
    width = mobile.stages[2].width
    config = SamHqTinyVitConfig(**asdict(mobile) | {"family": "sam_hq", "early_width": width, "stages": mobile.stages})
    vit = replace(_with_hq("grid7"), **_shared_dimensions(mobile), early_width=width)
    with_vit, their_decoder = both_networks(vit, tmp_path)
    mobile_network = random_network(mobile)
    ours = Network(config).eval()
    ours.load_state_dict(
        {key: value for key, value in with_vit.state_dict().items() if not key.startswith("image_encoder.")}
        | {f"image_encoder.{key}": value for key, value in mobile_network.image_encoder.state_dict().items()}
    )
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(2))
    their_encoder: Any = published_mobile_sam(mobile_network).image_encoder
    early_BLC = their_encoder.layers[1](their_encoder.layers[0](their_encoder.patch_embed(image)))
    early_BCYX = early_BLC.transpose(1, 2).unflatten(2, (config.grid_size, config.grid_size))
    their_grid, prompt = their_encoder(image), prompts(config)["points and box"]
    their_logits, their_ious = decode_theirs(their_decoder, their_grid, early_BCYX, prompt, hq_only=False)
    for network in (ours, optimize(copy.deepcopy(ours), "exact", "cpu")):
        embedding = network.encode_images(image)
        assert relative_error(embedding.grid_BCYX, their_grid) < TOLERANCE
        assert relative_error(embedding.skips[0], early_BCYX) < TOLERANCE
        logits, ious = by_falling_iou(*decode_ours(network, embedding, prompt))
        assert relative_error(logits, their_logits) < TOLERANCE
        assert relative_error(ious, their_ious) < TOLERANCE


def _shared_dimensions(config: MobileSamConfig) -> dict[str, object]:
    """Fields of the parts after the image encoder."""
    own = NetworkConfig.__dataclass_fields__.keys() - {"name", "family", "best_candidate_only"}
    return {name: getattr(config, name) for name in own}


def test_parameters_are_those_of_transformers() -> None:
    config = VARIANTS["hq_vit_b"]
    with torch.device("meta"):
        theirs = transformers.SamHQModel(transformers.SamHQConfig())
        ours = Network(config)
    # Both names of one tensor in `transformers`, which is a buffer here.
    shared = theirs.state_dict()["shared_image_embedding.positional_embedding"].numel()
    assert sum(weight.numel() for weight in ours.parameters()) == _count(theirs) - shared


def _count(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@torch.inference_mode()
def test_screen_in_bfloat16_is_close_to_float32() -> None:
    config = SMALL_CONFIGS["grid7"]
    network = OptimizedNetwork(random_network(config), torch.float32, screen_dtype=torch.bfloat16)
    screen = network.screen()
    assert screen is not None
    image = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(2))
    embedding, prompt = network.encode_images(image), prompts(config)["one point"]
    for rough, precise in zip(
        decode_ours(screen, embedding, prompt), decode_ours(network, embedding, prompt), strict=True
    ):
        assert rough.dtype == torch.float32
        assert 0 < relative_error(rough, precise) < 0.05
    # The exact network chooses the best of them.
    assert screen.candidates(torch.rand(2, 4)).tolist() == [[False, True, True, True]] * 2


@torch.inference_mode()
def test_generation_takes_the_ambiguity_mask_with_the_highest_predicted_iou() -> None:
    iou_NM = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.1, 0.8, 0.3, 0.2]])
    expected = torch.tensor([[False, False, True, False], [False, True, False, False]])
    assert torch.equal(random_network(SMALL_CONFIGS["grid7"]).candidates(iou_NM), expected)
