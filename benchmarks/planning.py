"""Measures the time and memory for planning from keys in a store, planning from a manifest, and reading the plan.

    python -m benchmarks.planning                    # 1 million keys, 1 million lines, 20,000 keys at moto's S3
    python -m benchmarks.planning --count 10000000   # 10 million each

Each measurement runs in a separate process. Its memory is its peak resident size minus the size after the imports.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from maskmill.pipeline.plan import PLAN_KEY, encode_plan, read_plan
from maskmill.pipeline.sources import ImageFolder, Source, open_source
from maskmill.pipeline.storage import LocalStorage, Skip, StoredObject

RESULTS = Path(__file__).parent / "results"
IMAGES_PER_SHARD = 64
KEYS_PER_FOLDER = 1000
MOTO_KEYS = 20_000


@dataclass(frozen=True)
class SyntheticKeys(LocalStorage):
    """A store that generates keys while it lists them, without I/O, so the measured time is that of maskmill itself."""

    count: int = 0

    def list(self, prefix: str = "", skip: Skip = lambda key: False) -> Iterator[StoredObject]:
        for number in range(self.count):
            skip(_key(number))
            yield StoredObject(_key(number), 500_000)

    def open(self, key: str) -> BinaryIO:
        raise NotImplementedError


def _key(number: int) -> str:
    scattered = number * 2654435761 % 2**32  # realistic file names are not consecutive numbers
    return f"{number // KEYS_PER_FOLDER:06d}/{number % KEYS_PER_FOLDER:03d}_{scattered:08x}.jpg"


def main() -> None:
    """Runs the measurements, prints the table and writes it to results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="keys, and lines")
    parser.add_argument("--moto-keys", type=int, default=MOTO_KEYS, help="keys at moto's server; 0: none")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # used by the separate process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(_measure(arguments.measure, arguments.folder, arguments.count))
        return
    lines = list(_all(arguments.count, arguments.moto_keys))
    report = _report(lines)
    print(report)
    name = f"{datetime.date.today()}-planning"
    path = RESULTS / (f"{name}.md" if arguments.count == 1_000_000 else f"{name}-{arguments.count}.md")
    path.write_text(report)
    print(f"written to {path}")


def _all(count: int, moto_keys: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        yield _in_a_process("keys", root, count)
        yield _in_a_process("read", root, count)
        with open(root / "list.csv", "w") as stream:
            stream.write("uri\n")
            stream.writelines(f"s3://bucket/{_key(number)}\n" for number in range(count))
        yield _in_a_process("list.csv", root, count)
        yield _in_a_process("read", root, count)
        if moto_keys:
            with _moto(moto_keys) as environment:
                yield _in_a_process("s3://bucket/photos", root, moto_keys, environment)


def _in_a_process(what: str, folder: Path, count: int, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-m", "benchmarks.planning", "--measure", what, "--folder", str(folder)]
    environment = os.environ | (environment or {})
    done = subprocess.run(
        [*command, "--count", str(count)], check=True, capture_output=True, text=True, env=environment
    )
    print(done.stdout.strip(), file=sys.stderr)
    return done.stdout.strip()


def _measure(what: str, folder: Path, count: int) -> str:
    """Runs one measurement and returns its row of the table."""
    if what.startswith("s3:"):
        import boto3.session  # noqa: F401  # excluded from the measurement
    out = LocalStorage(folder)
    start_memory, start = _resident(), time.perf_counter()
    if what == "read":
        images = sum(len(shard.image_ids or ()) for shard in read_plan(out))
        name = "the plan, read and all shards made"
    else:
        source = _source(what, folder, count)
        data = encode_plan(source.planned, source.plan(IMAGES_PER_SHARD))
        out.put(PLAN_KEY, data)
        images = read_plan(out).n_images
        name = {"keys": "keys, made up", "list.csv": "lines of a csv manifest"}.get(what, "keys at moto's S3")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert images == count, f"{images} planned of {count}"
    size = (folder / PLAN_KEY).stat().st_size
    return f"| {name} | {count:,} | {seconds:.1f} | {(peak - start_memory) / 1e6:.0f} | {size / 1e6:.1f} |"


def _source(what: str, folder: Path, count: int) -> Source:
    if what == "keys":
        return ImageFolder(SyntheticKeys(folder, count), str(folder))
    return open_source(what if what.startswith("s3:") else str(folder / what))


def _resident() -> int:
    """Returns the resident size of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def _moto(keys: int) -> Iterator[dict[str, str]]:
    """Starts a moto server with `keys` keys in a separate process and yields the environment variables for clients."""
    code = (
        "import sys, threading, boto3.session\n"
        "from testing.s3_servers import MotoServer\n"
        "from benchmarks.planning import _key\n"
        "server = MotoServer()\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "client = boto3.session.Session().client('s3', endpoint_url=server.url)\n"
        "client.create_bucket(Bucket='bucket')\n"
        f"for number in range({keys}):\n"
        "    client.put_object(Bucket='bucket', Key='photos/' + _key(number), Body=b'x')\n"
        "print(server.url, flush=True)\n"
        "sys.stdin.read()\n"
    )
    credentials = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | credentials
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield credentials | {"AWS_ENDPOINT_URL_S3": server.stdout.readline().strip()}
        finally:
            server.stdin.close()


def _report(lines: list[str]) -> str:
    import platform

    import pyarrow

    load = os.getloadavg()[0]
    return "\n".join(
        [
            "# Planning",
            "",
            f"{datetime.date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, pyarrow "
            f"{pyarrow.__version__}, load average {load:.1f}, {IMAGES_PER_SHARD} images per shard.",
            "Each line is a process of its own; memory: the peak of its resident size less the size after the imports.",
            "",
            "| what | images | seconds | peak MB | plan MB |",
            "|---|---:|---:|---:|---:|",
            *lines,
            "",
            "Keys, made up: a store that lists as fast as Python can make keys, so this is what maskmill itself takes. "
            "S3 adds a request for every 1000 keys, one after the other: at 50 ms each that is 50 s for a million.",
            "moto answers more slowly than that, and the more so the more keys it has: its line shows that the path "
            "through S3 works, and its memory, but is no measure of S3.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
