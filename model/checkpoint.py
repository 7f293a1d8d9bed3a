"""Loads checkpoint files of every layout into our network, and saves the network to a file.

Our state dict has the key names of the official `.pth` files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskmill.model.config import NetworkConfig
from maskmill.model.errors import CheckpointError, one_line_cause
from maskmill.model.families import FAMILIES, find_variant
from maskmill.model.families.family import KeyPattern
from maskmill.model.network import Network

Layout = Literal["official", "Hugging Face", "maskmill"]
EMBEDDED_WEIGHTS = Path(__file__).parent / "weights" / "mini.safetensors"


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, and the sha256 (hex) of the file they came from."""

    network: Network
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file: float32 tensors under our key names, and their metadata.

    `variant` comes from the metadata, otherwise from the shape of the image encoder. `metadata` says how the network
    was trained.
    """

    path: Path
    state: dict[str, Tensor]
    layout: Layout
    stored_dtype: torch.dtype
    variant: str | None
    metadata: dict[str, str]


def load_model(variant: str, checkpoint: Path | None) -> LoadedModel:
    """The network `variant` on the CPU with the weights of a file. Without a file, `mini` uses the embedded weights.

    Raises:
        ConfigError: an unknown variant.
        CheckpointError: a file that is missing, damaged, unsafe or of another variant.

    Float32 weights are mapped into memory, not read: processes on one machine share the pages of the file, which the
    operating system reads once.
    """
    config = find_variant(variant)
    if checkpoint is None:
        checkpoint = embedded_checkpoint(variant)
    network = build_network(config, read_checkpoint(checkpoint))
    return LoadedModel(network, file_sha256(checkpoint))


def embedded_checkpoint(variant: str) -> Path:
    """The default checkpoint of a variant. Raises CheckpointError if it has none or the file is missing."""
    if variant != "mini":
        raise CheckpointError(
            f"{variant} has no embedded weights: give a file (--checkpoint FILE, or load_model({variant!r}, FILE))"
        )
    if not EMBEDDED_WEIGHTS.exists():
        raise CheckpointError(
            f"the embedded model has no weights yet: {EMBEDDED_WEIGHTS} is missing; run `maskmill train`"
        )
    return EMBEDDED_WEIGHTS


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a `.pth`, `.bin` or `.safetensors` file of any layout.

    Raises:
        CheckpointError: the file is missing, empty, damaged, or holds objects other than tensors.
    """
    tensors, metadata = _read_tensors(path)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    family = next((family for family in FAMILIES.values() if family.recognises(tensors.keys())), None)
    layout: Layout = "official"
    patterns = family.official_keys if family else ()
    if any(key.startswith("vision_encoder.") for key in tensors):
        layout = "Hugging Face"
        patterns = (*(family.hugging_face_keys if family else ()), *_HUGGING_FACE_KEYS)
    elif "variant" in metadata:
        layout, patterns = "maskmill", ()
    if family:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(family.unused_keys)}
    tensors = _rename(tensors, patterns, path)
    elements_by_dtype: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        elements_by_dtype[tensor.dtype] += tensor.numel()
    return Checkpoint(
        path,
        state={key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()},
        layout=layout,
        stored_dtype=elements_by_dtype.most_common(1)[0][0],
        variant=metadata.get("variant", family.variant_of(tensors) if family else None),
        metadata=metadata,
    )


def build_network(config: NetworkConfig, checkpoint: Checkpoint) -> Network:
    """The network of `config` with the tensors of a checkpoint.

    Raises:
        CheckpointError: keys are missing or unexpected, or shapes differ.
    """
    state = checkpoint.state
    with torch.device("meta"):
        network = Network(config)
    expected = network.state_dict()
    differing = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    problems = [
        _describe("missing keys", [key for key in expected if key not in state]),
        _describe("unexpected keys", [key for key in state if key not in expected]),
        _describe(
            "differing shapes",
            [f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}" for key in differing],
        ),
    ]
    if any(problems):
        variant = checkpoint.variant
        if variant not in (None, config.name):
            raise CheckpointError(
                f"{checkpoint.path} is not {config.name}: it looks like {variant}; "
                f"choose that model (--model {variant})"
            )
        raise CheckpointError(f"{checkpoint.path} does not fit {config.name}: {'; '.join(filter(None, problems))}")
    # `assign` uses the tensors of the checkpoint as parameters, without a copy and without random initialisation.
    network.load_state_dict(state, assign=True)
    return network.eval()


def save_checkpoint(
    network: Network, path: Path, facts: Mapping[str, str] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Writes safetensors: the parameters as `dtype`, with the variant and `facts` (how it was trained) as metadata.

    The file is renamed into place once it is complete.
    """
    parameters = dict(network.named_parameters())
    # Buffers keep their type: rounding the frequencies of the positional encoding would move every point.
    state = {
        key: tensor.detach().to("cpu", dtype if key in parameters else tensor.dtype).contiguous()
        for key, tensor in network.state_dict().items()
    }
    partial = path.with_name(f"{path.name}.partial")
    save_file(state, partial, metadata={**(facts or {}), "variant": network.config.name})
    os.replace(partial, path)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_HEADS = r"mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head)"
# Keys of the prompt encoder and the mask decoder in Hugging Face's layout, see `Family.hugging_face_keys`.
_HUGGING_FACE_KEYS = (
    # Files store this tensor under the first name, the second or both.
    (
        r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    # Every head has three layers. Hugging Face stores the middle one as a list of one layer.
    (rf"^({_HEADS})\.layers\.0\.", r"\1.layers.1."),
    (rf"^({_HEADS})\.proj_in\.", r"\1.layers.0."),
    (rf"^({_HEADS})\.proj_out\.", r"\1.layers.2."),
    (r"\.layer_norm(\d|_final_attn)\.", r".norm\1."),
)


def _rename(tensors: Mapping[str, Tensor], patterns: Sequence[KeyPattern], path: Path) -> dict[str, Tensor]:
    """The tensors under our keys."""
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        ours = key
        for pattern, name in patterns:
            ours = re.sub(pattern, name, ours, count=1)
        if ours in state and not torch.equal(state[ours], tensor):
            raise CheckpointError(f"{path} is damaged: {key} differs from its duplicate")
        state[ours] = tensor
    # Hugging Face's layout of SAM 2 stores the embeddings of all kinds of points as one tensor.
    point_embeddings = state.pop("prompt_encoder.point_embeddings.weight", None)
    if point_embeddings is not None:
        state |= {f"prompt_encoder.point_embeddings.{i}.weight": row for i, row in enumerate(point_embeddings.split(1))}
    return state


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file. Its first bytes show the format."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); fetch it again")
    if head[8:] == b"{":
        return _read_safetensors(path)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _read_pickle(path), {}
    raise CheckpointError(f"{path} is neither a PyTorch nor a safetensors file; fetch it again")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged; fetch it again ({error})") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # unpickling a damaged file can raise any exception
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise CheckpointError(
                f"{path} holds pickled Python code or objects ({code[1]}); maskmill loads tensors only"
            ) from error
        raise CheckpointError(f"{path} is truncated or damaged; fetch it again ({one_line_cause(error)})") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]  # beside it, files of unfinished training hold the state of the optimizer
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; a checkpoint is a dictionary of tensors")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds a {type(value).__name__} under {key!r}; a checkpoint is a dictionary of tensors only"
            )
    return dict(loaded)


def _describe(what: str, names: list[str]) -> str:
    """ "missing keys: 7 (a, b, c, ...)" with the first names; an empty string without names."""
    if not names:
        return ""
    shown = 3
    return f"{what}: {len(names)} ({', '.join(names[:shown])}{', ...' if len(names) > shown else ''})"
