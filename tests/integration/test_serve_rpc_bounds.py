"""What the service over gRPC refuses: what is too much, too large, too slow, or no message at all."""

from __future__ import annotations

import asyncio
import os

import grpc
import grpc.aio
import pytest
from helpers import guest_file
from helpers.rpcs import RpcDesk, in_rpc_desk, refused
from helpers.serving import COPY

from sandhost.serve.rpc.messages import CallBytesRequest, UploadRequest, UploadSettings

ADD = guest_file("add").read_bytes()


def test_who_is_refused_for_now_is_told_when_to_come_again(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme", spawns_per_s=0.01)
        await acme.deploy("sum", ADD)
        assert await acme.call("sum", "add", 2, 3) == [5]
        told = await refused(acme.call("sum", "add", 2, 3), "RESOURCE_EXHAUSTED", "TOO_MANY")
        assert told.retry_after_s > 0
        assert int(told.trailers["grpc-retry-pushback-ms"]) == round(told.retry_after_s * 1000)

    in_rpc_desk(data, test)


def test_what_is_said_of_a_failure_fits_into_headers(data):
    """A client gets no status at all with more than 8 KiB of them."""
    deep = "f" * 200
    calls = "".join(f"(func ${deep}{n} (call ${deep}{n + 1}))" for n in range(31))
    last = f'(func ${deep}31 unreachable) (export "first" (func ${deep}0))'
    module = f"(module {calls} {last})".encode()

    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("deep", module)
        told = await refused(acme.call("deep", "first"), "ABORTED", "GUEST_FAILED")
        assert told.facts["trap"] == "unreachable"
        assert told.facts["frames"].startswith("fff")
        assert len(told.facts["frames"]) > 900
        await refused(acme.call("deep", "\U0001f600" * 5000), "INVALID_ARGUMENT", "INVALID")

    in_rpc_desk(data, test)


def test_what_is_no_message_is_refused_by_every_rpc(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        for rubbish in (b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 10_000):
            for name in (
                "Call",
                "CallBytes",
                "OpenSession",
                "GetVersion",
                "SetAlias",
                "WatchVersion",
            ):
                await refused(getattr(acme, name)(rubbish), "INVALID_ARGUMENT", "INVALID")
            for name in ("Upload", "Run", "CallMany"):
                await refused(getattr(acme, name)(iter([rubbish])), "INVALID_ARGUMENT", "INVALID")
        for path in ("/sandhost.v1.Invoker/Absent", "/absent", "//", "/sandhost.v1.Plugins/Call"):
            await refused(acme.channel.unary_unary(path)(b""), "UNIMPLEMENTED", "")
        for path in (
            "health.v1.Health/Check",
            "reflection.v1.ServerReflection/ServerReflectionInfo",
        ):
            rpc = acme.channel.unary_unary(f"/grpc.{path}")(b"\xff")
            await refused(rpc, "INVALID_ARGUMENT", "INVALID")
        await one.gone()

    in_rpc_desk(data, test)


def test_messages_and_metadata_have_bounds(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("copy", COPY)
        large = CallBytesRequest(plugin="copy", function="same", input=bytes((8 << 20) + 100_000))
        await refused(acme.CallBytes(large), "RESOURCE_EXHAUSTED", "")
        small_when_packed = acme.CallBytes(large, compression=grpc.Compression.Gzip)
        await refused(small_when_packed, "RESOURCE_EXHAUSTED", "")
        request = CallBytesRequest(plugin="copy", function="same", input=b"x")
        metadata = [("x", "y" * 30_000)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await acme.CallBytes(request, metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await acme.CallBytes(request)).output == b"x"
        await one.gone()

    in_rpc_desk(data, test)


def test_a_client_that_begins_and_does_not_go_on_is_sent_away(data, monkeypatch):
    monkeypatch.setattr("sandhost.serve.rpc.doors.Rpc.read.__defaults__", (0.2,))
    monkeypatch.setattr("sandhost.serve.rpc.invoker._QUIET_S", 0.2)

    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        for name in ("Upload", "Run", "CallMany"):
            rpc = getattr(acme, name)()  # a stream that nobody writes to
            told = await refused(rpc, "INVALID_ARGUMENT", "INVALID")
            assert told.words == "no message came for 0.2 s"
        rpc = acme.Upload()
        await rpc.write(UploadRequest(settings=UploadSettings(plugin="p", bytes=1000)))
        for _ in range(3):
            await rpc.write(UploadRequest(piece=b"x"))
            await asyncio.sleep(0.05)
        await refused(rpc, "INVALID_ARGUMENT", "INVALID")
        assert os.listdir(data / "blobs") == []
        # The same from a client whose RPC has one message: it never sends it.
        silent = acme.channel.stream_unary("/sandhost.v1.Invoker/Call")(metadata=acme.metadata)
        await refused(silent, "INVALID_ARGUMENT", "INVALID")
        await one.gone()

    in_rpc_desk(data, test)


def test_connections_have_a_number(data):
    async def test(one: RpcDesk) -> None:
        stubs = [await one.stub("acme") for _ in range(3)]
        for stub in stubs[:2]:
            await refused(stub.call("absent", "f"), "NOT_FOUND", "MISSING")
        await refused(stubs[2].call("absent", "f"), "UNAVAILABLE", "")
        await stubs[0].channel.close()
        await asyncio.sleep(0.1)
        another = await one.stub("acme")
        await refused(another.call("absent", "f"), "NOT_FOUND", "MISSING")

    in_rpc_desk(data, test, most_connections=2)
