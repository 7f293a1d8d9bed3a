"""A Ray cluster on this machine whose machines and workers can be killed, and drivers of runs as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from maskmill.pipeline import cluster
from maskmill.pipeline.errors import RunStoppedError
from tests.fakes import FakeEngine
from tests.runs import begin

# So that the death of a machine is noticed in two seconds, not in thirty.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
SHARD = 8  # images
LOOPBACK = "127.0.0.2"  # 127.0.0.1 Ray takes for a wish for the address that others see
MEMORY_BYTES = 100 * 2**20  # of each machine's object store


@dataclass
class Machines:
    """A head that only keeps the books, and machines with one GPU each, by name only: no code uses it."""

    cluster: Cluster
    nodes: list[Any] = field(default_factory=list[Any])

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, num_cpus: int = 1, num_gpus: int = 1, labels: dict[str, str] | None = None) -> None:
        resources = {"num_cpus": num_cpus, "num_gpus": num_gpus, "object_store_memory": MEMORY_BYTES}
        self.nodes.append(self.cluster.add_node(**resources, labels=labels, node_ip_address=LOOPBACK, wait=True))

    def kill_machine(self, number: int) -> None:
        """As when the power fails: nobody is told, and the workers on it go, too."""
        self.cluster.remove_node(self.nodes.pop(number), allow_graceful=False)

    def give_notice(self, number: int, seconds: int) -> None:
        """Tells Ray, as a cloud does, that this machine will be taken away in so many seconds."""
        seconds_left = ["--deadline-remaining-seconds", str(seconds)]
        assert self._drain(number, "DRAIN_NODE_REASON_PREEMPTION", *seconds_left), "Ray may not refuse this"

    def remove_if_idle(self, number: int) -> bool:
        """Asks Ray for a machine back, as the autoscaler does. Ray refuses while an actor is there."""
        return self._drain(number, "DRAIN_NODE_REASON_IDLE_TERMINATION")

    def _drain(self, number: int, reason: str, *options: str) -> bool:
        command = [f"{Path(sys.executable).parent}/ray", "drain-node", "--address", self.address]
        command += ["--node-id", self.nodes[number].node_id, "--reason", reason, "--reason-message", "test", *options]
        return subprocess.run(command, capture_output=True).returncode == 0

    def is_alive(self, number: int) -> bool:
        table = self.cluster.global_state.node_table()
        return any(node["NodeID"] == self.nodes[number].node_id and node["Alive"] for node in table)

    def workers(self) -> list[int]:
        """The process ids of the actors that have their engine or are about to."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.nodes}
        return [pid for pid, parent, name in _processes() if parent in raylets and name.startswith("ray::_Worker")]


@contextmanager
def machines(count: int) -> Iterator[Machines]:
    """So many machines, gone after the block."""
    head = {
        "num_cpus": 0,
        "num_gpus": 0,
        "node_ip_address": LOOPBACK,
        "object_store_memory": MEMORY_BYTES,
        "include_dashboard": False,
        "_system_config": HEALTH_CHECKS,
    }
    running = Machines(Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(count):
            running.add()
        yield running
    finally:
        running.cluster.shutdown()


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process id, parent's id and command line of everything that runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            yield int(folder.name), int(parent), (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # gone meanwhile
            continue


def start_driver(address: str, source: Path, out: str, seconds: float, log: Path) -> subprocess.Popen[bytes]:
    """A process that does `drive`, with what it says in a file."""
    code = "import sys; from tests.machines import drive; sys.exit(drive(*sys.argv[1:]))"
    with log.open("ab") as stream:
        command = [sys.executable, "-c", code, address, str(source), out, str(seconds)]
        return subprocess.Popen(command, stdout=stream, stderr=stream)


def drive(address: str, source: str, out: str, seconds: str) -> int:
    """Begins a run or goes on with it; every image takes so many seconds. The exit code."""
    job, plan = begin(source, out, images_per_shard=SHARD, engine=FakeEngine(Path(source).parent, float(seconds)))
    try:
        cluster.run(job, plan.without(job.ledger.committed()), lambda _: None, address=address, image_timeout=60)
    except RunStoppedError as stopped:
        return 128 + stopped.signal_number
    return 0


def kill(pid: int) -> bool:
    """Whether there was still something to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
