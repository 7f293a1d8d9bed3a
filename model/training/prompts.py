"""Prompts with their right answers, drawn from label maps; and a batch of them as tensors.

Shapes: B images, N prompts, C clicks per image, X boxes per image, A label maps, J alternatives (right
answers) per click, S input side, s label map side, h w mask side (S / 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from maskmill.model.config import SamConfig
from maskmill.model.training.augment import LABEL_STRIDE, Example

# Alternatives are the annotators' segments under a click; more than three outputs cannot be matched.
MAX_ALTERNATIVES = 3
_SAME_SEGMENT_IOU = 0.85
_MIN_LABEL_PIXELS = 12
# Of a pixel without a label, where a labelled one has 1: what is there may belong to the object, or may not.
_UNLABELLED_WEIGHT = 0.3


@dataclass(frozen=True)
class Batch:
    """B images with C clicks and X boxes each; prompts are in order of their images.

    `answers_NJhw` are soft masks, 0..1, the first of which the prompt was drawn from; `valid_NJ` says which exist.
    Clicks come first, then boxes, which have a single answer. `maps_BAss` are the label maps of the images, 0 where
    there is no label, or an image has fewer maps than another. `weights_Bhw` says how sure each logit pixel is, by
    whether a map has a label there; `labelled_B` is the share of the image where one has.
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


def make_batch(examples: list[Example], clicks: int, boxes: int, config: SamConfig, rng: Generator) -> Batch:
    """Draws `clicks` clicks and `boxes` boxes on each example."""
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


def normalise(examples: list[Example], config: SamConfig) -> Tensor:
    """(B, 3, S, S): what the encoder takes; the padding is zero, as in the pipeline."""
    pixels_BSS3 = np.stack([example.pixels_SS3 for example in examples])
    images_BSS3 = (torch.from_numpy(pixels_BSS3) - torch.tensor(config.pixel_mean)) / torch.tensor(config.pixel_std)
    for image_SS3, example in zip(images_BSS3, examples, strict=True):
        image_SS3[example.height :] = 0
        image_SS3[:, example.width :] = 0
    return images_BSS3.permute(0, 3, 1, 2).contiguous()


def pool_masks(masks: NDArray[np.bool_]) -> Tensor:
    """Label resolution to mask resolution: the covered share of each logit pixel."""
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
            # Any segment is as likely as any other, so that small ones are clicked as well.
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
    """(map, label) of every segment that is not a speck; all of them if there is nothing but specks."""
    counted = [
        (a, int(label), int(count))
        for a, map_ss in enumerate(maps_Ass)
        for label, count in zip(*np.unique(map_ss, return_counts=True), strict=True)
        if label != 0
    ]
    large = [(a, label) for a, label, count in counted if count >= _MIN_LABEL_PIXELS]
    return large or [(a, label) for a, label, _ in counted]


def alternatives_at(maps_Ass: NDArray[np.int32], x: int, y: int, order: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """The different segments under a click, in the order of the maps, at most three."""
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
    """The mask's box in input pixels, each coordinate off by about a tenth of the side, at most 20 pixels.

    Source: Kirillov et al. 2023, Appendix A, "Training algorithm".
    """
    rows, columns = np.flatnonzero(mask_ss.any(axis=1)), np.flatnonzero(mask_ss.any(axis=0))
    box_4 = LABEL_STRIDE * np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
    size_4 = np.tile(box_4[2:] - box_4[:2], 2)
    return (box_4 + np.clip(rng.normal(0, 0.1, 4) * size_4, -20, 20)).astype(np.float32)


def error_clicks(logits_Nhw: Tensor, answers_Nhw: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A click (N, 2) in each mask's error region, input pixels, and its label (N): 1 missed, 0 too much.

    Where a mask has no error, the click falls anywhere, with the answer's label there.
    """
    right_Nhw = answers_Nhw > 0.5
    wrong_NL = ((logits_Nhw > 0) != right_Nhw).flatten(1).float()
    chosen_N = torch.multinomial(wrong_NL + 1e-6, 1, generator=generator)[:, 0]
    y_N, x_N = chosen_N // logits_Nhw.shape[-1], chosen_N % logits_Nhw.shape[-1]
    labels_N = right_Nhw.flatten(1).gather(1, chosen_N[:, None])[:, 0].long()
    return torch.stack([x_N, y_N], dim=1).float() * 4 + 1.5, labels_N
