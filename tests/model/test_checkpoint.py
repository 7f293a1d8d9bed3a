"""Checkpoints of every layout load; everything else is refused in one clear line."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskmill.model.checkpoint import EMBEDDED_WEIGHTS, build_network, load_model, read_checkpoint, save_checkpoint
from maskmill.model.errors import CheckpointError, ConfigError
from maskmill.model.families import VARIANTS
from maskmill.model.network import Network
from testing.hugging_face import random_hugging_face
from testing.networks import SMALL_CONFIGS, random_network

# Block numbers of two digits, as in the published variants.
CONFIG = replace(SMALL_CONFIGS["grid7"], encoder_depth=12)
POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


@pytest.fixture(scope="module")
def hugging_face_state() -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in random_hugging_face(CONFIG).state_dict().items()}


def assert_same_state(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key


def refusal(path: Path, config: Any = CONFIG) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        build_network(config, read_checkpoint(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_official_layout_loads_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in random_network(CONFIG).state_dict().items()}
    path = tmp_path / "sam.pth"
    torch.save(state, path)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.layout, checkpoint.stored_dtype) == ("official", dtype)
    network = build_network(CONFIG, checkpoint)
    assert_same_state(dict(network.state_dict()), {key: tensor.float() for key, tensor in state.items()})
    assert not network.training


def test_official_layout_loads_when_saved_in_the_format_before_zip(tmp_path: Path) -> None:
    network, path = random_network(CONFIG), tmp_path / "sam.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same_state(read_checkpoint(path).state, dict(network.state_dict()))


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize(
    "left_out",
    ["", "shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"],
)
def test_hugging_face_layout_loads(
    suffix: str, left_out: str, hugging_face_state: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {key: tensor for key, tensor in hugging_face_state.items() if key != left_out}
    path = tmp_path / f"model{suffix}"
    torch.save(state, path) if suffix == ".bin" else save_file(state, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.layout == "Hugging Face"
    network = build_network(CONFIG, checkpoint)
    assert torch.equal(
        network.state_dict()["image_encoder.blocks.11.mlp.lin2.bias"], state["vision_encoder.layers.11.mlp.lin2.bias"]
    )


def test_hugging_face_layout_loads_when_the_library_itself_saved_it(tmp_path: Path) -> None:
    theirs = random_hugging_face(CONFIG)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    network = build_network(CONFIG, read_checkpoint(path))
    assert torch.equal(
        network.state_dict()[POSITIONS], theirs.state_dict()["shared_image_embedding.positional_embedding"]
    )


def test_saved_checkpoint_loads_with_its_facts(tmp_path: Path) -> None:
    network, path = random_network(CONFIG), tmp_path / "ours.safetensors"
    save_checkpoint(network, path, {"steps": "12"})
    checkpoint = read_checkpoint(path)
    assert (checkpoint.layout, checkpoint.variant) == ("maskmill", "grid7")
    assert checkpoint.metadata["steps"] == "12"
    assert_same_state(checkpoint.state, dict(network.state_dict()))
    assert os.listdir(tmp_path) == ["ours.safetensors"]


def test_saved_checkpoint_is_half_as_large_when_stored_as_float16(tmp_path: Path) -> None:
    network, path = random_network(CONFIG), tmp_path / "ours.safetensors"
    save_checkpoint(network, path, dtype=torch.float16)
    assert read_checkpoint(path).stored_dtype == torch.float16
    loaded = read_checkpoint(path).state
    # The frequencies of the positions are not rounded.
    assert torch.equal(loaded[POSITIONS], network.state_dict()[POSITIONS])
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded[key], tensor, rtol=1e-3, atol=1e-4)


def test_load_model_gives_the_network_and_the_sha256_of_its_file(tmp_path: Path) -> None:
    network, path = Network(VARIANTS["mini"]), tmp_path / "mini.safetensors"
    save_checkpoint(network, path)
    loaded = load_model("mini", path)
    assert loaded.network.config == VARIANTS["mini"]
    assert_same_state(dict(loaded.network.state_dict()), dict(network.state_dict()))
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_load_model_takes_the_embedded_weights_when_none_are_named() -> None:
    assert load_model("mini", None).network.config == VARIANTS["mini"]
    assert read_checkpoint(EMBEDDED_WEIGHTS).variant == "mini"


@pytest.mark.parametrize(
    ("variant", "error", "message"),
    [
        ("vit_b", CheckpointError, "vit_b has no embedded weights"),
        ("vit_g", ConfigError, "there is no model 'vit_g'; choose one of vit_b"),
    ],
)
def test_load_model_refuses_variants_without_weights(variant: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(variant, None)


LOADING = """
import re, sys
from pathlib import Path
from maskmill.model.checkpoint import load_model

path = sys.argv[1]
network = load_model("mini", Path(path)).network
print(sum(float(tensor.sum()) for tensor in network.state_dict().values()), flush=True)  # touches every page
sys.stdin.read(1)
kilobytes, mapped = dict.fromkeys(("Rss", "Pss", "Anonymous"), 0), False
for line in Path("/proc/self/smaps").read_text().splitlines():
    if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
        mapped = line.endswith(path)
    elif mapped and (name := line.partition(":")[0]) in kilobytes:
        kilobytes[name] += int(line.split()[1])
print(*kilobytes.values(), flush=True)
sys.stdin.read(1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which memory is shared")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_processes_of_a_machine_have_one_copy_of_the_weights_in_memory(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mini{suffix}"
    state = read_checkpoint(EMBEDDED_WEIGHTS).state  # as float32; the file has float16
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"variant": "mini"})
    command = [sys.executable, "-c", LOADING, str(path)]
    with ExitStack() as stack:
        workers = [stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, text=True)) for _ in range(2)]

        def ask(worker: Popen[str]) -> str:
            assert worker.stdout
            return worker.stdout.readline()

        def go_on(worker: Popen[str]) -> None:
            assert worker.stdin
            worker.stdin.write("x")
            worker.stdin.flush()

        sums = [ask(worker) for worker in workers]  # both have the weights now
        assert sums[0] == sums[1] != ""
        for worker in workers:
            go_on(worker)
        for worker in workers:
            rss, pss, anonymous = map(int, ask(worker).split())
            assert 1024 * rss > 0.9 * path.stat().st_size
            assert anonymous == 0, "no page is a copy"
            assert pss < 0.6 * rss, "half of each page belongs to the other process"
        for worker in workers:
            go_on(worker)


def test_wrong_variant_is_named(tmp_path: Path) -> None:
    state = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 1024)}
    state |= {f"image_encoder.blocks.{i}.norm1.bias": torch.zeros(1024) for i in range(24)}
    path = tmp_path / "sam.pth"
    torch.save(state, path)
    assert "is not vit_b: it looks like vit_l; choose that model (--model vit_l)" in refusal(path, VARIANTS["vit_b"])


def test_keys_and_shapes_are_strict(tmp_path: Path) -> None:
    state, path = random_network(CONFIG).state_dict(), tmp_path / "sam.pth"
    norms = [key for key in state if key.startswith("image_encoder.blocks") and ".norm1." in key]
    for key in norms:
        del state[key]
    state["optimizer.step"] = torch.zeros(1)
    state["mask_decoder.mask_tokens.weight"] = torch.zeros(3, CONFIG.embed_dim)
    torch.save(state, path)
    message = refusal(path)
    assert f"missing keys: 24 ({', '.join(norms[:3])}, ...)" in message
    assert "unexpected keys: 1 (optimizer.step)" in message
    assert "differing shapes: 1 (mask_decoder.mask_tokens.weight (3, 32) instead of (4, 32))" in message


def test_hugging_face_duplicates_must_agree(hugging_face_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(hugging_face_state | {"shared_image_embedding.positional_embedding": torch.zeros(2, 16)}, path)
    assert "differs from its duplicate" in refusal(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "nowhere.pth")
    assert "Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1", b"x"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(content)
    assert "neither a PyTorch nor a safetensors file" in refusal(path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    path.touch()
    assert "is empty (0 bytes)" in refusal(path)


@pytest.mark.parametrize("garbage", [b"PK\x03\x04", b"\x80\x02", b"\x00\x01\x00\x00\x00\x00\x00\x00{"])
def test_garbage_is_refused_when_it_begins_well(garbage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(garbage + bytes(range(256)) * 40)
    assert "truncated or damaged" in refusal(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "before zip", "safetensors"])
def test_truncated_file_is_refused(kind: str, kept: float, tmp_path: Path) -> None:
    state, path = random_network(CONFIG).state_dict(), tmp_path / "sam"
    if kind == "safetensors":
        save_file(dict(state), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    os.truncate(path, int(path.stat().st_size * kept))
    assert "truncated or damaged" in refusal(path)


class MakesAFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "sam.pth", tmp_path / "trace"
    torch.save({"image_encoder.pos_embed": MakesAFolder(trace)}, path)
    assert "holds pickled Python code or objects (posix.mkdir)" in refusal(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list; a checkpoint is a dictionary of tensors"),
        ({"weights": {"weight": torch.zeros(1)}, "epoch": 3}, "holds a dict under 'weights'"),
        ({}, "holds no tensors"),
    ],
)
def test_other_objects_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    torch.save(content, path)
    assert message in refusal(path)


def test_content_decides_the_format_when_the_suffix_is_another(tmp_path: Path) -> None:
    network, path = random_network(CONFIG), tmp_path / "model.bin"
    save_checkpoint(network, path)
    assert load_file(path).keys() == read_checkpoint(path).state.keys()
