"""Overlays and contact sheets."""

import numpy as np

from maskmill.pipeline.overlay import contact_sheet, draw_masks

GREY = np.full((120, 160, 3), 100, np.uint8)


def _square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros(GREY.shape[:2], bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_draw_masks_colours_masks_and_leaves_the_rest_alone():
    mask = _square(20, 30, 60)

    drawn = draw_masks(GREY, [mask])

    outside = ~_square(18, 28, 64)
    assert (drawn[outside] == GREY[outside]).all()
    assert (drawn[mask] != GREY[mask]).any(axis=-1).all()


def test_draw_masks_puts_later_masks_on_top_with_a_colour_of_their_own():
    large, small = _square(10, 10, 90), _square(40, 40, 20)

    drawn = draw_masks(GREY, [large, small])

    assert tuple(drawn[50, 50]) != tuple(drawn[20, 20])


def test_draw_masks_outlines_the_hole_of_a_mask():
    ring = _square(10, 10, 90) & ~_square(40, 40, 20)

    drawn = draw_masks(GREY, [ring])

    fill = drawn[25, 25]
    assert tuple(drawn[50, 50]) == (100, 100, 100)
    assert tuple(drawn[50, 39]) not in {tuple(fill), (100, 100, 100)}


def test_draw_masks_keeps_the_image_when_there_is_no_mask():
    assert (draw_masks(GREY, []) == GREY).all()


def test_contact_sheet_shows_every_picture_once():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    pictures = [(f"photo {i}", np.full((50, 70, 3), colour, np.uint8)) for i, colour in enumerate(colours)]

    sheet = contact_sheet(pictures, tile_width=100, tile_height=80)

    for colour in colours:
        # Thumbnails are never enlarged.
        assert (sheet == colour).all(axis=-1).sum() == 50 * 70
