"""Environments that batch systems and containers make: each command works there, or ends in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from tests.fakes import FakeEngine, picture
from tests.runs import begin, run

ROOT = Path(__file__).parents[2]
MASKMILL = [sys.executable, "-c", "import sys; from maskmill.jobs.cli import main; sys.exit(main())"]


def run_command(command: list[str], changes: Mapping[str, str | None]) -> subprocess.CompletedProcess[str]:
    """Runs a command, from the root of the repository, in this environment with changes; None unsets a variable."""
    environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")


# A user without an account. It can write neither its home folder nor the package.

UID = 12345


def as_container_user(command: list[str]) -> list[str]:
    """The command, run by a user without an account, who can read every file and write none of ours."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can run a command as another user, with setpriv")
    may_read = "-all,+dac_read_search"
    capabilities = ["--inh-caps", may_read, "--ambient-caps", may_read, "--bounding-set", may_read]
    return ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", *capabilities, *command]


@pytest.fixture
def writable(tmp_path: Path) -> Path:
    """The only folder that the user without an account can write."""
    folder = tmp_path / "writable"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, UID, UID)
    return folder


NMS = "import torch; from maskmill.filters.nms import nms; print(nms(torch.ones(2, 4), torch.ones(2), 0.5).tolist())"


@pytest.mark.parametrize("home", ["/nonexistent", "/", None])
def test_compiled_code_runs_when_neither_home_nor_package_can_be_written(writable: Path, home: str | None):
    command = as_container_user([sys.executable, "-c", NMS])
    changes = {"HOME": home, "TMPDIR": str(writable), "XDG_CACHE_HOME": None, "NUMBA_CACHE_DIR": None}
    done = run_command(command, changes)
    assert (done.stdout, done.stderr) == ("[0, 1]\n", "")
    (cache,) = writable.iterdir()
    assert cache.stat().st_uid == UID
    assert cache.stat().st_mode & 0o077 == 0
    assert list(cache.rglob("*.nbc"))


def test_cache_that_others_can_write_is_refused_in_one_line(writable: Path):
    (writable / f"maskmill-{UID}").mkdir(mode=0o777)
    command = as_container_user([*MASKMILL, "generate", str(writable), str(writable / "out")])
    done = run_command(command, {"HOME": "/nonexistent", "TMPDIR": str(writable), "NUMBA_CACHE_DIR": None})
    assert done.returncode == 1
    assert "only this user can write: remove it, or set TMPDIR" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, "{writable}/maskmill-12345/triton"),
        ({"TRITON_CACHE_DIR": "/theirs"}, "/theirs"),
        ({"TRITON_HOME": "/x"}, ""),
    ],
)
def test_triton_caches_in_the_private_folder_when_there_is_no_home(
    writable: Path, environment: dict[str, str], chosen: str
):
    code = "import os; from maskmill.compiled import choose_triton_cache; choose_triton_cache();"
    code += "print(os.getenv('TRITON_CACHE_DIR', ''))"
    changes = {"HOME": "/nonexistent", "TMPDIR": str(writable), "TRITON_CACHE_DIR": None, "TRITON_HOME": None}
    command = as_container_user([sys.executable, "-c", code])
    done = run_command(command, {**changes, **environment})
    assert done.stdout == chosen.format(writable=writable) + "\n"


@pytest.mark.ray
@pytest.mark.slow
def test_generate_runs_when_the_user_has_no_account_and_no_home(photographs: Path, writable: Path):
    command = as_container_user([*MASKMILL, "generate", str(photographs), str(writable / "out")])
    command += ["--points-per-side", "1", "--device", "cpu"]
    unset = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "USER", "LOGNAME", "NUMBA_CACHE_DIR")
    done = run_command(command, {"HOME": "/nonexistent", "TMPDIR": str(writable), **dict.fromkeys(unset)})
    assert done.stderr == ""
    assert "3 (3 ok, 0 failed)" in done.stdout
    assert done.returncode == 0


# What Ray's workers get.


@dataclass(frozen=True)
class Reporter(FakeEngine):
    """Writes down what the process of a worker is like."""

    def __call__(self) -> Reporter:
        report = {"niceness": os.nice(0), "folder": ray.get_runtime_context().get_temp_dir()}
        (self.folder / "report.json").write_text(json.dumps(report))
        return self


def report(path: str) -> None:
    """A run with Reporter for an engine."""
    from maskmill.pipeline import cluster

    folder = Path(path)
    job, plan = begin(folder / "photographs", folder / "out", images_per_shard=3, engine=Reporter(folder))
    cluster.run(job, plan, lambda _: None, device="cpu")


def report_of_worker(folder: Path, changes: Mapping[str, str | None]) -> dict[str, int | str]:
    """What a worker is like where the command is run with niceness 3 and this environment."""
    code = "import sys; from tests.jobs.test_environment import report; report(sys.argv[1])"
    done = run_command(["nice", "-n", "3", sys.executable, "-c", code, str(folder)], changes)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("wish", "niceness"), [(None, 3), ("2", 5)])
def test_workers_have_the_priority_of_the_command_unless_the_user_says_otherwise(
    photographs: Path, wish: str | None, niceness: int
):
    report = report_of_worker(photographs.parent, {"RAY_worker_niceness": wish})
    assert report["niceness"] == min(os.nice(0) + niceness, 19)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("variable", "how"), [("TMPDIR", "long"), ("RAY_TMPDIR", "not a folder")])
def test_ray_gets_a_short_temporary_folder_when_the_one_it_was_given_is_no_use(
    photographs: Path, variable: str, how: str
):
    folder = photographs.parent / ("x" * 100)
    folder.mkdir() if how == "long" else folder.touch()
    report = report_of_worker(photographs.parent, {"TMPDIR": None, "RAY_TMPDIR": None, variable: str(folder)})
    assert "maskmill-ray-" in str(report["folder"])
    assert not Path(str(report["folder"])).exists()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_that_cannot_start_is_one_line_with_a_remedy(photographs: Path, tmp_path: Path):
    command = ["sh", "-c", 'ulimit -n 32 && exec "$@"', "sh", *MASKMILL, "generate", str(photographs)]
    done = run_command([*command, str(tmp_path / "out"), "--device", "cpu"], {})
    assert done.returncode == 1
    assert done.stderr.startswith("maskmill: error: Ray cannot start on this machine: ")
    assert "`ulimit -n` low?" in done.stderr
    assert done.stderr.count("\n") == 1


# Output that goes nowhere, or is not in UTF-8.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run on three images."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "photographs").mkdir()
    for seed in range(3):
        (folder / "photographs" / f"p{seed}.png").write_bytes(picture(seed))
    run(folder / "photographs", folder / "out")
    return folder / "out"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["nonsense"],
        ["info"],
        ["verify", "OUT"],
        ["compare", "OUT", "OUT"],
        ["preview", "OUT", "--to", "TO"],
    ],
)
def test_commands_end_quietly_when_the_pipe_is_closed(arguments: list[str], finished: Path, tmp_path: Path):
    real = {"OUT": finished, "TO": tmp_path / "x.png"}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [*MASKMILL, *(str(real.get(argument, argument)) for argument in arguments)]
        done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    usage_error = arguments == ["nonsense"]
    assert done.returncode == (2 if usage_error else 141)
    assert done.stderr.count("\n") == usage_error


def test_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MASKMILL, "--version"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}])
def test_names_are_escaped_when_stdout_takes_only_ascii(finished: Path, tmp_path: Path, environment: dict[str, str]):
    out = tmp_path / "Gemälde"
    shutil.copytree(finished, out)
    done = run_command([*MASKMILL, "preview", str(out), "--to", str(tmp_path / "Öl.png")], environment)
    assert (done.stderr, done.returncode) == ("", 0)
    assert (tmp_path / "Öl.png").exists()
    assert "l.png" in done.stdout
    assert done.stdout.isascii()
    assert run_command([*MASKMILL, "compare", str(out), str(out)], environment).returncode == 0
    (out / "masks" / "part-00000.parquet").unlink()
    done = run_command([*MASKMILL, "verify", str(out)], environment)
    assert (done.stderr, done.returncode) == ("", 1)


@pytest.mark.ray
@pytest.mark.slow
def test_generate_ends_with_its_summary_when_stdout_takes_only_ascii(photographs: Path, tmp_path: Path):
    command = [*MASKMILL, "generate", str(photographs), str(tmp_path / "Gemälde"), "--points-per-side", "1"]
    done = run_command([*command, "--device", "cpu"], ASCII)
    assert (done.stderr, done.returncode) == ("", 0)
    assert "3 (3 ok, 0 failed)" in done.stdout
    assert (tmp_path / "Gemälde" / "masks" / "part-00000.parquet").exists()
