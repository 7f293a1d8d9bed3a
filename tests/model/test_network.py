"""The network's promises: published sizes, and masks that depend on nothing but their own prompt."""

from __future__ import annotations

import pytest
import torch

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.families import VARIANTS
from maskmill.model.network import Network
from testing.networks import SMALL_CONFIGS, random_network
from testing.oracles import sam_model_registry

CONFIG = SMALL_CONFIGS["grid7"]
SAM = random_network(CONFIG)
EMBEDDING = ImageEmbedding(torch.randn(1, CONFIG.embed_dim, 7, 7, generator=torch.Generator().manual_seed(1)))
POINTS = torch.rand(5, 2, generator=torch.Generator().manual_seed(2)) * CONFIG.image_size


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("variant", "parameters"), [("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608)]
)
def test_parameter_count_is_the_published_one(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        network = Network(VARIANTS[variant])
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_state_dict_is_the_released_one(variant: str) -> None:
    with torch.device("meta"):
        ours, theirs = Network(VARIANTS[variant]).state_dict(), sam_model_registry[variant]().state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}


def test_decode_masks_equals_the_rows_of_all_masks_when_some_are_chosen() -> None:
    decoded = SAM.decode_points(EMBEDDING, POINTS)
    everything = torch.ones(5, 4, dtype=torch.bool)
    chosen = torch.zeros(5, 4, dtype=torch.bool)
    chosen[0, 2] = chosen[3, 0] = chosen[3, 3] = True
    all_masks = SAM.decode_masks(decoded, everything).unflatten(0, (5, 4))
    torch.testing.assert_close(SAM.decode_masks(decoded, chosen), all_masks[chosen])


def test_decode_masks_is_empty_when_none_is_chosen() -> None:
    decoded = SAM.decode_points(EMBEDDING, POINTS)
    nothing = torch.zeros(5, 4, dtype=torch.bool)
    assert SAM.decode_masks(decoded, nothing).shape == (0, CONFIG.mask_size, CONFIG.mask_size)


def test_shared_embedding_equals_one_per_prompt() -> None:
    everything = torch.ones(5, 4, dtype=torch.bool)
    labels = torch.ones(5, 1, dtype=torch.int64)
    shared = SAM.decode_prompts(EMBEDDING, POINTS[:, None], labels)
    repeated = SAM.decode_prompts(EMBEDDING.map(lambda x: x.expand(5, -1, -1, -1)), POINTS[:, None], labels)
    torch.testing.assert_close(shared.predicted_iou_NM, repeated.predicted_iou_NM)
    torch.testing.assert_close(SAM.decode_masks(shared, everything), SAM.decode_masks(repeated, everything))


def test_masks_do_not_depend_on_the_other_prompts_of_the_batch() -> None:
    together = SAM.decode_points(EMBEDDING, POINTS)
    logits = SAM.decode_masks(together, torch.ones(5, 4, dtype=torch.bool)).unflatten(0, (5, 4))
    for i in range(5):
        alone = SAM.decode_points(EMBEDDING, POINTS[i : i + 1])
        torch.testing.assert_close(alone.predicted_iou_NM, together.predicted_iou_NM[i : i + 1])
        torch.testing.assert_close(SAM.decode_masks(alone, torch.ones(1, 4, dtype=torch.bool)), logits[i])


def test_embeddings_do_not_depend_on_the_other_images_of_the_batch() -> None:
    images = torch.randn(3, 3, CONFIG.image_size, CONFIG.image_size, generator=torch.Generator().manual_seed(3))
    together = SAM.encode_images(images)
    torch.testing.assert_close(SAM.encode_images(images[1:2]).grid_BCYX, together[1:2].grid_BCYX)


def test_every_weight_matters_so_that_comparisons_mean_something() -> None:
    with torch.enable_grad():
        network = random_network(CONFIG)
        embedding = network.encode_images(torch.randn(1, 3, CONFIG.image_size, CONFIG.image_size))
        labels = torch.tensor([[1, 0, -1]] * 5)
        masks = torch.randn(5, 1, CONFIG.mask_size, CONFIG.mask_size)
        points = POINTS[:, None].expand(-1, 3, -1)
        total = torch.zeros(())
        for prompt in ({}, {"boxes_N4": POINTS.repeat(1, 2), "masks_N1hw": masks}):
            decoded = network.decode_prompts(embedding, points, labels, **prompt)
            logits = network.decode_masks(decoded, torch.ones(5, 4, dtype=torch.bool))
            total = total + logits.square().sum() + decoded.predicted_iou_NM.square().sum()
        total.backward()
    # The key projections' biases alone do nothing: they add the same to every score of a softmax.
    useless = {name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-5}
    assert {name for name in useless if not name.endswith("k_proj.bias")} == set()
