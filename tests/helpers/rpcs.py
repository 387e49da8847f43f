"""A service of this process with its gRPC server on loopback, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.rpc import error_details_pb2, status_pb2

from sandhost.serve.rpc import messages
from sandhost.serve.rpc.server import RpcServer

from .serving import ADMIN, Child, Client, Desk, desk

_KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


class Stub:
    """Every RPC of sandhost.proto as a method, for one token."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None) -> None:
        self.channel = channel
        self.metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        for service in messages.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                setattr(self, method.name, self._rpc(service, method))

    def _rpc(self, service: Any, method: Any) -> Callable[..., Any]:
        make = getattr(
            self.channel, _KINDS[bool(method.client_streaming), bool(method.server_streaming)]
        )
        call = make(
            f"/{service.full_name}/{method.name}",
            lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            message_factory.GetMessageClass(method.output_type).FromString,
        )

        def rpc(*arguments: Any, **more: Any) -> Any:
            more.setdefault("timeout", 60)  # what hangs is told, and not only killed
            return call(*arguments, metadata=(*self.metadata, *more.pop("metadata", ())), **more)

        return rpc

    async def deploy(self, plugin: str, module: bytes | Path, **settings: Any) -> int:
        """Upload a version and wait until it is ready; return its number."""
        content = module if isinstance(module, bytes) else module.read_bytes()
        made = await self.Upload(upload(plugin, content, **settings))
        seen = [v async for v in self.WatchVersion(named(made))]
        assert seen[-1].state == messages.Version.READY, seen
        return int(made.version)

    async def call(self, plugin: str, function: str, *values: Any, **more: Any) -> list[Any]:
        """Call a function; return its results. Arguments are Values, or numbers for i32."""
        request = messages.CallRequest(
            plugin=plugin, function=function, arguments=[value(v) for v in values], **more
        )
        reply = await self.Call(request)
        return [getattr(v, v.WhichOneof("kind")) for v in reply.results]


def with_stub(one: Child, test: Callable[[Any], Awaitable[None]]) -> None:
    """Run a test as a tenant of a service in a child."""

    async def run() -> None:
        async with one.http() as http:
            admin = Client(http, ADMIN)
            await admin.ask("PUT", "/v1/admin/tenants/acme", 201, json={})
            body = {"scopes": ["deploy", "invoke"]}
            made = await admin.ask("POST", "/v1/admin/tenants/acme/tokens", 201, json=body)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{one.grpc_port}") as channel:
            await test(Stub(channel, made["token"]))

    asyncio.run(run())


def value(given: Any) -> messages.Value:
    """Return a Value; a whole number is an i32."""
    return given if isinstance(given, messages.Value) else messages.Value(i32=given)


def named(version: messages.Version) -> messages.VersionRequest:
    """Return what asks for this version."""
    return messages.VersionRequest(plugin=version.plugin, version=version.version)


async def upload(
    plugin: str, content: bytes, piece: int = 1 << 20, **settings: Any
) -> AsyncIterator[messages.UploadRequest]:
    """Yield the messages of an upload."""
    asked = {"plugin": plugin, "bytes": len(content), **settings}
    yield messages.UploadRequest(settings=messages.UploadSettings(**asked))
    for at in range(0, len(content), piece):
        yield messages.UploadRequest(piece=content[at : at + piece])


class Refused:
    """What a client is told when it is refused."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code, self.words = error.code(), error.details()
        self.trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(self.trailers.get("grpc-status-details-bin", b""))
        self.reason, self.facts, self.retry_after_s = "", {}, None
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                assert info.domain == "sandhost"
                self.reason, self.facts = info.reason, dict(info.metadata)
            elif detail.Unpack(retry):
                self.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
        if self.reason:
            assert (status.code, status.message) == (self.code.value[0], self.words)


async def refused(rpc: Any, code: str, reason: str) -> Refused:
    """Make an RPC that fails just so; of a stream, no message may be left to write when it does.

    grpc.aio forgets what the server said upon a write that fails (github.com/grpc/grpc/issues/36066).
    """
    try:
        if hasattr(rpc, "__aiter__"):
            found: Any = [message async for message in rpc]
        else:
            found = await rpc
    except grpc.aio.AioRpcError as error:
        told = Refused(error)
        assert (told.code.name, told.reason) == (code, reason), (
            told.code,
            told.words,
            told.trailers,
        )
        return told
    raise AssertionError(f"it was not refused: {found}")


class RpcDesk:
    """A service of this process, by gRPC."""

    def __init__(self, one: Desk, server: RpcServer, port: int) -> None:
        self.desk, self.service, self.server, self.port = one, one.service, server, port
        self._channels: list[grpc.aio.Channel] = []

    def channel(self, port: int | None = None) -> grpc.aio.Channel:
        """Return a connection of its own."""
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port or self.port}", options=options)
        self._channels.append(channel)
        return channel

    async def stub(self, tenant: str, *scopes: str, **quotas: Any) -> Any:
        """Add a tenant if need be, and return RPCs with a token of it."""
        client = await self.desk.client(tenant, *scopes, **quotas)
        return Stub(self.channel(), client.headers["Authorization"].split()[1])

    async def close(self) -> None:
        """Let all clients go."""
        for channel in self._channels:
            await channel.close()

    async def gone(self) -> None:
        """Wait until no guest is left and every bag is empty."""
        await asyncio.wait_for(self.service.bags.idle(), 20)
        stats = self.service.bags.stats()
        assert (stats.added, stats.failed) == (stats.released, 0)
        assert self.service.host.stats().guests_live == 0


class Wire:
    """A way to a port that can be cut."""

    def __init__(self) -> None:
        self.port = 0
        self._ends: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        """End its connections, without a word."""
        while self._ends:
            self._ends.pop().transport.abort()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be the way of one connection."""
        there, to_there = await asyncio.open_connection("127.0.0.1", self.port)
        self._ends += [writer, to_there]

        async def forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while piece := await source.read(65536):
                    target.write(piece)

        await asyncio.gather(forward(reader, to_there), forward(there, writer))


@contextlib.asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[tuple[Wire, int]]:
    """Have a wire to a port; give it and the port of its other end."""
    wire = Wire()
    wire.port = port
    server = await asyncio.start_server(wire.connect, "127.0.0.1", 0)
    try:
        yield wire, server.sockets[0].getsockname()[1]
    finally:
        wire.cut()
        server.close()


@contextlib.asynccontextmanager
async def rpc_desk(
    data: Path, *, most_connections: int = 100, **settings: Any
) -> AsyncIterator[RpcDesk]:
    """Have a service behind gRPC; at the end it is drained and must hold no guest."""
    async with desk(data, **settings) as one:
        server = RpcServer(one.service, most_connections)
        here = RpcDesk(one, server, await server.start("127.0.0.1", 0))
        try:
            yield here
        finally:
            await here.close()
            await server.stop(5)


def in_rpc_desk(data: Path, test: Callable[[RpcDesk], Awaitable[None]], **more: Any) -> None:
    """Run a test with a service behind gRPC."""

    async def run() -> None:
        async with rpc_desk(data, **more) as one:
            await test(one)

    asyncio.run(run())
