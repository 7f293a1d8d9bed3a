"""Generators that are abandoned while their threads work."""

from __future__ import annotations

import threading

from maskmill.pipeline.sources.names import fetch_ahead


def test_abandoned_generator_does_not_wait_for_its_threads():
    """The garbage collector may end it in a thread that holds a lock of `threading`, which each ending thread needs."""
    release, begun = threading.Event(), threading.Event()

    def fetch(name: str) -> bytes:
        if name != "first":
            begun.set()
            release.wait(60)
        return b""

    fetched = fetch_ahead(fetch, ["first", *map(str, range(100))])
    assert next(fetched) == b""
    assert begun.wait(60)
    del fetched  # would wait for ever
    before = {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}
    assert before
    release.set()
    for thread in before:
        thread.join(60)
        assert not thread.is_alive()
