"""Samples prompts and their ground-truth masks from label maps, and collates them into a batch of tensors.

Shapes: B images, N prompts, C clicks per image, X boxes per image, A label maps, J alternatives (ground-truth masks)
per click, S input side, s label map side, h w mask side (S / 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from maskmill.model.config import NetworkConfig
from maskmill.model.training.augment import LABEL_STRIDE, Example

# Alternatives are the segments under a click, one from each label map. The model has three ambiguity masks, so at most
# three alternatives can be matched.
MAX_ALTERNATIVES = 3
_SAME_SEGMENT_IOU = 0.85
_MIN_LABEL_PIXELS = 12
# Loss weight of an unlabelled pixel, which may or may not belong to the object. Labelled pixels have weight 1.
_UNLABELLED_WEIGHT = 0.3


@dataclass(frozen=True)
class Batch:
    """B images, each with C clicks and X boxes. Clicks and boxes are sorted by image.

    `click_answers_NJhw` and `box_answers_Nhw` are ground-truth masks with soft values in 0..1. A click has up to J of
    them: `click_valid_NJ` marks the ones that exist, and the first one is the segment that the click was sampled from.
    A box has one. `maps_BAss` are the label maps, with 0 for unlabelled pixels; images with fewer maps are padded with
    zero maps. `weights_Bhw` is the loss weight of each logit pixel, which is lower if no map labels it. `labelled_B` is
    the fraction of the image area that at least one map labels.
    """

    images_B3SS: Tensor
    clicks_N2: Tensor
    click_answers_NJhw: Tensor
    click_valid_NJ: Tensor
    boxes_N4: Tensor
    box_answers_Nhw: Tensor
    maps_BAss: Tensor
    weights_Bhw: Tensor
    labelled_B: Tensor


def make_batch(examples: list[Example], clicks: int, boxes: int, config: NetworkConfig, rng: Generator) -> Batch:
    """Samples `clicks` clicks and `boxes` boxes from each example."""
    drawn = [_draw_prompts(example.maps_Ass, clicks, boxes, rng) for example in examples]
    clicks_N2, answers, valid, boxes_N4, box_answers = (np.concatenate(column) for column in zip(*drawn, strict=True))
    labelled = [example.maps_Ass.any(axis=0) for example in examples]
    areas = [example.height * example.width / LABEL_STRIDE**2 for example in examples]
    return Batch(
        normalise(examples, config),
        torch.from_numpy(clicks_N2),
        pool_masks(answers),
        torch.from_numpy(valid),
        torch.from_numpy(boxes_N4),
        pool_masks(box_answers),
        pad_sequence([torch.from_numpy(example.maps_Ass) for example in examples], batch_first=True),
        _UNLABELLED_WEIGHT + (1 - _UNLABELLED_WEIGHT) * pool_masks(np.stack(labelled)),
        torch.tensor([np.count_nonzero(map_ss) / area for map_ss, area in zip(labelled, areas, strict=True)]),
    )


def normalise(examples: list[Example], config: NetworkConfig) -> Tensor:
    """Returns the input of the image encoder, (B, 3, S, S): normalised pixels, padded with zeros as in the pipeline."""
    pixels_BSS3 = np.stack([example.pixels_SS3 for example in examples])
    images_BSS3 = (torch.from_numpy(pixels_BSS3) - torch.tensor(config.pixel_mean)) / torch.tensor(config.pixel_std)
    for image_SS3, example in zip(images_BSS3, examples, strict=True):
        image_SS3[example.height :] = 0
        image_SS3[:, example.width :] = 0
    return images_BSS3.permute(0, 3, 1, 2).contiguous()


def pool_masks(masks: NDArray[np.bool_]) -> Tensor:
    """Average-pools masks from label map resolution to logit resolution."""
    step = 4 // LABEL_STRIDE
    *lead, side, _ = masks.shape
    return torch.from_numpy(masks.reshape(*lead, side // step, step, side // step, step)).float().mean(dim=(-3, -1))


def _draw_prompts(
    maps_Ass: NDArray[np.int32], clicks: int, boxes: int, rng: Generator
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    side = maps_Ass.shape[-1]
    segments = list_segments(maps_Ass)
    anywhere = np.flatnonzero(maps_Ass.any(axis=0))
    xy_C2 = np.zeros((clicks, 2), np.int64)
    answers = np.zeros((clicks, MAX_ALTERNATIVES, side, side), np.bool_)
    valid = np.zeros((clicks, MAX_ALTERNATIVES), np.bool_)
    for i in range(clicks):
        order = rng.permutation(len(maps_Ass))
        if i % 2 == 0:
            # Half of the clicks sample segments uniformly, independent of area, so that small segments are clicked too.
            a, label = segments[rng.integers(len(segments))]
            inside = np.flatnonzero(maps_Ass[a] == label)
            order = np.concatenate([[a], order[order != a]])
        else:
            inside = anywhere
        y, x = divmod(int(inside[rng.integers(inside.size)]), side)
        xy_C2[i] = x, y
        found = alternatives_at(maps_Ass, x, y, order)
        answers[i, : len(found)] = found
        valid[i, : len(found)] = True
    boxes_X4 = np.zeros((boxes, 4), np.float32)
    box_answers = np.zeros((boxes, side, side), np.bool_)
    for i in range(boxes):
        a, label = segments[rng.integers(len(segments))]
        box_answers[i] = maps_Ass[a] == label
        boxes_X4[i] = _jittered_box(box_answers[i], rng)
    clicks_C2 = (xy_C2 * LABEL_STRIDE + rng.integers(0, LABEL_STRIDE, (clicks, 2))).astype(np.float32)
    return clicks_C2, answers, valid, boxes_X4, box_answers


def list_segments(maps_Ass: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Returns (map, label) of every segment with at least 12 label pixels, or of all segments if there is none."""
    counted = [
        (a, int(label), int(count))
        for a, map_ss in enumerate(maps_Ass)
        for label, count in zip(*np.unique(map_ss, return_counts=True), strict=True)
        if label != 0
    ]
    large = [(a, label) for a, label, count in counted if count >= _MIN_LABEL_PIXELS]
    return large or [(a, label) for a, label, _ in counted]


def alternatives_at(maps_Ass: NDArray[np.int32], x: int, y: int, order: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Returns the masks of the segments under a click, at most three, in the given order of the maps.

    Segments with an IoU above 0.85 count as duplicates, and only the first one is returned.
    """
    found: list[NDArray[np.bool_]] = []
    areas: list[int] = []
    for a in order:
        label = maps_Ass[a, y, x]
        if label == 0:
            continue
        mask = maps_Ass[a] == label
        area = int(np.count_nonzero(mask))
        for other, other_area in zip(found, areas, strict=True):
            intersection = np.count_nonzero(mask & other)
            if intersection > _SAME_SEGMENT_IOU * (area + other_area - intersection):
                break
        else:
            found.append(mask)
            areas.append(area)
            if len(found) == MAX_ALTERNATIVES:
                break
    return found


def _jittered_box(mask_ss: NDArray[np.bool_], rng: Generator) -> NDArray[np.float32]:
    """Returns the bounding box of the mask in input pixels, with Gaussian noise on each coordinate.

    The standard deviation is a tenth of the side of the box; the noise is clipped to 20 pixels.

    Source: Kirillov et al. 2023, Appendix A, "Training algorithm".
    """
    rows, columns = np.flatnonzero(mask_ss.any(axis=1)), np.flatnonzero(mask_ss.any(axis=0))
    box_4 = LABEL_STRIDE * np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    size_4 = np.tile(box_4[2:] - box_4[:2], 2)
    return (box_4 + np.clip(rng.normal(0, 0.1, 4) * size_4, -20, 20)).astype(np.float32)


def error_clicks(logits_Nhw: Tensor, answers_Nhw: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples a click from the error region of each mask.

    Returns clicks (N, 2) in input pixels and labels (N): 1 for a false negative, 0 for a false positive. If a mask has
    no error, the click is at a random position and its label is the value of the ground-truth mask there.
    """
    right_Nhw = answers_Nhw > 0.5
    wrong_NL = ((logits_Nhw > 0) != right_Nhw).flatten(1).float()
    chosen_N = torch.multinomial(wrong_NL + 1e-6, 1, generator=generator)[:, 0]
    y_N, x_N = chosen_N // logits_Nhw.shape[-1], chosen_N % logits_Nhw.shape[-1]
    labels_N = right_Nhw.flatten(1).gather(1, chosen_N[:, None])[:, 0].long()
    return torch.stack([x_N, y_N], dim=1).float() * 4 + 1.5, labels_N
