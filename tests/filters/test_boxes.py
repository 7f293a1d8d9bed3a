import torch

from maskmill.filters.boxes import least_iou, masks_to_boxes, near_crop_edge, xywh_to_xyxy, xyxy_to_xywh


def test_box_is_inclusive_and_xyxy():
    mask_1HW = torch.zeros(1, 9, 7, dtype=torch.bool)
    mask_1HW[0, 2:5, 3:7] = True
    assert masks_to_boxes(mask_1HW).tolist() == [[3, 2, 6, 4]]


def test_box_spans_all_parts_of_a_mask():
    mask_1HW = torch.zeros(1, 9, 7, dtype=torch.bool)
    mask_1HW[0, 8, 0] = mask_1HW[0, 0, 6] = True
    assert masks_to_boxes(mask_1HW).tolist() == [[0, 0, 6, 8]]


def test_box_is_zeros_when_mask_is_empty():
    masks_NHW = torch.zeros(2, 4, 5, dtype=torch.bool)
    masks_NHW[1, 3, 4] = True
    assert masks_to_boxes(masks_NHW).tolist() == [[0, 0, 0, 0], [4, 3, 4, 3]]


def test_boxes_of_no_masks():
    assert masks_to_boxes(torch.zeros(0, 4, 5, dtype=torch.bool)).shape == (0, 4)


CROP = [100, 0, 300, 200]  # of an image of 600 x 200 pixels: its left and right edges are inside the image


def _near(box: list[int]) -> bool:
    return bool(near_crop_edge(torch.tensor([box]), torch.tensor([CROP]), height=200, width=600))


def test_box_is_near_crop_edge_up_to_and_including_20_pixels():
    assert _near([120, 50, 200, 150])
    assert not _near([121, 50, 200, 150])
    assert _near([150, 50, 280, 150])
    assert not _near([150, 50, 279, 150])


def test_box_between_two_is_near_crop_edge_only_where_it_is_so_in_any_case():
    outer = torch.tensor([[110, 50, 200, 150]] * 3)
    inner = torch.tensor([[120, 60, 190, 140], [121, 60, 190, 140], [999, 999, -1, -1]])
    assert near_crop_edge(outer, torch.tensor([CROP]), 200, 600, inner).tolist() == [True, False, False]
    # The crop's left edge lies 15 pixels from the image's: a box may be near that.
    crop_box, inner = torch.tensor([[15, 0, 221, 200]]), torch.tensor([[21, 50, 150, 150]])
    assert near_crop_edge(inner, crop_box, 200, 600)
    assert not near_crop_edge(torch.tensor([[20, 50, 150, 150]]), crop_box, 200, 600, inner)


def test_no_box_between_two_has_less_than_the_least_iou():
    generator = torch.Generator().manual_seed(0)
    low_N52, high_N52 = (
        torch.randint(first, first + 30, (2000, 5, 2), generator=generator).sort(dim=1).values for first in (0, 30)
    )
    outer, between, inner, other, _ = (torch.cat([low_N52[:, i], high_N52[:, 4 - i]], dim=1) for i in range(5))
    other = other.roll(1, dims=0)[:50]
    least_KN, exact_KN = least_iou(other, inner, outer), least_iou(other, between, between)
    assert (least_KN <= exact_KN).all()
    assert (least_KN > exact_KN / 2).any(), "it is not too careful"


def test_box_is_not_near_crop_edge_when_that_is_an_image_edge():
    assert not _near([150, 0, 200, 199])


def test_crop_edge_is_skipped_when_the_coordinate_is_within_20_pixels_of_the_image_edge():
    crop_box = torch.tensor([[15, 0, 300, 200]])
    # x0 = 18 is 3 px from the crop's edge, and 18 px from the image's; x0 = 25 is 25 px from the image's.
    boxes = torch.tensor([[18, 50, 100, 100], [25, 50, 100, 100]])
    assert near_crop_edge(boxes, crop_box, height=200, width=600).tolist() == [False, True]


def test_crop_edge_is_judged_per_row_when_crops_differ():
    boxes = torch.tensor([[120, 50, 200, 150]] * 2)
    crop_boxes = torch.tensor([CROP, [0, 0, 600, 200]])
    assert near_crop_edge(boxes, crop_boxes, height=200, width=600).tolist() == [True, False]


def test_xywh_is_one_short_of_the_pixel_count():
    assert xyxy_to_xywh(torch.tensor([[3, 2, 6, 4]])).tolist() == [[3, 2, 3, 2]]
    assert xywh_to_xyxy(torch.tensor([[3, 2, 3, 2]])).tolist() == [[3, 2, 6, 4]]
