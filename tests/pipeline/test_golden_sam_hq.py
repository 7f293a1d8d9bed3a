"""The generator with SAM-HQ against segment_anything's, with a mask decoder that gives the best mask of each point."""

from __future__ import annotations

import pytest
import torch
from segment_anything import modeling
from torch import Tensor, nn

from maskmill.model.embedding import ImageEmbedding
from maskmill.model.network import Network
from maskmill.model.optimize import optimize
from maskmill.model.prompts import best_ambiguity_mask
from testing import oracles
from testing.networks import random_network
from tests.model.families.test_sam_hq import SMALL_CONFIGS
from tests.pipeline.test_golden import PHOTOGRAPHS, assert_same, generate
from tests.pipeline.test_golden_mobile_sam import every_mask, sharpened


@pytest.mark.parametrize("photograph", ["portrait", "small"])
def test_masks_are_those_of_the_published_generator(photograph):
    network = sharpened(random_network(SMALL_CONFIGS["grid7"]))
    config, pixels = every_mask("official"), PHOTOGRAPHS[photograph]()
    masks = generate(optimize(network, "exact", "cpu"), config, pixels)
    assert len(masks) == 16
    encoder = _Encoder(network)
    published = modeling.Sam(encoder, _PromptEncoder(network), _MaskDecoder(network, encoder))  # pyright: ignore[reportArgumentType]
    assert_same(masks, oracles.published_generator(published.eval(), config).generate(pixels))


class _Encoder(nn.Module):
    """Keeps the embedding, whose skips the published interface has no place for."""

    embedding: ImageEmbedding

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.img_size = network, network.config.image_size

    def forward(self, images_B3SS: Tensor) -> Tensor:
        self.embedding = self.network.encode_images(images_B3SS)
        return self.embedding.grid_BCYX


class _PromptEncoder(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, points: tuple[Tensor, Tensor], boxes: None, masks: None) -> tuple[Tensor, Tensor]:
        return self.network.prompt_encoder(*points)

    def get_dense_pe(self) -> Tensor:
        return self.network.grid_positions()


class _MaskDecoder(nn.Module):
    """The mask decoder of segment-anything-hq when it is asked for several masks: it gives the best of them."""

    def __init__(self, network: Network, encoder: _Encoder) -> None:
        super().__init__()
        self.decoder, self.encoder = network.mask_decoder, encoder

    def forward(
        self, image_pe: Tensor, sparse_prompt_embeddings: Tensor, dense_prompt_embeddings: Tensor, **_: object
    ) -> tuple[Tensor, Tensor]:
        decoded = self.decoder.decode_prompts(
            self.encoder.embedding, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings
        )
        best_N1 = best_ambiguity_mask(decoded.predicted_iou_NM)[:, None]
        keep_NM = torch.zeros_like(decoded.predicted_iou_NM, dtype=torch.bool).scatter(1, best_N1, value=True)
        return self.decoder.decode_masks(decoded, keep_NM)[:, None], decoded.predicted_iou_NM.gather(1, best_N1)
