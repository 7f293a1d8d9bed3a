"""How a small SAM starts and how it moves between input sizes. Applied from outside the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskmill.model.config import SamConfig
from maskmill.model.image_encoder import Block, ImageEncoder
from maskmill.model.lite_encoder import TopDown
from maskmill.model.sam import Sam
from maskmill.model.transformer import CrossAttention


def initialise(sam: Sam) -> None:
    """Starts the decoder as something that already looks where the click is.

    With equal orthogonal query and key projections, tokens attend to the cells whose positions resemble their own;
    with identity-like values, they take over what they find there. From the usual random start, a small SAM needs
    thousands of steps to find this out.
    """
    for module in sam.mask_decoder.modules():
        if isinstance(module, CrossAttention):
            nn.init.orthogonal_(module.q_proj.weight, gain=1.5)
            module.k_proj.weight.data.copy_(module.q_proj.weight)
            nn.init.eye_(module.v_proj.weight)
            nn.init.eye_(module.out_proj.weight)
            for linear in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                nn.init.zeros_(linear.bias)
    # What a point is must not drown where it is.
    embeddings = nn.ModuleList([*sam.prompt_encoder.point_embeddings, sam.prompt_encoder.no_mask_embed])
    for weight in embeddings.parameters():
        nn.init.normal_(weight, std=0.3)
    encoder = sam.image_encoder
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
    # Masks start from the embedding alone: the skips add nothing until training needs them.
    if isinstance(encoder, ImageEncoder):
        _set_to_zero(encoder.skips)
        return
    for module in encoder.modules():
        if isinstance(module, TopDown):
            _set_to_zero(module.skip)
        elif isinstance(module, Block):
            # The attention blocks start as the identity, so that they do not disturb the trunk's features.
            _set_to_zero(module.attn.proj)
            _set_to_zero(module.mlp.lin2)


def _set_to_zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


# Where what a block of the encoder makes is added to what goes by it.
_BLOCK_OUTPUTS = (".attn.proj.", ".mlp.lin2.", ".conv2.")


def grow(config: SamConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model whose encoder has fewer blocks than `config`'s, with those that it lacks.

    They add nothing yet, and are the same in every call. Anything else that is missing stays so.
    """
    with torch.device("meta"):
        names = Sam(config).state_dict().keys() - state.keys()
    lacking = [name for name in names if name.startswith("image_encoder.") and ".blocks." in name]
    if not lacking:
        return dict(state)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = Sam(config).state_dict()
    outputs = {name for name in lacking if any(part in name for part in _BLOCK_OUTPUTS)}
    return {**state, **{name: torch.zeros_like(fresh[name]) if name in outputs else fresh[name] for name in lacking}}


def load_resized(config: SamConfig, state: Mapping[str, Tensor]) -> Sam:
    """A Sam of `config` from the state dict of one of another input side, say: position tables are resampled."""
    sam = Sam(config)
    resampled = {}
    for name, own in sam.state_dict().items():
        table = state[name]
        if name == "image_encoder.pos_embed" and table.shape != own.shape:
            table_1CHW = F.interpolate(table.permute(0, 3, 1, 2), own.shape[1:3], mode="bicubic", antialias=True)
            resampled[name] = table_1CHW.permute(0, 2, 3, 1)
        elif "rel_pos" in name and table.shape != own.shape:
            # (distances, D), those of the blocks that attend globally.
            resampled[name] = F.interpolate(table.T[None], len(own), mode="linear")[0].T
    with torch.no_grad():
        sam.load_state_dict({**state, **resampled})
    return sam
