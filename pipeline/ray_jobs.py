"""Ray jobs that run maskmill: submits them to the dashboard of a cluster, and lists, follows and stops them.

The client needs the dashboard's port only; it does not join the cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskmill.pipeline.errors import ConfigError, RunFailedError, exception_line, one_line_cause

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ADDRESS_EXAMPLE = "http://HEAD:8265"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
REQUEST_SECONDS = (5, 15)  # to connect, and to wait for an answer
RECONNECT_SECONDS = 60.0
START_SECONDS = 15.0  # a job that has not begun after this long is reported
STOP_SECONDS = 35  # before Ray kills a driver; it stops by itself within cluster.DRAIN_SECONDS
MAX_UPLOAD_BYTES = 100 * 2**20  # of the dashboard
OUT_KEY = "maskmill_out"  # in the metadata of a job


@dataclass(frozen=True)
class RayJob:
    """A job of maskmill, running or ended."""

    job_id: str  # Ray's submission id
    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED
    out: str
    began: float  # seconds since 1970
    ended: float | None
    message: str  # Ray's text about the status, in one line
    exit_code: int | None  # that of the driver; negative: the signal that ended it; None: it did not end by itself

    @property
    def is_over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass
class _Log:
    """A log that is read from its beginning after each lost connection, and written once."""

    write: Callable[[str], None]
    position: int = 0  # characters read since the last connection
    written: int = 0  # characters

    def add(self, text: str) -> None:
        new = text[max(0, self.written - self.position) :]
        self.position += len(text)
        if new:
            self.written = self.position
            self.write(new)


class RayJobs:
    """The jobs of maskmill on one cluster.

    All methods raise RunFailedError if the cluster cannot be reached, refuses the token or does not have the job.
    """

    def __init__(self, address: str | None = None) -> None:
        """Connects to the dashboard at `address`, by default the one in RAY_API_SERVER_ADDRESS or RAY_ADDRESS."""
        self._address = _dashboard_address(address)
        _use_token()
        with self._errors(), _environment(ADDRESS_VARIABLES[0], self._address):  # Ray prefers it to its argument
            self._client: Any = _client_class()(self._address)

    def submit(
        self,
        name: str,
        entrypoint: str,
        out: str,
        wheel: Path | None = None,
        driver_labels: Mapping[str, str] | None = None,
    ) -> tuple[RayJob, bool]:
        """Starts a job, unless a job with this name is running. Returns the job, and whether it is a new one.

        The id of a job is its name; if jobs with this name have ended, a number follows. Each machine gets the packages
        in `wheel`, without their dependencies. The driver runs on the head, or on a machine with `driver_labels`.

        Raises ConfigError if the wheel is too large for the dashboard, or if no machine has the labels.
        """
        if driver_labels:
            self._require_machine(driver_labels)
        while True:
            earlier = {number: job for job in self.list_all() if (number := _number(job.job_id, name))}
            if running := [job for job in earlier.values() if not job.is_over]:
                return running[-1], False
            job_id = f"{name}-{max(earlier) + 1}" if earlier else name
            with self._errors(), _packages(wheel) as packages:
                runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
                if packages:
                    runtime_env["py_modules"] = packages
                try:
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=job_id,
                        metadata={OUT_KEY: out},
                        runtime_env=runtime_env,
                        entrypoint_label_selector=dict(driver_labels or {}) or None,
                    )
                except RuntimeError as error:
                    if "already exists" in str(error):  # another client submitted the job at the same time
                        continue
                    raise
            return self.find(job_id), True

    def list_all(self) -> list[RayJob]:
        """All jobs of maskmill that the cluster remembers, oldest first."""
        with self._errors():
            jobs = [_job(details) for details in self._client.list_jobs() if OUT_KEY in (details.metadata or {})]
        return sorted(jobs, key=lambda job: job.began)

    def find(self, job_id: str) -> RayJob:
        """The job with this id."""
        with self._errors(job_id):
            return _job(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """What the driver has written until now, to stdout and stderr."""
        with self._errors(job_id):
            return self._client.get_job_logs(job_id)

    def follow(self, job_id: str, write: Callable[[str], None], warn: Callable[[str], None]) -> RayJob:
        """Passes the log of a job to `write`, from its beginning, until the job ends. Returns the ended job.

        `warn` gets a line if the job does not begin soon. After a lost connection it connects again.
        """
        self._await_start(job_id, warn)
        log = _Log(write)
        last_contact = time.monotonic()
        while True:
            try:
                with suppress(*_lost_connections()):
                    asyncio.run(self._tail(job_id, log))
                job = self.find(job_id)
                last_contact = time.monotonic()
                if job.is_over:
                    return job
            except RunFailedError as error:
                if time.monotonic() - last_contact > RECONNECT_SECONDS:
                    raise RunFailedError(f"{error}. The job may go on without this connection") from error
            time.sleep(1)

    def stop(self, job_id: str) -> RayJob:
        """Asks a job to stop and waits until it has. Its shards in progress have time to finish."""
        with self._errors(job_id):
            self._client.stop_job(job_id)
        deadline = time.monotonic() + STOP_SECONDS + RECONNECT_SECONDS
        while not (job := self.find(job_id)).is_over:
            if time.monotonic() > deadline:
                raise RunFailedError(f"{job_id}: did not stop; it is {job.status} ({job.message})")
            time.sleep(0.5)
        return job

    def _await_start(self, job_id: str, warn: Callable[[str], None]) -> None:
        began = time.monotonic()
        warned = False
        while (job := self.find(job_id)).status == "PENDING":
            if not warned and time.monotonic() - began > START_SECONDS:
                warned = True
                warn(f"{job_id} has not begun yet: {job.message}")
            time.sleep(0.5)

    async def _tail(self, job_id: str, log: _Log) -> None:
        """Reads the log from its beginning until the job ends or the connection is lost."""
        log.position = 0
        async for text in self._client.tail_job_logs(job_id):
            log.add(text)

    def _require_machine(self, labels: Mapping[str, str]) -> None:
        with self._errors():
            response = self._client._do_request("GET", "/api/v0/nodes?detail=1&limit=10000")
            response.raise_for_status()
            machines = response.json()["data"]["result"]["result"]
        present = [machine["labels"] for machine in machines if machine["state"] == "ALIVE"]
        if not any(labels.items() <= machine.items() for machine in present):
            known = sorted({f"{k}={v}" for machine in present for k, v in machine.items() if k != "ray.io/node-id"})
            wanted = ", ".join(f"{key}={value}" for key, value in labels.items())
            raise ConfigError(
                f"no machine of the cluster has the labels {wanted}, so the driver could never start: choose from "
                f"{', '.join(known) or 'none (the machines have no labels)'}"
            )

    @contextmanager
    def _errors(self, job_id: str = "") -> Iterator[None]:
        """Raises exceptions of Ray's client as RunFailedError."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise RunFailedError(
                f"{self._address}: the cluster refuses the token ({str(error).splitlines()[0]}): set RAY_AUTH_TOKEN, "
                "or RAY_AUTH_TOKEN_PATH to a file, to the token of the cluster (on its head: `ray get-auth-token`)"
            ) from error
        except (ConnectionError, requests.RequestException, ValueError, RuntimeError) as error:
            text = str(error)
            if "status code 404" in text and job_id:
                raise RunFailedError(f"{self._address}: there is no job {job_id}: see `maskmill jobs list`") from error
            if "status code" in text:
                raise RunFailedError(f"{self._address}: {exception_line(text)}") from error
            raise RunFailedError(
                f"no Ray dashboard at {self._address} ({one_line_cause(error)}): give --address {ADDRESS_EXAMPLE}, or "
                "forward the port (`ray dashboard cluster.yaml`, `kubectl port-forward`)"
            ) from error


def job_name(out: str, identity: str) -> str:
    """The name of the job of a run: readable, and the same for the same output and the same settings."""
    out = out.rstrip("/")
    digest = hashlib.sha256(f"{out}\n{identity}".encode()).hexdigest()[:10]
    readable = re.sub(r"[^a-zA-Z0-9]+", "-", out.rpartition("/")[2]).strip("-")[:40]
    return "-".join(filter(None, ("maskmill", readable, digest)))


def _number(job_id: str, name: str) -> int:
    """The number of a job among those with this name, from 1; 0 if it has another name."""
    match = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", job_id)
    return int(match[1] or 1) if match else 0


def _job(details: Any) -> RayJob:
    return RayJob(
        job_id=details.submission_id,
        status=details.status.value,
        out=(details.metadata or {}).get(OUT_KEY, ""),
        began=details.start_time / 1000,
        ended=details.end_time and details.end_time / 1000,
        message=one_line_cause(Exception(details.message or "")),
        exit_code=details.driver_exit_code,
    )


def _dashboard_address(address: str | None) -> str:
    """The address of the dashboard as a URL. Raises ConfigError if there is none."""
    address = address or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)
    if not address:
        raise ConfigError(f"give --address {ADDRESS_EXAMPLE} or set {ADDRESS_VARIABLES[0]}: which cluster?")
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"{address}: not the address of a Ray dashboard: give {ADDRESS_EXAMPLE}")
    return address.rstrip("/")


def _use_token() -> None:
    """Makes Ray send its token if this machine has one. Called before Ray is imported."""
    if any(map(os.environ.get, TOKEN_VARIABLES)) or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for the duration of the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _client_class() -> type:
    """Ray's JobSubmissionClient with a time limit for each request. Imported here because Ray takes a second."""
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **options: Any) -> Any:
            return super()._do_request(*args, timeout=REQUEST_SECONDS, **options)

    return Client


def _lost_connections() -> tuple[type[Exception], ...]:
    """What following a log raises if the connection ends."""
    import aiohttp

    return (aiohttp.ClientError, RuntimeError)


@contextmanager
def _packages(wheel: Path | None) -> Iterator[list[str]]:
    """The folders of a wheel: its package and its metadata. Ray uploads them and puts them on the path of each worker.

    Ray would install a wheel with all its dependencies, which the machines already have.
    """
    if wheel is None:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="maskmill-wheel-") as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                if (size := sum(member.compress_size for member in archive.infolist())) > MAX_UPLOAD_BYTES:
                    raise ConfigError(
                        f"{wheel}: {size / 2**20:.0f} MiB, but the dashboard takes at most "
                        f"{MAX_UPLOAD_BYTES / 2**20:.0f}: install it in the image of the cluster"
                    )
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{wheel}: not a wheel ({error})") from error
        yield sorted(map(str, Path(folder).iterdir()))
