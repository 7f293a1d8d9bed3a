"""Images with masks from people or a model, for training and evaluation."""

from maskmill.annotations.opening import open_annotations
from maskmill.annotations.records import AnnotatedImage, AnnotatedImages, AnnotationError

__all__ = ["AnnotatedImage", "AnnotatedImages", "AnnotationError", "open_annotations"]
