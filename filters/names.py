"""The names of the filters, in the order in which they are applied. Does not import torch: table code uses it too."""

from __future__ import annotations

from enum import IntEnum


class DroppedBy(IntEnum):
    """Which filter dropped a candidate mask; `NONE` if it passed all.

    `PREDICTED_IOU` rejects candidates before their masks are computed and `SMALL_REGIONS` edits encoded masks, so the
    generator applies these two itself.
    """

    NONE = 0
    PREDICTED_IOU = 1
    STABILITY_SCORE = 2
    CROP_EDGE = 3
    BOX_NMS = 4
    CROP_NMS = 5
    COVERAGE = 6
    SMALL_REGIONS = 7

    @property
    def counter(self) -> str:
        """The name of the counter of masks that this filter dropped."""
        return self.name.lower()


# The names of the drop counters, in order.
FILTERS = tuple(filter_.counter for filter_ in DroppedBy if filter_ is not DroppedBy.NONE)
