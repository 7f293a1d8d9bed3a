"""maskmill: automatic mask generation with Segment Anything, from object storage to Parquet, on Ray.

    model = maskmill.load_model("vit_b", "sam_vit_b_01ec64.pth")  # or load_model(): the embedded model
    masks = maskmill.generate(pixels, model)
    image = maskmill.encode(pixels, model)
    run = maskmill.open_run("out/")

This import loads nothing else: torch, numpy and pyarrow are loaded when a function is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskmill.api import encode, generate, load_model, open_run
    from maskmill.model.errors import MaskmillError
    from maskmill.model.predictor import EncodedImage, Prediction
    from maskmill.pipeline.config import GeneratorConfig
    from maskmill.pipeline.finished import RunImage
    from maskmill.pipeline.records import ImageMasks
    from maskmill.tables.run import Run

    __version__: str

__all__ = [
    "EncodedImage",
    "GeneratorConfig",
    "ImageMasks",
    "MaskmillError",
    "Prediction",
    "Run",
    "RunImage",
    "__version__",
    "encode",
    "generate",
    "load_model",
    "open_run",
]

_MODULES = {
    "EncodedImage": "model.predictor",
    "GeneratorConfig": "pipeline.config",
    "ImageMasks": "pipeline.records",
    "MaskmillError": "model.errors",
    "Prediction": "model.predictor",
    "Run": "tables.run",
    "RunImage": "pipeline.finished",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("maskmill")
    if name not in __all__:
        raise AttributeError(f"module 'maskmill' has no attribute {name!r}")
    return getattr(import_module(f"maskmill.{_MODULES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return __all__
