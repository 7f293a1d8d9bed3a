"""S3 servers for tests: a local moto server, and a proxy in front of it that injects network faults.

with running(MotoServer()) as moto, running(FaultProxy(moto.url, random_faults(0.2, seed=1))) as proxy:
    storage = S3Storage("bucket", endpoint=proxy.url)
"""

from __future__ import annotations

import http.client
import itertools
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from maskmill.pipeline.storage.s3_trouble import Patience

# Long enough for any number of faults in a row, with pauses that tests can afford.
HASTE = Patience(total=30, first_pause=0.005, longest_pause=0.05, connect=5, read=0.5)


class Server(Protocol):
    @property
    def url(self) -> str: ...

    def serve_forever(self) -> None: ...

    def stop(self) -> None: ...


S = TypeVar("S", bound=Server)


@contextmanager
def running(server: S) -> Iterator[S]:
    """Serves in threads of this process until the block ends."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


class MotoServer:
    """moto's S3 on a free port.

    One request at a time, since it checks a condition and writes in two steps. Unfinished uploads were all begun just
    now, where moto says in 2010.
    """

    def __init__(self) -> None:
        lock, app = threading.Lock(), DomainDispatcherApplication(create_backend_app)

        def one_at_a_time(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with lock:
                content = b"".join(app(environ, start_response))
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            return [content.replace(b"2010-11-10T20:48:33.000Z", now.encode())]

        self._server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=_Quiet)

    def serve_forever(self) -> None:
        self._server.serve_forever()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class Fault(StrEnum):
    """What happens to a request instead of what it asked for, or to its answer."""

    SLOW_DOWN = "503"
    INTERNAL_ERROR = "500"
    CONFLICT = "409"  # does nothing to requests without a condition
    RESET_BEFORE = "the connection is reset before the store gets the request"
    RESET_AFTER = "the connection is reset after the request took effect"
    SHORT_BODY = "half of the body comes, then the connection ends"  # does nothing to answers without a body
    SILENCE = "the request takes effect, but no answer ever comes"


NOISY = tuple(fault for fault in Fault if fault is not Fault.SILENCE)  # those that a client learns of at once


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    number: int  # 1, 2, ... at this proxy
    method: str
    path: str  # with the query
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def conditional(self) -> bool:
        """Whether it creates an object only if that is absent."""
        return "If-None-Match" in self.headers


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: int
    content: bytes = b""
    headers: Sequence[tuple[str, str]] = ()


def refusal(status: int, code: str, message: str = "Injected.") -> Answer:
    """The answer of a store that does not do what it was asked."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, text.encode(), [("Content-Type", "application/xml")])


_REFUSALS = {
    Fault.SLOW_DOWN: refusal(503, "SlowDown"),
    Fault.INTERNAL_ERROR: refusal(500, "InternalError"),
    Fault.CONFLICT: refusal(409, "ConditionalRequestConflict"),
}

# Called with each request before the store gets it. It may do anything, such as end a process. A fault that it returns
# happens; an answer that it returns is sent in place of the store's. The `append` of a list only takes note.
Script = Callable[[Request], Fault | Answer | None]


def no_faults(_: Request) -> None:
    """A network without faults."""


def random_faults(rate: float, seed: int, kinds: tuple[Fault, ...] = tuple(Fault)) -> Script:
    """Of all requests the share `rate` meets one of `kinds`: the same ones, in the order of requests, for each seed."""
    generator, lock = random.Random(seed), threading.Lock()

    def script(_: Request) -> Fault | None:
        with lock:
            return generator.choice(kinds) if generator.random() < rate else None

    return script


def first(told: Fault | Answer, which: Callable[[Request], bool], times: int = 1) -> Script:
    """The first `times` requests of this kind meet `told`."""
    left = iter(range(times))

    def script(request: Request) -> Fault | Answer | None:
        return told if which(request) and next(left, None) is not None else None

    return script


class FaultProxy(ThreadingHTTPServer):
    """Hands requests on to the store at `target`, as `script` tells, and calls `after` before it hands back an answer.

    `ignores_conditions` makes the store one that heeds none: of "puts" of objects, "completes" of uploads, or "gets".
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Proxied)
        self.target = urlsplit(target).netloc
        self.stopped = threading.Event()
        self.behave()

    def behave(
        self,
        script: Script = no_faults,
        after: Callable[[Request], object] = no_faults,
        ignores_conditions: tuple[str, ...] = (),
    ) -> None:
        """Changes how it behaves from the next request on, which is number 1 again."""
        self.script, self.after, self.ignores_conditions = script, after, ignores_conditions
        self.numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def shutdown_request(self, request: Any) -> None:
        request.close()  # without the polite farewell that would spoil a reset

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients that hang up, or were killed, are no news
            super().handle_error(request, client_address)


class _Proxied(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultProxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed while it sent this
            return self._reset()
        headers = dict(self.headers.items())
        request = Request(next(self.server.numbers), self.command, self.path, headers, body)
        told = self.server.script(request)
        if told is Fault.RESET_BEFORE:
            return self._reset()
        if told is Fault.CONFLICT and not request.conditional:
            told = None
        answer = _REFUSALS.get(told) if isinstance(told, Fault) else told
        if answer is None:
            answer = self._forward(request)
            self.server.after(request)
        if told is Fault.SILENCE:
            self.server.stopped.wait(60)
        if told in (Fault.SILENCE, Fault.RESET_AFTER):
            return self._reset()
        self._send(answer, short=told is Fault.SHORT_BODY)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _forward(self, request: Request) -> Answer:
        dropped = {"Connection", "Expect"}
        if {"PUT": "puts", "POST": "completes", "GET": "gets"}.get(request.method) in self.server.ignores_conditions:
            dropped |= {"If-None-Match", "If-Match"}
        headers = {name: value for name, value in request.headers.items() if name not in dropped}
        connection = http.client.HTTPConnection(self.server.target)
        try:
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read(), response.getheaders())
        finally:
            connection.close()

    def _send(self, answer: Answer, short: bool) -> None:
        content = b"" if self.command == "HEAD" else answer.content
        length = str(len(content))
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() == "content-length":
                length = value  # of a HEAD: the object's
            elif name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if short and content:
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, format: str, *args: Any) -> None:
        pass
