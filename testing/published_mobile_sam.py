"""MobileSAM's own network with our weights, as a reference for tests and benchmarks. Its import of timm is stubbed."""

from __future__ import annotations

from torch import Tensor, nn

from maskmill.model.families.mobile_sam.config import MobileSamConfig
from maskmill.model.network import Network
from testing.torchvision_stub import TORCHVISION, import_with

TIMM: dict[str, dict[str, object]] = {
    "timm": {},
    "timm.models": {},
    "timm.models.layers": {
        "DropPath": nn.Identity,  # stochastic depth, which does nothing in evaluation mode
        "to_2tuple": lambda x: (x, x),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": lambda function: function},
}
import_with(TORCHVISION | TIMM, "mobile_sam")

from mobile_sam import SamAutomaticMaskGenerator, SamPredictor, modeling, sam_model_registry  # noqa: E402

__all__ = ["SamAutomaticMaskGenerator", "SamPredictor", "published_mobile_sam", "sam_model_registry"]


def published_mobile_sam(network: Network) -> modeling.Sam:
    """MobileSAM's own network of any size. The classifier of its encoder keeps its random weights."""
    config = network.config
    assert isinstance(config, MobileSamConfig)
    oracle = modeling.Sam(
        image_encoder=_TinyVit(config),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=config.embed_dim,
            image_embedding_size=(config.grid_size, config.grid_size),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_prompt_channels,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=config.multimask_outputs,
            transformer=modeling.TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.embed_dim,
                mlp_dim=config.decoder_mlp_dim,
                num_heads=config.decoder_heads,
            ),
            transformer_dim=config.embed_dim,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_width,
        ),
        pixel_mean=list(config.pixel_mean),
        pixel_std=list(config.pixel_std),
    )
    missing, unexpected = oracle.load_state_dict(network.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith(("image_encoder.head.", "image_encoder.norm_head.")) for key in missing)
    # In training mode the attention blocks have no table of biases; `eval` computes it from the weights.
    return oracle.train().eval()


class _TinyVit(modeling.TinyViT):
    """The published encoder for any grid. Its last reshape is published for a grid of 64 x 64 cells only."""

    def __init__(self, config: MobileSamConfig) -> None:
        super().__init__(
            img_size=config.image_size,
            embed_dims=[stage.width for stage in config.stages],
            depths=[stage.blocks for stage in config.stages],
            num_heads=[stage.heads for stage in config.stages],
            window_sizes=[stage.window_size for stage in config.stages],
            drop_path_rate=0.0,
        )
        self._grid_size = config.grid_size

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x.transpose(1, 2).unflatten(2, (self._grid_size, self._grid_size)))
