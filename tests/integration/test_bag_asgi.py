"""Guests of HTTP requests and WebSockets end with them, on a real uvicorn, whatever the client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from helpers import guest_file
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect

import sandhost
from sandhost.serve.bag import Bags, current_bag
from sandhost.serve.bag_asgi import BagMiddleware

pytestmark = pytest.mark.anyio

GRACE_S = 0.05


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Application:
    """Handlers that hold guests and end in different ways. `log` says what they saw."""

    def __init__(self, host: sandhost.Host) -> None:
        self.host = host
        self.plugin = host.load(guest_file("add"))
        self.bags = Bags()
        self.log: list[str] = []
        self.began, self.go_on = asyncio.Event(), asyncio.Event()
        routes = [
            Route("/add", self.add),
            Route("/fail", self.fail),
            Route("/thread", self.thread),
            Route("/wait", self.wait, methods=["GET", "POST"]),
            Route("/echo", self.echo, methods=["POST"]),
            Route("/refuse", self.refuse, methods=["POST"]),
            Route("/stream", self.stream),
            Route("/background", self.background),
            Route("/polls", self.polls),
            WebSocketRoute("/echo", self.ws_echo),
            WebSocketRoute("/deaf", self.ws_deaf),
        ]
        self.asgi = BagMiddleware(self.or_raw(Starlette(routes=routes)), self.bags, grace_s=GRACE_S)

    def or_raw(self, app: Any) -> Any:
        """Serve /raw without Starlette: a stream that never listens."""

        async def either(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("path") != "/raw":
                await app(scope, receive, send)
                return
            self.hold()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                while True:
                    await send(
                        {"type": "http.response.body", "body": b"x" * 1000, "more_body": True}
                    )
                    self.began.set()
                    await asyncio.sleep(0.001)
            finally:
                self.log.append("ended")

        return either

    def hold(self) -> sandhost.Guest:
        guest = current_bag().add(self.plugin.spawn())
        current_bag().add(self.plugin.spawn(), self.end)
        self.began.set()
        return guest

    async def end(self, guest: sandhost.Guest) -> None:
        await asyncio.sleep(0.001)
        guest.close()

    async def add(self, request: Request) -> Response:
        return PlainTextResponse(str(self.hold().call("add", 2, 3)))

    async def fail(self, request: Request) -> Response:
        self.hold()
        raise ValueError("on purpose")

    def thread(self, request: Request) -> Response:
        guest = current_bag().add(self.plugin.spawn())
        return PlainTextResponse(str(guest.call("add", 2, 3)))

    async def wait(self, request: Request) -> Response:
        self.hold()
        try:
            await asyncio.sleep(3600)
        finally:
            self.log.append("ended")
        raise AssertionError

    async def echo(self, request: Request) -> Response:
        self.hold()
        return Response(await request.body())

    async def refuse(self, request: Request) -> Response:
        self.hold()
        return PlainTextResponse("no", status_code=403)

    async def stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            self.hold()
            try:
                while True:
                    yield b"x" * 10_000
                    await asyncio.sleep(0.001)
            finally:
                self.log.append("ended")

        return StreamingResponse(pieces())

    async def background(self, request: Request) -> Response:
        guest = self.hold()

        async def afterwards() -> None:
            await self.go_on.wait()
            self.log.append(str(guest.call("add", 20, 3)))

        return PlainTextResponse("later", background=BackgroundTask(afterwards))

    async def polls(self, request: Request) -> Response:
        self.hold()
        while not await request.is_disconnected():
            await asyncio.sleep(0.001)
        self.log.append("saw it")
        return PlainTextResponse("nobody reads this")

    async def ws_echo(self, socket: WebSocket) -> None:
        guest = self.hold()
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(str(guest.call("add", int(text), 1)))
        self.log.append("saw it")

    async def ws_deaf(self, socket: WebSocket) -> None:
        self.hold()
        await socket.accept()
        try:
            await asyncio.sleep(3600)
        finally:
            self.log.append("ended")

    async def gone(self) -> None:
        await asyncio.wait_for(self.bags.idle(), 30)
        assert self.host.stats().guests_live == 0
        stats = self.bags.stats()
        assert stats.added == stats.released > 0
        assert stats.failed == 0


@asynccontextmanager
async def serving(
    host: sandhost.Host, http: str = "httptools"
) -> AsyncIterator[tuple[Application, uvicorn.Server, int]]:
    app = Application(host)
    config = uvicorn.Config(
        app.asgi, port=0, http=http, ws="websockets-sansio", log_level="critical", lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.001)
    try:
        yield app, server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        app.go_on.set()
        server.should_exit = True
        await task


async def open_request(
    port: int, path: str, method: str = "GET", headers: str = "", body: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode() + body)
    await writer.drain()
    return reader, writer


async def request(port: int, path: str, **options: Any) -> tuple[int, bytes]:
    options["headers"] = options.get("headers", "") + "Connection: close\r\n"
    reader, writer = await open_request(port, path, **options)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_request_that_returns_or_raises_leaves_nothing(
    host: sandhost.Host, http: str
) -> None:
    async with serving(host, http) as (app, _, port):
        assert await request(port, "/add") == (200, b"5")
        assert await request(port, "/thread") == (200, b"5")
        assert (await request(port, "/fail"))[0] == 500
        assert (await request(port, "/nowhere"))[0] == 404
        await app.gone()


@pytest.mark.parametrize("chunks", [1, 50])
async def test_a_body_comes_as_it_was_sent(host: sandhost.Host, chunks: int) -> None:
    async with serving(host) as (app, _, port):
        body = bytes(range(256)) * 256
        headers = f"Content-Length: {len(body) * chunks}\r\nConnection: close\r\n"
        reader, writer = await open_request(port, "/echo", "POST", headers)
        for _ in range(chunks):
            writer.write(body)
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read()).endswith(body * chunks)
        writer.close()
        await app.gone()


async def test_a_body_that_nobody_reads_is_not_asked_for(host: sandhost.Host) -> None:
    async with serving(host) as (app, _, port):
        headers = "Content-Length: 5\r\nExpect: 100-continue\r\n"
        assert (await request(port, "/refuse", method="POST", headers=headers))[0] == 403
        reader, writer = await open_request(port, "/echo", "POST", headers)
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hello")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await app.gone()


@pytest.mark.parametrize("abort", [False, True])
@pytest.mark.parametrize("path", ["/wait", "/raw", "/stream", "/polls"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_a_client_that_goes_in_the_middle_leaves_nothing(
    host: sandhost.Host, http: str, path: str, abort: bool
) -> None:
    async with serving(host, http) as (app, _, port):
        reader, writer = await open_request(port, path)
        await app.began.wait()
        if path in ("/raw", "/stream"):
            await reader.readexactly(20_000)
        if abort:
            writer.transport.abort()
        else:
            writer.close()
        await app.gone()
        assert app.log == ["saw it" if path == "/polls" else "ended"]


async def test_a_client_that_goes_while_it_sends_leaves_nothing(host: sandhost.Host) -> None:
    async with serving(host) as (app, _, port):
        _, writer = await open_request(port, "/echo", "POST", "Content-Length: 1000\r\n", b"half")
        await app.began.wait()
        writer.transport.abort()
        await app.gone()


async def test_a_client_that_stops_reading_and_goes_leaves_nothing(host: sandhost.Host) -> None:
    async with serving(host) as (app, _, port):
        _, writer = await open_request(port, "/stream")
        await app.began.wait()
        await asyncio.sleep(0.3)  # buffers are full, the application waits in the sending
        writer.transport.abort()
        await app.gone()
        assert app.log == ["ended"]


async def test_background_work_goes_on_with_what_the_request_holds(host: sandhost.Host) -> None:
    async with serving(host) as (app, _, port):
        assert await request(port, "/background") == (200, b"later")
        await asyncio.sleep(3 * GRACE_S)  # the client has gone, and has all that it wanted
        assert host.stats().guests_live == 2
        app.go_on.set()
        await app.gone()
        assert app.log == ["23"]


async def test_requests_of_one_connection_have_bags_of_their_own(host: sandhost.Host) -> None:
    async with serving(host) as (app, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(20):
            writer.write(b"GET /add HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(1) == b"5"
        writer.close()
        await app.gone()
        assert app.bags.stats().opened == 20


async def test_a_server_that_stops_with_requests_on_their_way_leaves_nothing(
    host: sandhost.Host,
) -> None:
    async with serving(host) as (app, server, port):
        _, writer = await open_request(port, "/wait")
        await app.began.wait()
        server.should_exit = True
        await app.gone()
        assert app.log == ["ended"]
        writer.close()


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("path", ["echo", "deaf"])
async def test_a_websocket_whose_client_goes_leaves_nothing(
    host: sandhost.Host, path: str, end: str
) -> None:
    async with serving(host) as (app, _, port):
        socket = await connect(f"ws://127.0.0.1:{port}/{path}")
        await app.began.wait()
        if path == "echo":
            for number in range(5):
                await socket.send(str(number))
                assert await socket.recv() == str(number + 1)
        if end == "abort":
            socket.transport.abort()
        else:
            await socket.close()
        await app.gone()
        assert app.log == ["saw it" if path == "echo" else "ended"]


@pytest.mark.parametrize("turns", range(12))
async def test_a_request_that_is_cancelled_at_any_turn_leaves_nothing(
    host: sandhost.Host, turns: int
) -> None:
    app = Application(host)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/add", "headers": [], "query_string": b"",
        "root_path": "", "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    task = asyncio.create_task(app.asgi(scope, receive, send))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert app.bags.stats().live == 0
    assert host.stats().guests_live == 0


async def test_other_scopes_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    middleware = BagMiddleware(app)
    await middleware({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
    assert middleware.bags.stats().opened == 0
