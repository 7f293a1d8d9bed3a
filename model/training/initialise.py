"""Weight initialisation for a small SAM, and adaptation of state dicts to other input sizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.config import NetworkConfig
from maskmill.model.families.mini.encoder import MiniEncoder, TopDown
from maskmill.model.network import Network
from maskmill.model.transformer import CrossAttention
from maskmill.model.vitdet import Block


def initialise(network: Network) -> None:
    """Initialises the weights so that the cross-attention of the mask decoder attends to the position of the click.

    The query and key projections are equal and orthogonal, so that a token attends to grid cells with similar position
    encodings. The value and output projections are identities, so that the token receives the features of those cells.
    With PyTorch's default initialisation, a small SAM needs thousands of steps to learn this.
    """
    for module in network.mask_decoder.modules():
        if isinstance(module, CrossAttention):
            nn.init.orthogonal_(module.q_proj.weight, gain=1.5)
            module.k_proj.weight.data.copy_(module.q_proj.weight)
            nn.init.eye_(module.v_proj.weight)
            nn.init.eye_(module.out_proj.weight)
            for linear in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                nn.init.zeros_(linear.bias)
    # Small point-type and no-mask embeddings, so that they do not dominate the position encodings and image features.
    embeddings = nn.ModuleList([*network.prompt_encoder.point_embeddings, network.prompt_encoder.no_mask_embed])
    for weight in embeddings.parameters():
        nn.init.normal_(weight, std=0.3)
    encoder = network.image_encoder
    nn.init.trunc_normal_(encoder.get_parameter("pos_embed"), std=0.02)
    # In `mini` the skip connections start at zero, so that the first masks depend only on the image embedding, and the
    # attention blocks as the identity, so that they do not change the features of the trunk.
    if not isinstance(encoder, MiniEncoder):
        return
    for module in encoder.modules():
        if isinstance(module, TopDown):
            _set_to_zero(module.skip)
        elif isinstance(module, Block):
            _set_to_zero(module.attn.proj)
            _set_to_zero(module.mlp.lin2)


def _set_to_zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def load_resized(config: NetworkConfig, state: Mapping[str, Tensor]) -> Network:
    """Builds a network from a state dict of the same model at any input side. Resamples the position tables."""
    network = Network(config)
    resampled = {}
    for name, own in network.state_dict().items():
        table = state[name]
        if name == "image_encoder.pos_embed" and table.shape != own.shape:
            table_1CHW = F.interpolate(table.permute(0, 3, 1, 2), own.shape[1:3], mode="bicubic", antialias=True)
            resampled[name] = table_1CHW.permute(0, 2, 3, 1)
        elif "rel_pos" in name and table.shape != own.shape:
            # (distances, D). Only the tables of blocks with global attention depend on the input side.
            resampled[name] = F.interpolate(table.T[None], len(own), mode="linear")[0].T
    with torch.no_grad():
        network.load_state_dict({**state, **resampled})
    return network
