"""Mask arithmetic: scores, boxes, NMS, small regions, RLE. Pure functions over tensors and arrays."""
