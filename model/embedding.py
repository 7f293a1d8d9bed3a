"""ImageEmbedding, the output of an image encoder.

Shapes: B images, Y X grid in cells, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageEmbedding:
    """The embeddings of B images.

    `grid_BCYX` is the published embedding. `skips` are features of 2 and 4 times its resolution for the mask upscaler,
    (B, C/4, 2Y, 2X) and (B, C/8, 4Y, 4X); empty for variants without skips.
    """

    grid_BCYX: Tensor
    skips: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.grid_BCYX)

    def __getitem__(self, images: slice | Tensor) -> ImageEmbedding:
        return self.map(lambda x: x[images])

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageEmbedding:
        """Applies a function to each tensor."""
        return ImageEmbedding(function(self.grid_BCYX), tuple(function(skip) for skip in self.skips))
