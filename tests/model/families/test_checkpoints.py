"""Checkpoints of each family load if their keys are exactly those of the network. One line says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskmill.model.checkpoint import build_network, load_model, read_checkpoint, save_checkpoint
from maskmill.model.config import NetworkConfig
from maskmill.model.errors import CheckpointError
from maskmill.model.families import VARIANTS
from testing.networks import SMALL_CONFIGS, SMALL_SAM2_CONFIGS, random_network
from testing.published_mobile_sam import sam_model_registry
from tests.model.families import test_efficient_sam, test_mobile_sam, test_sam_hq

SMALL: dict[str, NetworkConfig] = {
    "sam1": SMALL_CONFIGS["grid7"],
    "sam2": SMALL_SAM2_CONFIGS["grid6"],
    "mobile_sam": test_mobile_sam.SMALL_CONFIGS["grid5"],
    "sam_hq": test_sam_hq.SMALL_CONFIGS["grid7"],
    "efficient_sam": test_efficient_sam.SMALL_CONFIGS["grid7"],
}
# A weight of the part that makes the family different.
OWN_KEY = {
    "sam1": "image_encoder.blocks.1.attn.rel_pos_h",
    "sam2": "mask_decoder.obj_score_token.weight",
    "mobile_sam": "image_encoder.layers.2.blocks.0.local_conv.bn.running_mean",
    "sam_hq": "mask_decoder.hf_token.weight",
    "efficient_sam": "prompt_encoder.invalid_points.weight",
}
VIT_B = {
    "image_encoder.pos_embed": (1, 64, 64, 768),
    **{f"image_encoder.blocks.{i}.norm1.bias": (768,) for i in range(12)},
}
TINY_VIT = {
    "image_encoder.patch_embed.seq.0.c.weight": (32, 3, 3, 3),
    **{f"image_encoder.layers.{i}.blocks.0.mlp.fc2.bias": (w,) for i, w in ((1, 128), (2, 160), (3, 320))},
}
HQ_TOKEN = {"mask_decoder.hf_token.weight": (1, 256)}
# Tensors by which the variant is recognised.
OWN_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "vit_b": VIT_B,
    "hiera_t": {
        "image_encoder.trunk.patch_embed.proj.weight": (96, 3, 7, 7),
        **{f"image_encoder.trunk.blocks.{i}.norm1.bias": (96,) for i in range(12)},
    },
    "vit_t": TINY_VIT,
    "hq_vit_b": VIT_B | HQ_TOKEN,
    "hq_vit_tiny": TINY_VIT | HQ_TOKEN,
    "efficient_sam_ti": {
        "image_encoder.pos_embed": (1, 197, 192),
        **{f"image_encoder.blocks.{i}.norm1.bias": (192,) for i in range(12)},
        "prompt_encoder.invalid_points.weight": (1, 256),
    },
}


def refusal(state: dict[str, Tensor], config: NetworkConfig, directory: Path) -> str:
    """The one line with which a file with these tensors is refused."""
    path = directory / "model.pt"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        build_network(config, read_checkpoint(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("family", SMALL)
def test_saved_checkpoint_gives_the_same_network(family: str, tmp_path: Path) -> None:
    network, path = random_network(SMALL[family]), tmp_path / "model.safetensors"
    save_checkpoint(network, path)
    loaded = build_network(SMALL[family], read_checkpoint(path)).state_dict()
    assert loaded.keys() == network.state_dict().keys()
    for key, tensor in network.state_dict().items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor), key


@pytest.mark.parametrize("family", SMALL)
def test_missing_extra_and_renamed_keys_are_named(family: str, tmp_path: Path) -> None:
    config, key = SMALL[family], OWN_KEY[family]
    state = random_network(config).state_dict()
    without = {name: tensor for name, tensor in state.items() if name != key}
    assert refusal(without, config, tmp_path).endswith(f"missing keys: 1 ({key})")
    extra = {**state, "image_encoder.extra": torch.zeros(1)}
    assert refusal(extra, config, tmp_path).endswith("unexpected keys: 1 (image_encoder.extra)")
    renamed = {**without, f"{key}_": state[key]}
    assert refusal(renamed, config, tmp_path).endswith(f"missing keys: 1 ({key}); unexpected keys: 1 ({key}_)")


@pytest.mark.parametrize("found", OWN_SHAPES)
@pytest.mark.parametrize("wanted", OWN_SHAPES)
def test_checkpoint_of_another_model_is_named(found: str, wanted: str, tmp_path: Path) -> None:
    state = {key: torch.zeros(shape) for key, shape in OWN_SHAPES[found].items()}
    message = refusal(state, VARIANTS[wanted], tmp_path)
    if found == wanted:
        assert f"does not fit {wanted}: missing keys" in message
    else:
        assert f"is not {wanted}: it looks like {found}; choose that model (--model {found})" in message


def test_published_file_of_mobile_sam_loads_without_the_classifier_of_its_encoder(tmp_path: Path) -> None:
    published, path = sam_model_registry["vit_t"]().state_dict(), tmp_path / "mobile_sam.pt"
    torch.save(published, path)
    loaded = load_model("vit_t", path).network.state_dict()
    classifier = {"norm_head.weight", "norm_head.bias", "head.weight", "head.bias"}
    assert published.keys() - loaded.keys() == {f"image_encoder.{name}" for name in classifier}
    for key, tensor in loaded.items():
        assert torch.equal(tensor, published[key]), key
