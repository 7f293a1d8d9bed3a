"""cluster.yaml and deploy/: Ray and the CRDs of KubeRay accept them, and every name in them exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.core import TyperGroup
from typer.main import get_command

from maskmill.jobs.cli import app

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("cluster.yaml", "deploy/local.yaml")
MANIFESTS = {"deploy/rayjob.yaml": "rayjobs", "deploy/raycluster.yaml": "rayclusters"}
CRDS = ROOT.parent / "shared" / "data" / "kuberay"  # the published CRDs, where the machine has them


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_a_launcher_file(name: str):
    config = prepare_config(read(name))
    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]


@pytest.mark.parametrize("key", ["initial_workers", "autoscaling_mode", "target_utilization_fraction", "worker_nodes"])
def test_ray_refuses_a_launcher_file_with_a_key_that_it_no_longer_has(key: str):
    with pytest.raises(jsonschema.ValidationError, match=key):
        validate_config(prepare_config(read("cluster.yaml")) | {key: 1})


def test_cluster_has_a_head_without_gpu_on_demand_and_workers_on_spot_first():
    types = read("cluster.yaml")["available_node_types"]
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert spot["node_config"]["InstanceType"] == on_demand["node_config"]["InstanceType"]
    assert spot["priority"] > on_demand["priority"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_file_is_edited_in_three_places(name: str):
    places = set(re.findall(r"# EDIT (\d)", (ROOT / name).read_text(encoding="utf-8")))
    assert places == {"1", "2", "3"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_token_is_mounted_where_ray_looks_for_it_and_authentication_is_on(name: str):
    config = read(name)
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]


def schema_of(crd: str) -> dict[str, Any]:
    """The JSON schema of a kind, with unknown fields refused as the server of Kubernetes does."""
    path = CRDS / f"ray.io_{crd}.yaml"
    if not path.exists():
        pytest.skip("no CRDs of KubeRay on this machine")
    versions = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1")
    return strict(schema)


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema["type"] = ["integer", "string"]
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        schema.setdefault("additionalProperties", False)
    return schema


def manifest(name: str) -> dict[str, Any]:
    content = read(name)
    content["metadata"] = {}  # the CRD says only that it is an object
    return content


@pytest.mark.parametrize(("name", "crd"), MANIFESTS.items())
def test_kuberay_accepts_a_manifest(name: str, crd: str):
    jsonschema.validate(manifest(name), schema_of(crd))


@pytest.mark.parametrize(("name", "crd"), MANIFESTS.items())
def test_kuberay_refuses_a_manifest_with_a_field_that_it_does_not_have(name: str, crd: str):
    content = manifest(name)
    content["spec"]["rayVersions"] = "2.60.0"
    with pytest.raises(jsonschema.ValidationError, match="rayVersions"):
        jsonschema.validate(content, schema_of(crd))


def test_both_manifests_describe_the_same_cluster():
    assert read("deploy/rayjob.yaml")["spec"]["rayClusterSpec"] == read("deploy/raycluster.yaml")["spec"]


def test_versions_are_those_of_the_pinned_dependencies():
    ray, maskmill = version("ray"), version("maskmill")
    assert f"FROM rayproject/ray:{ray}-py311" in (ROOT / "deploy/Dockerfile").read_text()
    assert read("deploy/raycluster.yaml")["spec"]["rayVersion"] == ray
    for name in (*LAUNCHERS, *MANIFESTS):
        assert set(re.findall(r"REGISTRY/maskmill:([\w.]+)", (ROOT / name).read_text())) == {maskmill}


def commands() -> list[str]:
    """The `maskmill` commands in the files, each on one line."""
    found: list[str] = []
    for name in (*LAUNCHERS, *MANIFESTS):
        text = (ROOT / name).read_text(encoding="utf-8")
        found += re.findall(r"(?:'|-- )(maskmill .*?)(?:'|\n)", text)
    return [*found, read("deploy/rayjob.yaml")["spec"]["entrypoint"]]


def test_commands_have_arguments_that_maskmill_accepts():
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    assert len(commands()) == 4
    for command in commands():
        _, name, *arguments = shlex.split(command)
        group.commands[name].make_context(name, arguments)


def test_dockerfile_copies_every_package():
    copied = set(re.findall(r"^COPY --chown=ray:users (\w+) \1$", (ROOT / "deploy/Dockerfile").read_text(), re.M))
    packages = {link.name for link in (ROOT / "src" / "maskmill").iterdir() if link.is_symlink()}
    assert copied == packages | {"src"}


def shell_script(dockerfile: str, context: Path) -> str:
    """The COPY and RUN steps of the Dockerfile as a script for the working directory."""
    lines = ["set -e"]
    for line in dockerfile.splitlines():
        words = line.split()
        if line.startswith("COPY"):
            *sources, target = [word for word in words[1:] if not word.startswith("--")]
            # Docker copies the content of a folder.
            folders = all((context / source).is_dir() for source in sources)
            paths = " ".join(shlex.quote(f"{context / source}{'/.' if folders else ''}") for source in sources)
            lines += [f"mkdir -p {target}", f"cp -a {paths} {target}"]
        elif line.startswith("RUN"):
            lines.append(line.removeprefix("RUN "))
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_steps_of_the_dockerfile_install_maskmill_in_a_clean_directory(tmp_path: Path):
    """Without a container runtime: a virtual environment in place of the base image, without an index."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    pip = tmp_path / "venv" / "bin" / "pip"
    pip.write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    pip.chmod(0o755)
    (packages,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    # The dependencies, but not the checkout, which a .pth file of the other environment adds.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    environment |= {"PIP_NO_BUILD_ISOLATION": "0"}  # pip reads this as: no isolation, so setuptools is not downloaded
    (tmp_path / "maskmill").mkdir()
    script = shell_script((ROOT / "deploy/Dockerfile").read_text(), ROOT)
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path / "maskmill", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"maskmill {version('maskmill')}" in done.stdout
    assert "mini (embedded)" in done.stdout
    assert (packages / "maskmill" / "jobs" / "cli.py").exists()
