"""Guests of RPCs end with them: all four kinds, however the RPC ends, on a real server with real clients."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from helpers import guest_file

import sandhost
from sandhost.serve.bag import Bags, current_bag
from sandhost.serve.bag_grpc import BagInterceptor

pytestmark = pytest.mark.anyio

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
STYLES = {
    "unary_unary": ["coroutine", "thread"],
    "stream_unary": ["coroutine", "thread"],
    "unary_stream": ["generator", "coroutine"],
    "stream_stream": ["generator", "coroutine"],
}
WAYS = [(kind, style) for kind in KINDS for style in STYLES[kind]]
ASYNC_WAYS = [(kind, style) for kind, style in WAYS if style != "thread"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Service:
    """One method of each kind, named by kind and style. What it does is the request's first word."""

    def __init__(self, host: sandhost.Host) -> None:
        self.host = host
        self.plugin = host.load(guest_file("add"))
        self.bags = Bags()
        self.began = asyncio.Event()
        self.closed_generators = 0
        self.loop = asyncio.get_running_loop()
        self.release_thread = asyncio.Event()

    def hold(self) -> sandhost.Guest:
        guest = current_bag().add(self.plugin.spawn())
        current_bag().add(self.plugin.spawn(), self.end)
        self.loop.call_soon_threadsafe(self.began.set)
        return guest

    async def end(self, guest: sandhost.Guest) -> None:
        await asyncio.sleep(0.001)
        guest.close()

    async def do(self, what: bytes, context: Any) -> bytes:
        guest = self.hold()
        if what == b"raise":
            raise ValueError("on purpose")
        if what == b"abort":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "on purpose")
        if what == b"wait":
            await asyncio.sleep(3600)
        return b"%d" % guest.call("add", 2, 3)

    def do_in_thread(self, what: bytes, context: Any) -> bytes:
        guest = self.hold()
        if what == b"raise":
            raise ValueError("on purpose")
        if what == b"abort":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "on purpose")
        if what == b"wait":
            asyncio.run_coroutine_threadsafe(self.release_thread.wait(), self.loop).result()
        return b"%d" % guest.call("add", 2, 3)

    def handler(self, kind: str, style: str) -> grpc.RpcMethodHandler:
        async def first(request: Any) -> bytes:
            if isinstance(request, bytes):
                return request
            async for message in request:
                return message
            return b""

        async def one(request: Any, context: Any) -> bytes:
            return await self.do(await first(request), context)

        def one_in_thread(request: Any, context: Any) -> bytes:
            what = request if isinstance(request, bytes) else next(iter(request))
            return self.do_in_thread(what, context)

        async def generated(request: Any, context: Any) -> AsyncIterator[bytes]:
            what = await first(request)
            try:
                if what == b"flood":
                    self.hold()
                    while True:
                        yield b"x" * 100_000  # suspended in the sending, sooner or later
                for _ in range(3):
                    yield await self.do(what, context)
            finally:
                try:
                    await asyncio.sleep(
                        0
                    )  # the cancellation may come here, behind a failed sending
                finally:
                    self.closed_generators += 1

        async def written(request: Any, context: Any) -> None:
            what = await first(request)
            try:
                if what == b"flood":
                    self.hold()
                    while True:
                        await context.write(b"x" * 100_000)
                for _ in range(3):
                    await context.write(await self.do(what, context))
            finally:
                self.closed_generators += 1

        behavior: Any
        if kind.endswith("_unary"):
            behavior = one_in_thread if style == "thread" else one
        else:
            behavior = generated if style == "generator" else written
        make: Callable[..., grpc.RpcMethodHandler] = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(behavior)

    async def gone(self) -> None:
        """Wait until nothing is left; without the garbage collector's help."""
        await asyncio.wait_for(self.bags.idle(), 30)
        assert self.host.stats().guests_live == 0
        stats = self.bags.stats()
        assert stats.added == stats.released > 0
        assert stats.failed == 0


@asynccontextmanager
async def serving(host: sandhost.Host) -> AsyncIterator[tuple[Service, grpc.aio.Server, str]]:
    service = Service(host)
    server = grpc.aio.server(interceptors=[BagInterceptor(service.bags)])
    methods = {f"{kind}_{style}": service.handler(kind, style) for kind, style in WAYS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Bags", methods),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    gc.disable()
    try:
        yield service, server, address
    finally:
        service.release_thread.set()
        gc.enable()
        await server.stop(None)
        await service.bags.idle()


def call(channel: grpc.aio.Channel, kind: str, style: str, what: bytes, **options: Any) -> Any:
    async def requests() -> AsyncIterator[bytes]:
        yield what
        if what in (b"wait", b"flood"):
            await asyncio.sleep(3600)

    method = getattr(channel, kind)(f"/test.Bags/{kind}_{style}")
    return method(requests() if kind.startswith("stream") else what, **options)


async def answer_of(rpc: Any) -> list[bytes]:
    return [await rpc] if isinstance(rpc, Awaitable) else [message async for message in rpc]


@pytest.mark.parametrize(("kind", "style"), WAYS)
async def test_an_rpc_that_returns_leaves_nothing(
    host: sandhost.Host, kind: str, style: str
) -> None:
    async with (
        serving(host) as (service, _, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        for _ in range(3):
            answer = await answer_of(call(channel, kind, style, b"add"))
            assert answer == [b"5"] * (1 if kind.endswith("_unary") else 3)
        await service.gone()
        assert service.bags.stats().opened == 3


@pytest.mark.parametrize(("kind", "style"), WAYS)
@pytest.mark.parametrize(
    ("what", "code"),
    [(b"raise", grpc.StatusCode.UNKNOWN), (b"abort", grpc.StatusCode.RESOURCE_EXHAUSTED)],
)
async def test_an_rpc_that_fails_leaves_nothing_and_says_why(
    host: sandhost.Host, kind: str, style: str, what: bytes, code: grpc.StatusCode
) -> None:
    async with (
        serving(host) as (service, _, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer_of(call(channel, kind, style, what))
        assert caught.value.code() == code
        assert "on purpose" in str(caught.value.details())
        await service.gone()


@pytest.mark.parametrize("how", ["cancel", "deadline", "channel"])
@pytest.mark.parametrize(("kind", "style"), ASYNC_WAYS)
async def test_a_client_that_goes_leaves_nothing(
    host: sandhost.Host, kind: str, style: str, how: str
) -> None:
    async with serving(host) as (service, _, address):
        channel = grpc.aio.insecure_channel(address)
        rpc = call(channel, kind, style, b"wait", timeout=0.3 if how == "deadline" else None)
        await service.began.wait()
        if how == "cancel":
            rpc.cancel()
        elif how == "channel":
            await channel.close()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await answer_of(rpc)
        await service.gone()
        assert service.closed_generators == kind.endswith("_stream")
        await channel.close()


@pytest.mark.parametrize(("kind", "style"), [way for way in WAYS if way[0].endswith("_stream")])
async def test_a_client_that_goes_while_a_response_is_sent_leaves_no_generator_behind(
    host: sandhost.Host, kind: str, style: str
) -> None:
    async with (
        serving(host) as (service, _, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        rpc = call(channel, kind, style, b"flood")
        await rpc.read()
        await asyncio.sleep(0.1)  # the window is full by then, and the server waits in the sending
        rpc.cancel()
        await service.gone()
        assert service.closed_generators == 1


@pytest.mark.parametrize("kind", ["unary_unary", "stream_unary"])
async def test_a_thread_keeps_its_bag_until_it_returns(host: sandhost.Host, kind: str) -> None:
    async with (
        serving(host) as (service, _, address),
        grpc.aio.insecure_channel(address) as channel,
    ):
        rpc = call(channel, kind, "thread", b"wait")
        await service.began.wait()
        rpc.cancel()
        await asyncio.sleep(0.05)
        assert host.stats().guests_live == 2  # it may be using them
        service.release_thread.set()
        await service.gone()


CLIENT = """
import asyncio, sys
import grpc.aio

async def requests(what):
    yield what
    await asyncio.sleep(3600)

async def main(address, kind, style, what):
    async with grpc.aio.insecure_channel(address) as channel:
        method = getattr(channel, kind)(f"/test.Bags/{kind}_{style}")
        rpc = method(requests(what) if kind.startswith("stream") else what)
        if what == b"flood":
            await rpc.read()
        await asyncio.sleep(3600)

address, kind, style, what = sys.argv[1:]
asyncio.run(main(address, kind, style, what.encode()))
"""


@pytest.mark.parametrize(
    ("kind", "style", "what"),
    [(kind, style, "wait") for kind, style in ASYNC_WAYS]
    + [("unary_stream", "generator", "flood")],
)
async def test_a_client_process_that_is_killed_leaves_nothing(
    host: sandhost.Host, kind: str, style: str, what: str
) -> None:
    async with serving(host) as (service, _, address):
        client = subprocess.Popen([sys.executable, "-c", CLIENT, address, kind, style, what])
        try:
            await service.began.wait()
        finally:
            client.send_signal(signal.SIGKILL)
            client.wait()
        await service.gone()


@pytest.mark.parametrize("grace", [None, 0.1])
@pytest.mark.parametrize(("kind", "style"), ASYNC_WAYS)
async def test_a_server_that_stops_leaves_nothing(
    host: sandhost.Host, kind: str, style: str, grace: float | None
) -> None:
    async with serving(host) as (service, server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            rpc = call(channel, kind, style, b"wait")
            await service.began.wait()
            await server.stop(grace)
            await service.gone()
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await answer_of(rpc)


async def test_many_rpcs_that_end_in_all_ways_at_once_leave_nothing(host: sandhost.Host) -> None:
    async with (
        serving(host) as (service, _, address),
        grpc.aio.insecure_channel(address) as channel,
    ):

        async def one(number: int) -> None:
            kind, style = ASYNC_WAYS[number % len(ASYNC_WAYS)]
            what = [b"add", b"raise", b"abort", b"wait"][number % 4]
            rpc = call(channel, kind, style, what)
            with anyio.move_on_after(0.001 * (number % 50) if what == b"wait" else None):
                try:
                    await answer_of(rpc)
                except (grpc.aio.AioRpcError, asyncio.CancelledError):
                    if what == b"add":
                        raise
            rpc.cancel()

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(one, number)
        await service.gone()


async def test_a_thread_for_many_responses_is_refused_by_name(
    host: sandhost.Host, caplog: pytest.LogCaptureFixture
) -> None:
    server = grpc.aio.server(interceptors=[BagInterceptor()])
    handler = grpc.unary_stream_rpc_method_handler(lambda request, context: iter([b"1"]))
    methods = {"Count": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Bags", methods),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer_of(channel.unary_stream("/test.Bags/Count")(b""))
    assert "the handler of /test.Bags/Count is neither" in str(caught.value.details())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with grpc.aio.insecure_channel(address) as channel:
            await channel.unary_unary("/test.Bags/Other")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    await server.stop(None)
