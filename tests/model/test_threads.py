"""`model.threads`: each thread of the pool uses one core, and the caller keeps its number of threads."""

from __future__ import annotations

import torch

from maskmill.model.threads import SingleCoreThreads
from tests.pipeline.test_batches import torch_threads


def test_threads_use_one_core_also_after_their_first_operation() -> None:
    def work(_: int) -> int:
        torch.ones(1_000_000).mul_(2)  # large enough to be split over threads
        return torch.get_num_threads()

    with torch_threads(3):
        threads = SingleCoreThreads(3)
        assert list(threads.map(work, range(12))) == [1] * 12
        assert torch.get_num_threads() == 3
