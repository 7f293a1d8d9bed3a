"""Serves the page on the loopback interface, to pages of its own origin only."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Sequence
from typing import Any, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maskmill.model.errors import MaskmillError
from maskmill.pipeline.errors import ConfigError, ImageError, SourceError
from maskmill.tables.view.content import ASSETS, Content, asset, to_json
from maskmill.tables.view.listing import Found, Position, Show

HOST = "127.0.0.1"
DEFAULT_PORT = 8642
MAX_PAGE = 240  # images
JSON, JPEG = "application/json", "image/jpeg"
_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # Another run may be served at the same address later.
    "cache-control": "no-store",
}


def application(contents: Sequence[Content]) -> Starlette:
    """The web application for one run or two."""

    def answer(load: Callable[[Content, Request], bytes], media_type: str) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            run = request.path_params["run"]
            if run >= len(contents):
                return _error(404, "no such run")
            return Response(load(contents[run], request), media_type=media_type)

        return endpoint

    def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        return Response(asset(name), media_type=ASSETS[name]) if name in ASSETS else _error(404, "no such file")

    def runs(request: Request) -> Response:
        return Response(to_json({"runs": [content.description for content in contents]}), media_type=JSON)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/data/runs.json", runs),
            Route("/data/{run:int}/page.json", answer(_page, JSON)),
            Route("/data/{run:int}/find.json", answer(_find, JSON)),
            Route("/data/{run:int}/{at}.json", answer(_image, JSON)),
            Route("/data/{run:int}/{at}.jpg", answer(_picture, JPEG)),
            Route("/data/{run:int}/thumbnail/{at}.jpg", answer(_thumbnail, JPEG)),
            Route("/{name}", page),
        ],
        middleware=[Middleware(Guard)],
        exception_handlers={
            HTTPException: _on_http_error,
            ImageError: lambda _, error: _error(404, str(error)),
            SourceError: lambda _, error: _error(404, str(error)),
            MaskmillError: lambda _, error: _error(500, str(error)),
        },
    )


def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


class Guard:
    """Refuses requests of other origins and to other host names, and adds HEADERS to every response.

    A page of another site can send requests to this address, and can let its own host name point to it. The first have
    another Origin or Sec-Fetch-Site, the second another Host. Ports are not compared, because of forwarded ports.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if reason := _refusal(Request(scope)):
            await self._with_headers(send, _error(403, reason), scope, receive)
        else:
            await self._with_headers(send, self._app, scope, receive)

    async def _with_headers(self, send: Send, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await app(scope, receive, send_with_headers)


def _refusal(request: Request) -> str | None:
    headers = request.headers
    host = headers.get("host", "")
    if not _HOST.fullmatch(host):
        return "this page is only served as localhost or 127.0.0.1"
    if headers.get("origin", f"http://{host}").lower() != f"http://{host}".lower():
        return "this page does not answer to other origins"
    foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    followed_link = request.url.path == "/" and headers.get("sec-fetch-dest") == "document"
    return "this page does not answer to other sites" if foreign and not followed_link else None


def _page(content: Content, request: Request) -> bytes:
    query = request.query_params
    start = Position.parse(query.get("at", "0.0"))
    show: Any = query.get("show", "all")
    limit = query.get("limit", "60")
    step = -1 if query.get("step") == "-1" else 1
    if start is None or show not in get_args(Show) or not re.fullmatch(r"[1-9]\d{0,2}", limit):
        raise HTTPException(404, "no such page")
    found = content.listing.page(start, step, query.get("text", ""), show, min(int(limit), MAX_PAGE))
    return to_json(content.page(found))


def _find(content: Content, request: Request) -> bytes:
    found = content.listing.find(request.query_params.get("id", ""))
    return to_json(found and content.summary(found))


def _image(content: Content, request: Request) -> bytes:
    return to_json(content.image(_found(content, request)))


def _picture(content: Content, request: Request) -> bytes:
    return content.picture(_found(content, request))


def _thumbnail(content: Content, request: Request) -> bytes:
    return content.thumbnail(_found(content, request))


def _found(content: Content, request: Request) -> Found:
    position = Position.parse(request.path_params["at"])
    if position is None or (found := content.listing.at(position)) is None:
        raise HTTPException(404, "no such image in this run, or it is not done yet")
    return found


def _error(status: int, reason: str) -> Response:
    return Response(to_json({"error": reason}), status, media_type=JSON)


def listen(port: int | None) -> socket.socket:
    """A socket on the loopback interface, at DEFAULT_PORT or a free port if `port` is None.

    Raises ConfigError if the port is taken or not permitted.
    """
    for wanted in (DEFAULT_PORT, 0) if port is None else (port,):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, wanted))
            listening.listen()  # connections wait until the server runs
        except OSError as error:
            listening.close()
            if port is not None:
                raise ConfigError(f"--port {port}: {error.strerror}: choose another port") from error
        else:
            return listening
    raise ConfigError("no port is free: give one with --port")


def server(contents: Sequence[Content]) -> uvicorn.Server:
    """A server; `run(sockets=[listen(...)])` serves until SIGINT, SIGTERM or `should_exit`."""
    config = uvicorn.Config(
        application(contents),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        server_header=False,
        timeout_graceful_shutdown=1,  # seconds; a browser keeps connections open
    )
    return uvicorn.Server(config)
