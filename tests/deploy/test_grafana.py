"""deploy/grafana.json: every query names metrics and labels that Prometheus gets from a run on Ray."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maskmill.pipeline import cluster
from testing.ray_cluster import this_machine
from tests.fakes import FAIL, WAIT, FakeEngine, picture
from tests.runs import begin

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana.json"

Labels = dict[str, str]
Samples = defaultdict[str, list[tuple[Labels, float]]]


def panels() -> list[dict[str, Any]]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def metrics_in(query: str) -> set[str]:
    return set(re.findall(r"ray_\w+", query))


def scrape(port: int) -> Samples:
    """Metric name -> labels and value of each sample."""
    samples: Samples = defaultdict(list)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            text = response.read().decode()
    except (urllib.error.URLError, ConnectionError):
        return samples  # the agent of Ray has not started yet
    for name, labels, value in re.findall(r"^(\w+)(?:{(.*)})? (\S+)$", text, re.MULTILINE):
        samples[name].append((dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)), float(value)))
    return samples


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """What Prometheus gets while a run of ten images is at its last one: eight are ok, one has failed."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "photographs").mkdir()
    for number in range(10):
        command = {3: FAIL, 9: WAIT}.get(number, (0, 0, 0))
        (folder / "photographs" / f"{number}.png").write_bytes(picture(number, command))
    job, plan = begin(folder / "photographs", folder / "out", engine=FakeEngine(folder, seconds=0.05))
    job = replace(job, clock=time.perf_counter)
    found: list[Samples] = []

    def wait_for_metrics() -> None:
        deadline = time.monotonic() + 120
        wanted = set().union(*map(metrics_in, queries()))
        while time.monotonic() < deadline:
            found.append(scrape(port))
            images = sum(value for _, value in found[-1]["ray_maskmill_images_total"])
            if wanted <= found[-1].keys() and images == 9:
                break
            time.sleep(0.5)
        (folder / "released").touch()

    port = free_port()
    with this_machine(num_cpus=2, metrics_export_port=port):
        scraper = threading.Thread(target=wait_for_metrics)
        scraper.start()
        cluster.run(job, plan, lambda _: None)
        scraper.join()
    return found[-1]


def test_every_panel_has_a_title_and_a_query_of_a_metric_of_maskmill():
    assert len({panel["title"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["targets"]
        for target in panel["targets"]:
            assert any(name.startswith("ray_maskmill_") for name in metrics_in(target["expr"])), panel["title"]


@pytest.mark.ray
@pytest.mark.slow
def test_every_query_names_metrics_and_labels_that_exist(samples: Samples):
    for query in queries():
        assert metrics_in(query) <= samples.keys(), query
        for labels, metric in re.findall(r"by \(([\w, ]+)\) \(.*?(ray_\w+)", query):
            for label in re.split(", *", labels):
                assert all(label in found for found, _ in samples[metric]), (label, metric)
        for metric, label, value in re.findall(r'(ray_\w+){(\w+)="([^"]*)"}', query):
            assert any(found[label] == value for found, _ in samples[metric]), (metric, label, value)


@pytest.mark.ray
@pytest.mark.slow
def test_metrics_say_what_the_run_has_done(samples: Samples):
    def by(metric: str, *labels: str) -> dict[tuple[str, ...], float]:
        values: defaultdict[tuple[str, ...], float] = defaultdict(float)
        for found, value in samples[f"ray_maskmill_{metric}"]:
            values[tuple(found[label] for label in labels)] += value
        return dict(values)

    assert by("images_total", "status") == {("ok",): 8, ("failed",): 1}
    assert by("masks_total") == {(): 3 * 8}
    assert by("failures_total", "step", "reason") == {("filter", "ValueError"): 1}
    assert by("shards", "state") == {("at workers",): 1, ("waiting",): 0}
    assert by("workers", "state") == {("ready",): 1, ("starting",): 0}
    steps = by("step_seconds_total", "step")
    assert {("fetch",), ("decode",), ("filter",)} <= steps.keys()
    assert by("device_busy_seconds_total")[()] > 0.05 * 9
