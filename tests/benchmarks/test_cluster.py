"""The real driver with simulated workers: every image is done once, whatever happens to workers and machines."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import sa1b
from benchmarks.cluster import Measured, count_requests, report, simulate
from benchmarks.simulation import CallCosts, Scenario

COSTS = CallCosts(waiting=1e-6, record_list=1e-4, shard=1e-4)
CALM = Scenario(8, np.array([0.5, 1.0, 1.5]), hours_between_losses=1e9, deadly_images=0.0)


def test_every_machine_is_busy_when_nothing_fails():
    measured = simulate(CALM, shards=80, images_per_shard=8, costs=COSTS)
    assert (measured.images, measured.losses, measured.retries, measured.quarantined) == (640, 0, 0, 0)
    lower_bound = (80 / 8 * CALM.shard_seconds + CALM.start_seconds) / 3600
    assert lower_bound < measured.hours < 1.3 * lower_bound
    rest = measured.starting + measured.idle + measured.repeated
    assert measured.utilisation + rest == pytest.approx(1, abs=0.03)
    assert measured.starting == pytest.approx(8 * CALM.start_seconds / (8 * 3600 * measured.hours), rel=0.1)
    assert 0 < measured.cores < 0.1


def test_every_image_is_done_once_when_machines_are_lost_and_images_end_their_workers():
    scenario = Scenario(8, np.ones(1), hours_between_losses=0.5, deadly_images=0.005)
    measured = simulate(scenario, shards=60, images_per_shard=8, costs=COSTS)
    assert measured.losses > 0
    assert measured.quarantined > 0
    assert measured.retries >= 3 * measured.quarantined
    assert measured.utilisation < 0.95


def test_requests_of_a_shard_are_those_of_the_ledger():
    assert count_requests(images=4) == (1.0, 7, 2)


def test_report_has_a_row_per_size_and_the_costs_of_sa1b():
    measured = Measured(1000, 100, 6400, 1.5, 0.97, 0.01, 0.01, 0.0, 60.0, 3, 4, 1, 0.6, 9.0, 0.16, 200.0, 50, 5)
    text = "\n".join(report([measured], Scenario(1000, np.ones(1)), COSTS, (1.0, 7, 2)))
    assert "| 1000 | 1.5 | 97.00% | 1.00% | 1.00% | 0.00% | 60 | 3 | 4 | 1 |" in text
    assert "| 1000 | 0.60 | 9.00 | 0.160 | 200 | 1.149 |" in text
    hours = 11_185_362 / 3 / 3600 / 0.97
    assert f"| preset sa1b, vit_h | 3 | {hours:,.0f} | {4 * hours:,.0f} |" in text
    assert sa1b.SPEEDS[1].source in text
