"""`maskmill submit`, `jobs` and `doctor` on a real cluster: a head with dashboard and token, and its machines."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from maskmill.model.checkpoint import EMBEDDED_WEIGHTS
from maskmill.pipeline.parts import list_parts
from maskmill.pipeline.storage import open_storage
from testing.ray_head import LOOPBACK, RayHead, ray_head
from testing.tunnel import Tunnel
from tests.fakes import picture

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGES = 120
PATIENCE = 600.0  # seconds
# One image per shard, and one prompt per image.
SETTINGS = ("--device", "cpu", "--images-per-shard", "1", "--points-per-side", "1")
HERE = "/proc/self/cwd"  # a different folder for each machine of the test cluster, as on real machines


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """A head without CPUs, and the machine a with two. The home folder is the working directory of both."""
    with ray_head() as head, head.machine("a", cpus=2, labels="ray.io/node-group=workers"):
        yield head


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(IMAGES):
        (folder / f"{number:03d}.png").write_bytes(picture(number))
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "maskmill", *map(str, arguments)]


def run(head: RayHead, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs maskmill on a client of the cluster."""
    variables = head.environment | {"RAY_API_SERVER_ADDRESS": head.url} | environment
    return subprocess.run(
        command(*arguments), env=variables, capture_output=True, text=True, timeout=PATIENCE, cwd="/", check=False
    )


def start(head: RayHead, log: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """Starts maskmill on a client of the cluster, with its output in a file."""
    variables = head.environment | {"RAY_API_SERVER_ADDRESS": head.url}
    with log.open("wb") as stream:
        return subprocess.Popen(
            command(*arguments),
            env=variables,
            stdout=stream,
            stderr=stream,
            # A shell ignores SIGINT in the programs that it starts in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def wait_for(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def commits(out: Path) -> int:
    return len(list((out / "masks").glob("*.parquet")))


def jobs(head: RayHead) -> dict[str, dict]:
    """The jobs of the cluster, from Ray itself."""
    request = Request(f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
    with urlopen(request, timeout=30) as response:
        return {job["submission_id"]: job for job in json.load(response) if job["submission_id"]}


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines with errors, of the client and of the driver."""
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("maskmill: error: ")]


def test_submit_attaches_to_its_job_and_resumes_the_run_when_the_driver_was_killed_or_stopped(
    head: RayHead, photographs: Path, tmp_path: Path
):
    out = tmp_path / "out"
    submit = ("submit", photographs, out, *SETTINGS)
    # Two clients submit it at the same time: there is one job.
    clients = [start(head, tmp_path / name, *submit, "--detach") for name in ("client1", "client2")]
    assert [client.wait(PATIENCE) for client in clients] == [0, 0]
    first, same = ((tmp_path / name).read_text().splitlines()[-1] for name in ("client1", "client2"))
    assert first == same
    assert [job for job in jobs(head) if job.startswith(first)] == [first]
    assert re.fullmatch(r"maskmill-out-[0-9a-f]{10}", first)
    assert jobs(head)[first]["runtime_env"].keys() == {"env_vars"}  # nothing was uploaded

    # A second submit attaches and follows the log. Ctrl-C detaches it.
    attached, attached_log = start(head, tmp_path / "attached", *submit), tmp_path / "attached"
    following, following_log = start(head, tmp_path / "log", "jobs", "logs", first, "--follow"), tmp_path / "log"
    wait_for("nothing was followed", lambda: "Running entrypoint" in attached_log.read_text())
    attached.send_signal(signal.SIGINT)
    assert attached.wait(PATIENCE) == 130
    assert f"maskmill: attached to the running job {first}\n" in attached_log.read_text()
    line = f"maskmill: detached, the job goes on: maskmill jobs logs --follow {first}\n"
    assert attached_log.read_text().endswith(line)
    assert jobs(head)[first]["status"] == "RUNNING"

    # The driver dies.
    wait_for("no shard was committed", lambda: commits(out) > 2)
    os.kill(int(jobs(head)[first]["driver_info"]["pid"]), signal.SIGKILL)
    assert following.wait(PATIENCE) == 128 + signal.SIGKILL
    assert f"{first} failed: signal 9 killed its driver: finished work is kept" in following_log.read_text()
    done = commits(out)
    assert 0 < done < IMAGES

    # The same command starts it again; then it is stopped.
    resumed = run(head, *submit, "--detach")
    second = resumed.stdout.strip()
    assert second == f"{first}-2"
    wait_for("no shard was committed", lambda: commits(out) > done + 2)
    stopped = run(head, "jobs", "stop", second)
    assert (stopped.returncode, stopped.stderr) == (0, f"maskmill: {second} has ended: stopped\n")
    assert "stopping: the shards in progress have 25 s to finish" in run(head, "jobs", "logs", second).stdout
    assert commits(out) < IMAGES

    finished = run(head, *submit)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"images    {IMAGES} ({IMAGES} ok, 0 failed)" in finished.stdout
    assert list_parts(open_storage(str(out)), "images") == [f"{number:05d}" for number in range(IMAGES)]
    assert run(head, "verify", out).returncode == 0

    listed = [line.split()[:2] for line in run(head, "jobs", "list").stdout.splitlines() if first in line]
    assert listed == [[first, "failed"], [second, "stopped"], [f"{first}-3", "succeeded"]]
    assert all(str(out) in line for line in run(head, "jobs", "list").stdout.splitlines() if first in line)


def test_driver_runs_on_the_machine_with_the_label(head: RayHead, photographs: Path, tmp_path: Path):
    options = ("--driver-label", "ray.io/node-group=workers", "--include", "000.png")
    done = run(head, "submit", photographs, tmp_path / "out", *SETTINGS, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"submitted (\S+)", done.stderr)
    assert found
    request = Request(f"{head.url}/api/v0/nodes?detail=1", headers={"Authorization": f"Bearer {head.token}"})
    with urlopen(request, timeout=30) as response:
        nodes = {node["node_id"]: node["node_name"] for node in json.load(response)["data"]["result"]["result"]}
    assert nodes[jobs(head)[found[1]]["driver_node_id"]] == "a"


def test_label_that_no_machine_has_is_refused(head: RayHead, photographs: Path, tmp_path: Path):
    done = run(head, "submit", photographs, tmp_path / "out", "--driver-label", "ray.io/node-group=nothing")
    assert done.returncode == 1
    assert done.stderr == (
        "maskmill: error: no machine of the cluster has the labels ray.io/node-group=nothing, so the driver could "
        "never start: choose from ray.io/node-group=workers\n"
    )


def test_resources_that_the_cluster_never_has_end_the_job(head: RayHead, photographs: Path, tmp_path: Path):
    done = run(head, "submit", photographs, tmp_path / "out", "--device", "cuda")
    assert done.returncode == 1
    assert errors(done)[0] == "maskmill: error: no GPU in this cluster for device 'cuda'; choose auto or cpu"
    assert len(errors(done)) == 2  # and that the job failed
    assert not (tmp_path / "out" / "_run.json").exists()


def test_another_version_on_the_client_is_found(head: RayHead, photographs: Path, tmp_path: Path):
    """The cluster gets version 9.9.9 as a wheel. It has only the metadata: the code stays that of the test."""
    wheel = tmp_path / "maskmill-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("maskmill-9.9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: maskmill\nVersion: 9.9.9\n")
    done = run(head, "submit", photographs, tmp_path / "out", *SETTINGS, "--wheel", wheel)
    assert done.returncode == 1
    assert re.fullmatch(
        r"maskmill: error: the client has maskmill 0\.\S+ and the cluster 9\.9\.9: install the same version, or send "
        r"yours with --wheel",
        errors(done)[0],
    )
    assert len(errors(done)) == 2


@pytest.fixture(scope="module")
def diagnosis(head: RayHead, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The problems of a cluster with two bad machines. Both pretend to have a GPU, so that they would get the work.

    b has no images, another folder as OUT, other weights and no GPU; c has another version of maskmill.
    """
    shutil.copytree(photographs, head.folder / "photographs")
    shutil.copy(EMBEDDED_WEIGHTS, head.folder / "weights.safetensors")
    b = tmp_path_factory.mktemp("b")
    (b / "out").mkdir()
    (b / "weights.safetensors").write_bytes(b"others")
    c = tmp_path_factory.mktemp("c")
    (c / "maskmill-9.9.9.dist-info").mkdir()
    (c / "maskmill-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: maskmill\nVersion: 9.9.9\n")
    other = {"PYTHONPATH": f"{c}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with head.machine("b", gpus=1, folder=b), head.machine("c", gpus=1, folder=c, environment=other):
        done = run(head, "doctor", f"{HERE}/photographs", f"{HERE}/out", "--checkpoint", f"{HERE}/weights.safetensors")
    assert done.returncode == 1, done.stdout + done.stderr
    return [line.removeprefix("maskmill: error: ") for line in errors(done)]


@pytest.mark.parametrize(
    "problem",
    [
        rf"b: {HERE}/photographs: No such file or directory: every machine must be able to read SOURCE: .*",
        rf"b: {HERE}/out: not the folder that the driver writes to.*: every machine must be able to write OUT: .*",
        rf"b: {HERE}/weights.safetensors: sha256 is .*, but the run has .*: put the checkpoint .* on every machine",
        r"b: torch \S+ cannot use the GPUs that Ray counts \(.*\): compare with nvidia-smi, and install a .*",
        r"c: maskmill 9\.9\.9 here and 0\.\S+ at the driver: use one image, or the same packages, on all machines",
    ],
    ids=["image", "output", "checkpoint", "cuda", "version"],
)
def test_doctor_finds_what_is_wrong_with_a_machine(diagnosis: list[str], problem: str):
    assert [line for line in diagnosis if re.fullmatch(problem, line)]


def test_doctor_blames_only_the_bad_machines(diagnosis: list[str]):
    assert {line.partition(":")[0] for line in diagnosis} == {"b", "c", diagnosis[-1].partition(":")[0]}
    assert re.fullmatch(r"maskmill-doctor-\S+ failed with exit code 1: the cluster is not ready .*", diagnosis[-1])


def test_doctor_names_the_autoscaler_type_that_would_fit_when_no_machine_has_the_labels(
    head: RayHead, photographs: Path, tmp_path: Path
):
    """As a driver on a machine of the cluster, where Ray's launcher has left its file."""
    types = "{gpu_spot: {resources: {GPU: 1}, labels: {ray.io/market-type: spot}}}"
    (tmp_path / "ray_bootstrap_config.yaml").write_text(f"available_node_types: {types}\n")
    arguments = ("doctor", photographs, tmp_path / "out", "--address", head.address)
    wanted = ("--device", "cuda", "--labels", "ray.io/market-type=spot")
    done = run(head, *arguments, *wanted, HOME=str(tmp_path))
    assert errors(done) == [
        "maskmill: error: no machine of this cluster has the labels of --labels. The autoscaler can add machines of "
        "the type gpu_spot: ask for them with --workers (labels of the machines: ray.io/node-group=workers)"
    ]


def test_doctor_checks_this_machine_when_there_is_no_cluster(photographs: Path, tmp_path: Path):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for checkpoint, code in ((), 0), (("--checkpoint", "missing.pth"), 1):
        arguments = command("doctor", photographs, "out", *checkpoint)
        done = subprocess.run(arguments, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "cluster   1 machine, " in done.stdout
        assert ("checks    ok: " in done.stdout) == (code == 0)
    host = socket.gethostname()
    assert re.fullmatch(
        rf"maskmill: error: the driver, {host} \(\S+\): {tmp_path}/missing.pth: no such .*", errors(done)[0]
    )


def test_wrong_token_is_one_line(head: RayHead):
    done = run(head, "jobs", "list", RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"maskmill: error: {head.url}: the cluster refuses the token (Authentication failed: "
    )
    assert done.stderr.endswith("of the cluster (on its head: `ray get-auth-token`)\n")
    assert done.stderr.count("\n") == 1


def test_unknown_job_is_one_line(head: RayHead):
    for arguments in (("logs", "nothing"), ("logs", "nothing", "--follow"), ("stop", "nothing")):
        done = run(head, "jobs", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"maskmill: error: {head.url}: there is no job nothing: see `maskmill jobs list`\n"


@pytest.fixture
def tunnel(head: RayHead) -> Iterator[Tunnel]:
    with Tunnel((LOOPBACK, head.dashboard_port)) as tunnel:
        yield tunnel


def test_log_is_followed_without_a_gap_when_the_connection_is_cut(head: RayHead, tunnel: Tunnel, tmp_path: Path):
    script = "for number in 1 2 3 4 5 6 7 8; do echo line $number; sleep 1; done"
    request = Request(
        f"{head.url}/api/jobs/",
        data=json.dumps(
            {"entrypoint": script, "submission_id": "counting", "metadata": {"maskmill_out": "x"}}
        ).encode(),
        headers={"Authorization": f"Bearer {head.token}"},
    )
    urlopen(request, timeout=30).close()
    log = tmp_path / "log"
    following = start(head, log, "jobs", "logs", "counting", "--follow", "--address", tunnel.url)
    for line in ("line 2\n", "line 5\n"):
        wait_for(line, lambda line=line: line in log.read_text())
        tunnel.cut()
    assert following.wait(PATIENCE) == 0
    assert re.findall(r"^line (\d)$", log.read_text(), re.MULTILINE) == list("12345678")


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["mute", "closed"])
def test_address_without_a_dashboard_is_one_line(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    address = request.getfixturevalue(kind)
    done = subprocess.run(
        command("submit", "/photographs", tmp_path / "out", "--address", address),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"maskmill: error: no Ray dashboard at http://{address} (")
    assert done.stderr.count("\n") == 1
