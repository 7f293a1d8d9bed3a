"""The variants of SAM 2. Those of SAM 2.1 and SAM 2.0 are the same networks with other weights."""

from __future__ import annotations

from dataclasses import dataclass

from maskmill.model.config import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class Sam2Config(NetworkConfig):
    """Dimensions of one variant. The image encoder is a Hiera: width and heads double with each stage.

    Source: Ravi et al. 2024, Appendix D; `configs/sam2.1` of sam2.
    """

    family: str = "sam2"
    # Width and heads of the first stage, blocks of each stage; which blocks attend globally, the rest in windows.
    encoder_width: int
    encoder_heads: int
    stage_blocks: tuple[int, int, int, int]
    global_attention_blocks: tuple[int, ...]
    window_sizes: tuple[int, int, int, int] = (8, 4, 14, 7)
    encoder_mlp_ratio: int = 4
    # Side of the learned position embedding, which is enlarged to the grid.
    position_size: int = 7
    high_resolution_skips: bool = True
    square_input: bool = True
    object_score: bool = True
    sigmoid_iou: bool = True
    pads_boxes: bool = True
    dynamic_multimask: bool = True
    logit_limit: float = 32.0
    default_preset: str = "sam2"


VARIANTS = (
    Sam2Config(
        "hiera_t", encoder_width=96, encoder_heads=1, stage_blocks=(1, 2, 7, 2), global_attention_blocks=(5, 7, 9)
    ),
    Sam2Config(
        "hiera_s", encoder_width=96, encoder_heads=1, stage_blocks=(1, 2, 11, 2), global_attention_blocks=(7, 10, 13)
    ),
    Sam2Config(
        "hiera_b+",
        encoder_width=112,
        encoder_heads=2,
        stage_blocks=(2, 3, 16, 3),
        global_attention_blocks=(12, 16, 20),
        position_size=14,
    ),
    Sam2Config(
        "hiera_l",
        encoder_width=144,
        encoder_heads=2,
        stage_blocks=(2, 6, 36, 4),
        global_attention_blocks=(23, 33, 43),
        window_sizes=(8, 4, 16, 8),
    ),
)
