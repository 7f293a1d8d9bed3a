"""What is built and installed: nothing but `maskmill`, complete, and at home among a user's own modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.fakes import picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
# Of the checkout nothing is to be found, nor of another virtual environment.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _run(*command: object, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _pip(*arguments: object, cwd: Path) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel of a clone in `from_clone` and the wheel of the sdist in `from_sdist`."""
    folder = tmp_path_factory.mktemp("built")
    clone = folder / "clone"
    shutil.copytree(ROOT / "src", clone / "src", symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    for link in (clone / "src" / "maskmill").iterdir():
        if link.is_symlink():
            shutil.copytree(ROOT / link.name, clone / link.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    _run(sys.executable, "-c", f"from setuptools import build_meta as b; b.build_sdist({str(folder)!r})", cwd=clone)
    wheel = ("wheel", "--no-build-isolation", "--no-deps", "--no-index")
    _pip(*wheel, "--wheel-dir", folder / "from_clone", clone, cwd=folder)
    _pip(*wheel, "--wheel-dir", folder / "from_sdist", *folder.glob("*.tar.gz"), cwd=folder)
    return folder


def _content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_only_maskmill_and_all_of_it(built: Path):
    (wheel,) = (built / "from_clone").iterdir()
    names = _content(wheel).keys()
    metadata = f"maskmill-{version('maskmill')}.dist-info"
    assert {name.split("/")[0] for name in names} == {"maskmill", metadata}
    links = [link for link in (ROOT / "src" / "maskmill").iterdir() if link.is_symlink()]
    expected = {f"maskmill/{path.relative_to(ROOT)}" for link in links for path in (ROOT / link.name).rglob("*.py")}
    expected |= {f"maskmill/{path.name}" for path in (ROOT / "src" / "maskmill").glob("*.py")}
    expected |= {"maskmill/py.typed", "maskmill/model/weights/mini.safetensors", "maskmill/tables/report/report.css"}
    expected |= {f"maskmill/tables/view/page/{path.name}" for path in (ROOT / "tables/view/page").iterdir()}
    assert {name for name in names if name.startswith("maskmill/")} == expected


def test_sdist_holds_files_where_the_clone_has_links_and_makes_the_same_wheel(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isreg() or member.isdir() for member in members)
    paths = {member.name.partition("/")[2] for member in members}
    assert {"src/maskmill/model/network.py", "src/maskmill/model/weights/mini.safetensors", "LICENSE"} <= paths
    (from_clone,), (from_sdist,) = ((built / name).iterdir() for name in ("from_clone", "from_sdist"))
    assert _content(from_sdist) == _content(from_clone)


@pytest.mark.ray
def test_installed_program_runs_where_the_user_has_modules_of_the_same_names(built: Path, tmp_path: Path):
    _run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    # The dependencies, but not what the other environment's own .pth files add: the checkout.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _pip("--python", python, "install", "--no-deps", "--no-index", *(built / "from_sdist").iterdir(), cwd=tmp_path)

    work = tmp_path / "work"
    (work / "pipeline").mkdir(parents=True)
    (work / "photographs").mkdir()
    hostile = "raise RuntimeError('a module of the user was imported')\n"
    for package in (packages / "maskmill").iterdir():
        (work / f"{package.stem}.py").write_text(hostile)
    for name in ("__init__", "config"):
        (work / "pipeline" / f"{name}.py").write_text(hostile)
    (work / "photographs" / "a.png").write_bytes(picture(0))

    maskmill = tmp_path / "venv" / "bin" / "maskmill"
    assert _run(maskmill, "--version", cwd=work) == f"maskmill {version('maskmill')}\n"
    _run(maskmill, "generate", "photographs", "out", "--points-per-side", 1, cwd=work)
    assert pq.read_table(work / "out" / "images")["status"].to_pylist() == ["ok"]
    where = _run(python, "-P", "-c", "import maskmill.api as api; print(api.__file__)", cwd=work)
    assert where.strip() == str(packages / "maskmill" / "api.py")
