"""Runs whose workers, machines and drivers are killed at random, until so many have been: what was lost or doubled?

Pictures, tars and tables are put into the source while a run goes on: none of them may become part of it.

python -m tests.soak --kills 200      # prints a table; exits with 1 where anything was lost, doubled or wrong
python -m tests.soak --faults 0.2     # the same on S3 behind a bad network
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

from maskmill.pipeline.plan import PLAN_KEY
from maskmill.pipeline.storage import open_storage
from maskmill.pipeline.verify import verify
from tests.fakes import picture
from tests.machines import SHARD, Machines, kill, machines, start_driver
from tests.runs import Tables, run

# What happens how often. A second driver works on the same output; it is no kill.
EVENTS = {"worker": 6, "machine": 2, "driver": 2, "driver, by SIGTERM": 1, "second driver": 1}
ADDED = (".png", ".tar", ".parquet", ".jsonl")
PAUSE = (0.5, 5.0)  # seconds between two events: less than a worker needs to start, and more


@dataclass
class Toll:
    """What a soak has cost."""

    kills: Counter[str] = field(default_factory=Counter[str])
    runs: int = 0
    rivals: int = 0
    added: int = 0  # files, to the source of a run that was going on
    images: int = 0
    lost: int = 0  # images without a row
    doubled: int = 0  # rows of the images and of the masks table beyond the first
    wrong: int = 0  # images that are not ok, or whose masks differ from those of an undisturbed run
    offences: list[str] = field(default_factory=list[str])  # that `maskmill verify` found
    generated: int = 0  # images whose masks were computed, however often

    def add(self, found: Tables, expected: Tables) -> None:
        """Counts what differs in the tables of one run."""
        for image_id, rows in expected.images.items():
            there, masks = found.images.get(image_id, []), found.masks.get(image_id, [])
            self.lost += not there
            self.doubled += max(0, len(there) - 1) + len(masks) - len(set(masks))
            self.wrong += there[:1] not in ([], rows) or set(masks) != set(expected.masks.get(image_id, []))
        self.wrong += len(found.images.keys() - expected.images.keys())

    @property
    def harmless(self) -> bool:
        """Whether nothing was lost, doubled or wrong."""
        return not (self.lost or self.doubled or self.wrong or self.offences)

    def __str__(self) -> str:
        lines = [
            ("kills survived", self.kills.total()),
            *((f"  of a {event}", count) for event, count in sorted(self.kills.items())),
            ("runs", self.runs),
            ("second drivers", self.rivals),
            ("files added meanwhile", self.added),
            ("images", self.images),
            ("images lost", self.lost),
            ("rows doubled", self.doubled),
            ("images wrong", self.wrong),
            ("offences found by verify", len(self.offences)),
            ("images computed again", f"{self.generated / max(1, self.images) - 1:.1%}"),
            ("  for each kill", f"{(self.generated - self.images) / max(1, self.kills.total()):.1f}"),
        ]
        return "\n".join([f"{name:<26}{figure}" for name, figure in lines] + self.offences[:10])


def soak(folder: Path, kills: int, seed: int, n_images: int, seconds: float, outputs: str | None = None) -> Toll:
    """Runs over so many images that take so many seconds each, one after the other, until `kills` are reached.

    Everything is below `folder`, except for the outputs if they have an address of their own.
    """
    source = folder / "photographs"
    source.mkdir()
    for number in range(n_images):
        (source / f"{number:05d}.png").write_bytes(picture(number))
    run(source, folder / "undisturbed", images_per_shard=SHARD)
    expected = Tables.of(open_storage(str(folder / "undisturbed")))
    toll, dice = Toll(), random.Random(seed)
    with machines(3) as cluster:
        while toll.kills.total() < kills:
            out = f"{outputs or folder}/out-{toll.runs}"
            DisturbedRun(cluster, source, out, seconds, folder / "drivers.log").finish(kills, toll, dice)
            toll.runs += 1
            toll.images += n_images
            toll.add(Tables.of(open_storage(out)), expected)
            toll.offences += [offence for check in verify(open_storage(out)) for offence in check.offences]
            state = "nothing lost, doubled or wrong" if toll.harmless else "LOSSES"
            print(f"run {toll.runs}: {toll.kills.total()} kills so far, {state}", flush=True)
    toll.generated = len((folder / "generated").read_text().splitlines())
    return toll


@dataclass
class DisturbedRun:
    """One run, whose drivers are started again as often as they die."""

    cluster: Machines
    source: Path
    out: str
    seconds: float  # that every image takes
    log: Path
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])
    added: list[Path] = field(default_factory=list[Path])  # to the source, since the run was planned

    def finish(self, kills: int, toll: Toll, dice: random.Random) -> None:
        """Sees the run to its end; strikes at random until there were so many kills."""
        finished = False
        try:
            while self.drivers or not finished:
                if not self.drivers:
                    self.start_driver()
                self._wait(dice.uniform(*PAUSE))
                finished |= any(driver.poll() == 0 for driver in self.drivers)
                self.drivers = [driver for driver in self.drivers if self._lives(driver)]
                if self.drivers and toll.kills.total() < kills:
                    self._add_file(toll, dice)
                    self._strike(toll, dice)
        finally:
            for path in self.added:
                path.unlink()
            for driver in self.drivers:
                driver.kill()
                driver.wait()

    def start_driver(self) -> None:
        self.drivers.append(start_driver(self.cluster.address, self.source, self.out, self.seconds, self.log))

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(driver.poll() is None for driver in self.drivers):
            time.sleep(0.05)

    def _lives(self, driver: subprocess.Popen[bytes]) -> bool:
        # SIGTERM may come before the driver listens to it: then nobody does, or Ray, which exits with the bare number.
        by_sigterm = (-signal.SIGTERM, signal.SIGTERM, 128 + signal.SIGTERM)
        if driver.poll() not in (None, 0, -signal.SIGKILL, *by_sigterm):
            raise RuntimeError(f"a driver failed by itself: {self.log.read_text()[-2000:]}")
        return driver.poll() is None

    def _add_file(self, toll: Toll, dice: random.Random) -> None:
        """Puts a file into the source that a new run would read, or that makes it another kind of source."""
        if open_storage(self.out, make=True).exists(PLAN_KEY):
            path = self.source / f"{dice.choice('0z')}-{toll.added}{dice.choice(ADDED)}"
            path.write_bytes(picture(0))
            self.added.append(path)
            toll.added += 1

    def _strike(self, toll: Toll, dice: random.Random) -> None:
        (event,) = dice.choices(list(EVENTS), list(EVENTS.values()))
        driver = dice.choice(self.drivers)
        workers = self.cluster.workers()
        match event:
            case "second driver" if len(self.drivers) == 1:
                self.start_driver()
                toll.rivals += 1
            case "worker" if workers and kill(dice.choice(workers)):
                toll.kills[event] += 1
            case "machine":
                self.cluster.kill_machine(dice.randrange(len(self.cluster.nodes)))
                self.cluster.add()
                toll.kills[event] += 1
            case "driver":
                driver.kill()
                toll.kills[event] += 1
            case "driver, by SIGTERM":
                driver.terminate()
                toll.kills[event] += 1
            case _:
                pass


@contextmanager
def faulty_s3(faults: float, seed: int) -> Iterator[str]:
    """The address of a bucket on this machine, behind a network that fails this share of all requests."""
    from testing.s3_servers import NOISY, FaultProxy, MotoServer, random_faults, running

    with running(MotoServer()) as moto, running(FaultProxy(moto.url)) as proxy:
        os.environ |= {
            "AWS_ENDPOINT_URL_S3": proxy.url,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-tester",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        urlopen(Request(f"{moto.url}/soak", method="PUT")).close()
        proxy.behave(random_faults(faults, seed, NOISY))
        yield "s3://soak"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=800, help="of each run")
    parser.add_argument("--seconds", type=float, default=0.05, help="that an image takes")
    parser.add_argument("--faults", type=float, help="write to S3, where this share of all requests fails")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="maskmill-soak-") as folder, ExitStack() as stack:
        outputs = None
        if arguments.faults is not None:
            outputs = stack.enter_context(faulty_s3(arguments.faults, arguments.seed))
        toll = soak(Path(folder), arguments.kills, arguments.seed, arguments.images, arguments.seconds, outputs)
    print(f"{toll}\n{'minutes':<26}{(time.monotonic() - started) / 60:.0f}")
    return 0 if toll.harmless else 1


if __name__ == "__main__":
    sys.exit(main())
