"""Which shard comes next, and who is blamed when workers are lost."""

import pytest

from maskmill.pipeline.progress import Progress
from maskmill.pipeline.records import Failure, Shard
from maskmill.pipeline.schedule import MAX_ATTEMPTS, Lease, Schedule


def shards(count: int) -> list[Shard]:
    return [Shard(index, "/p", (f"{index}a", f"{index}b")) for index in range(count)]


class Told:
    """A schedule, and what it told of."""

    def __init__(self, count: int) -> None:
        self.images: list[str] = []
        self.shards: list[int] = []
        self.schedule = Schedule(
            shards(count),
            lambda progress: self.images.append(progress.image_id),
            lambda shard: self.shards.append(shard.index),
        )

    def take(self, idle: bool = True) -> Lease:
        lease = self.schedule.take(idle)
        assert lease is not None
        return lease


def begins(lease: Lease, image_id: str) -> Progress:
    return Progress(lease.shard.index, image_id, "decode")


def ends(lease: Lease, image_id: str) -> Progress:
    return Progress(lease.shard.index, image_id, "rle", "ok", 3)


def test_shards_come_in_order_and_then_only_copies_for_idle_workers():
    told = Told(2)
    first, second = told.take(), told.take()
    assert [first.shard.index, second.shard.index] == [0, 1]
    assert told.schedule.take(idle=False) is None
    told.schedule.record_progress(first, ends(first, "0a"))
    assert told.take().shard.index == 1, "the one that is less far"
    assert told.take().shard.index == 0
    assert told.schedule.take(idle=True) is None, "two at most"


def test_images_and_shards_are_told_of_once_when_there_are_copies():
    told = Told(1)
    first, copy = told.take(), told.take()
    for lease in (first, copy):
        told.schedule.record_progress(lease, ends(lease, "0a"))
    told.schedule.finish(copy)
    assert told.schedule.unfinished == 0
    told.schedule.record_progress(first, ends(first, "0b"))
    told.schedule.finish(first)
    assert (told.images, told.shards) == (["0a"], [0])


def test_images_are_told_of_when_the_copy_that_found_them_committed_is_heard_first():
    told = Told(1)
    first, copy = told.take(), told.take()
    told.schedule.finish(copy)
    assert told.schedule.unfinished == 1
    assert told.schedule.take(idle=True) is None, "no other copy of what is done"
    for image_id in ("0a", "0b"):
        told.schedule.record_progress(first, ends(first, image_id))
    told.schedule.finish(first)
    assert told.schedule.unfinished == 0
    assert (told.images, told.shards) == (["0a", "0b"], [0])


def test_shard_that_a_copy_found_committed_is_done_when_its_worker_is_lost_and_another_finds_it_too():
    told = Told(1)
    first, copy = told.take(), told.take()
    told.schedule.finish(copy)
    told.schedule.record_failure(first, "the worker died")
    told.schedule.finish(told.take())
    assert told.schedule.unfinished == 0
    assert told.shards == [0]


def test_shard_that_lost_its_worker_comes_again_isolated_and_after_the_fresh_ones():
    told = Told(2)
    told.schedule.record_failure(told.take(), "the worker died")
    assert told.take().shard.index == 1
    again = told.take()
    assert (again.shard.index, again.attempt.number, again.attempt.isolated) == (0, 2, True)
    assert told.schedule.take(idle=True).shard.index == 1, "what lost a worker is not copied"  # pyright: ignore


def test_shard_that_lost_its_worker_is_for_idle_workers_only_and_holds_no_other_up():
    told = Told(2)
    lost, given_back = told.take(), told.take()
    told.schedule.record_failure(lost, "the worker died")
    told.schedule.requeue(given_back)
    assert told.take(idle=False).shard.index == 1
    assert told.schedule.take(idle=False) is None
    assert told.take(idle=True).shard.index == 0


def test_shard_that_is_given_back_comes_again_as_if_nothing_had_been():
    told = Told(1)
    told.schedule.requeue(told.take())
    assert told.take().attempt.number == 1


def test_shard_with_a_copy_elsewhere_is_not_handed_out_again():
    told = Told(1)
    first, copy = told.take(), told.take()
    told.schedule.record_failure(first, "the worker died")
    assert told.schedule.take(idle=False) is None
    told.schedule.finish(copy)
    assert told.schedule.unfinished == 0


def test_image_is_quarantined_when_two_workers_of_isolated_attempts_are_lost_over_it():
    told = Told(1)
    for number in (1, 2, 3):
        lease = told.take()
        assert (lease.attempt.number, lease.attempt.quarantined) == (number, {})
        told.schedule.record_progress(lease, begins(lease, "0b"))
        told.schedule.record_failure(lease, "the worker died")
    quarantined = {"0b": Failure("decode", "2 workers failed at this image: the worker died")}
    assert told.take().attempt.quarantined == quarantined
    assert told.schedule.failed == {}


def test_no_image_is_blamed_when_it_has_ended_or_was_not_alone():
    told = Told(1)
    first = told.take()
    told.schedule.record_progress(first, begins(first, "0a"))
    told.schedule.record_failure(first, "the worker died")  # others were being decoded
    for _ in range(MAX_ATTEMPTS - 1):
        lease = told.take()
        told.schedule.record_progress(lease, begins(lease, "0a"))
        told.schedule.record_progress(lease, ends(lease, "0a"))
        told.schedule.record_failure(lease, "the worker died")
    assert told.schedule.failed == {0: "shard 00000: the worker died"}
    assert told.schedule.unfinished == 0
    assert told.schedule.take(idle=True) is None


@pytest.mark.parametrize("progress", [None, "0a"])
def test_losses_are_told_with_the_image_only_when_that_is_sure(progress: str | None, caplog: pytest.LogCaptureFixture):
    told = Told(1)
    for _ in range(2):
        lease = told.take()
        if progress:
            told.schedule.record_progress(lease, begins(lease, progress))
        told.schedule.record_failure(lease, "the worker died")
    at = ", step decode of 0a" if progress else ""
    assert caplog.messages == [
        "shard 00000: attempt 1 failed: the worker died",
        f"shard 00000{at}: attempt 2 failed: the worker died",
    ]
