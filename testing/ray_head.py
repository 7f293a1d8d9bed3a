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
START_SECONDS = 90.0
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
        options = ["--address", self.address, "--node-name", name, f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        options += ["--labels", labels] if labels else []
        variables = self.environment | dict(environment or {})
        with _ray_start(options, folder or self.folder, variables):
            self._await(f'"node_name": "{name}"')
            yield

    def _await(self, text: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while text not in self._nodes():
            assert time.monotonic() < deadline, f"{text} did not appear in {START_SECONDS:.0f} s"
            time.sleep(0.2)

    def _nodes(self) -> str:
        request = Request(f"{self.url}/api/v0/nodes?detail=1", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urlopen(request, timeout=10) as response:
                return response.read().decode()
        except (URLError, OSError):
            return ""


@contextmanager
def ray_head(environment: Mapping[str, str] | None = None) -> Iterator[RayHead]:
    """Starts a head on free ports, and ends exactly its processes after the block."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="mmhead-", dir="/tmp"))  # short, for the paths of Ray's sockets
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        port, dashboard_port, agent_port, client_port = _free_ports(4)
        head = RayHead(folder, port, dashboard_port, secrets.token_hex(32))
        options = ["--head", f"--port={port}", "--include-dashboard=true", f"--dashboard-host={LOOPBACK}"]
        options += [f"--dashboard-port={dashboard_port}", f"--dashboard-agent-listen-port={agent_port}"]
        options += [f"--ray-client-server-port={client_port}", f"--temp-dir={folder}/ray", "--node-name=head"]
        options += ["--num-cpus=0", "--num-gpus=0"]
        stack.enter_context(_ray_start(options, folder, head.environment | dict(environment or {})))
        head._await('"node_name": "head"')
        yield head


@contextmanager
def _ray_start(options: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", f"--node-ip-address={LOOPBACK}"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats", *options]
    with (folder / "ray-start.log").open("ab") as log:
        # A process group of its own: it is ended by its id, never `ray stop`, which ends all of Ray on the machine.
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()  # it ends the processes of this machine
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
