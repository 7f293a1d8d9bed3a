"""Images with the masks that people, or a model, drew on them: what is trained on and evaluated against."""

from maskmill.annotations.opening import open_annotations
from maskmill.annotations.records import AnnotatedImage, AnnotatedImages, AnnotationError

__all__ = ["AnnotatedImage", "AnnotatedImages", "AnnotationError", "open_annotations"]
