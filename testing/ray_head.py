"""A Ray cluster of processes on this machine: a head with dashboard and token, and machines that join it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by the address of the machine in its network
START_SECONDS = 120.0
STARTS = 3  # Ray gives up after 30 seconds, which a busy machine may need
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class RayHead:
    """A head without CPUs. Every process is in `folder`, which is its working directory too."""

    folder: Path
    port: int
    dashboard_port: int
    token: str

    @property
    def address(self) -> str:
        """Of Ray itself, for drivers on a machine of the cluster."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """Of the dashboard."""
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its processes, and of its clients."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }

    @contextmanager
    def machine(
        self,
        name: str,
        cpus: int = 1,
        gpus: int = 0,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        labels: str = "",
    ) -> Iterator[None]:
        """A machine of the cluster for the duration of the block."""
        options = ["--address", self.address, f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        options += ["--labels", labels] if labels else []
        with self._started(name, options, folder or self.folder, self.environment | dict(environment or {})):
            yield

    @contextmanager
    def _started(self, name: str, options: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
        """The processes of one machine. Ended by their ids: `ray stop` would end all of Ray here."""
        for _ in range(STARTS):
            process = _ray_start(["--node-name", name, *options], folder, environment)
            try:
                if self._await(name, process):
                    yield
                    return
            finally:
                _end(process)
        raise AssertionError(f"{name} does not start: see {folder}/ray-start.log")

    def _await(self, name: str, process: subprocess.Popen[bytes]) -> bool:
        """Waits until the machine is in the cluster. False if its process has ended or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while f'"node_name": "{name}"' not in self._nodes():
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def _nodes(self) -> str:
        url = f"{self.url}/api/v0/nodes?detail=1&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        request = Request(url, headers={"Authorization": f"Bearer {self.token}"})
        with suppress(URLError, OSError), urlopen(request, timeout=10) as response:
            return response.read().decode()
        return ""


@contextmanager
def ray_head() -> Iterator[RayHead]:
    """Starts a head on free ports, and ends exactly its processes after the block."""
    folder = Path(tempfile.mkdtemp(prefix="mmhead-", dir="/tmp"))  # short, for the paths of Ray's sockets
    try:
        port, dashboard_port, client_port = _free_ports(3)
        head = RayHead(folder, port, dashboard_port, secrets.token_hex(32))
        options = ["--head", f"--port={port}", "--include-dashboard=true", f"--dashboard-host={LOOPBACK}"]
        options += [f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]
        options += [f"--temp-dir={folder}/ray", "--num-cpus=0", "--num-gpus=0"]
        with head._started("head", options, folder, head.environment):
            yield head
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ray_start(options: list[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", f"--node-ip-address={LOOPBACK}"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats"]
    command += [f"--dashboard-agent-listen-port={_free_ports(1)[0]}", *options]
    with (folder / "ray-start.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=log, stderr=log, start_new_session=True
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # it ends the processes of its machine
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
