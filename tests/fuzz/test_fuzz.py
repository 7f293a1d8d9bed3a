"""A short run of every fuzz target."""

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_short_run(name: str):
    assert fuzz(TARGETS[name], seconds=0, runs_at_once=150) >= 100
