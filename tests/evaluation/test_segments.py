"""Which annotated masks count."""

from __future__ import annotations

from maskmill.evaluation.segments import covers_image, select_segments
from tests.evaluation.drawings import annotated, rectangle


def test_segments_are_the_masks_over_the_share_that_are_no_crowd() -> None:
    masks = [rectangle(20, 20, slice(0, 1), slice(0, pixels)) for pixels in (1, 2, 3, 20)]
    image = annotated(masks, annotators=[0, 1, 2, 0], crowds=[False, False, False, True])
    assert select_segments(image, 0.005) == [2]  # 0.005 of 400 pixels are 2: a segment must have more
    assert select_segments(image, 0) == [0, 1, 2]


def test_annotations_cover_an_image_when_every_annotator_drew_all_of_it() -> None:
    left, right = rectangle(4, 6, slice(None), slice(0, 3)), rectangle(4, 6, slice(None), slice(3, 6))
    whole = left | right
    assert covers_image(annotated([left, right, whole], annotators=[0, 0, 1]))
    assert not covers_image(annotated([left, right, left], annotators=[0, 0, 1]))
    assert not covers_image(annotated([left, right], crowds=[False, True]))
