"""The service over gRPC: a real server on loopback, real clients. What belongs to the process (signals, its
end) is in test_serve_rpc_process.py; what no client should send is in test_serve_rpc_bounds.py.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from helpers import guest_file
from helpers.rpcs import RpcDesk, Stub, in_rpc_desk, named, refused, upload, value, wire_to
from helpers.serving import ADMIN, COPY, COUNTER, versioned

from sandhost.serve.rpc.messages import (
    Alias,
    AliasRequest,
    CallBytesRequest,
    CallManyRequest,
    CallRequest,
    ListPluginsRequest,
    OpenSessionRequest,
    PluginRequest,
    RunReply,
    RunRequest,
    RunStart,
    Session,
    SetAliasRequest,
    UploadRequest,
    UploadSettings,
    Value,
    Version,
    VersionRequest,
)

ADD = guest_file("add").read_bytes()


def live(one: RpcDesk) -> int:
    return one.service.host.stats().guests_live


# ---- plugins ----


def test_a_plugin_is_uploaded_watched_called_and_removed(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        made = await acme.Upload(upload("sum", ADD, piece=7, argv=["a"], env={"K": "v"}))
        assert (made.plugin, made.version, made.bytes) == ("sum", 1, len(ADD))
        seen = [v async for v in acme.WatchVersion(named(made))]
        assert [v.state for v in seen][-1] == Version.READY
        assert len(seen) <= 2
        (add,) = [f for f in seen[-1].functions if f.name == "add"]
        assert (list(add.params), list(add.results)) == (["i32", "i32"], ["i32"])
        assert await acme.call("sum", "add", 2, 3) == [5]
        assert await acme.deploy("sum", versioned(2)) == 2
        assert await acme.call("sum", "which") == [2]
        assert await acme.call("sum", "add", 2, 3, ref="1") == [5]
        listed = [p async for p in acme.ListPlugins(ListPluginsRequest())]
        assert [(p.plugin, p.latest, len(p.versions)) for p in listed] == [("sum", 2, 2)]
        await acme.RemoveVersion(named(made))
        await refused(acme.GetVersion(named(made)), "NOT_FOUND", "MISSING")
        kept = one.service.registry.plugins.version("acme", "sum", 2).settings
        assert kept.limits == one.service.settings.guest_limits()

    in_rpc_desk(data, test)


def test_a_module_that_cannot_be_loaded_fails_with_its_reason(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        made = await acme.Upload(upload("bad", b"\0asm rubbish"))
        *_, last = [v async for v in acme.WatchVersion(named(made))]
        assert last.state == Version.FAILED
        assert last.error
        told = await refused(acme.call("bad", "f"), "FAILED_PRECONDITION", "NOT_READY")
        assert "ready" in told.words

    in_rpc_desk(data, test)


def test_settings_of_an_upload_hold(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        spin = guest_file("spin")
        await acme.deploy("spin", spin, deadline_s=0.05)
        await refused(acme.call("spin", "spin"), "DEADLINE_EXCEEDED", "DEADLINE_PASSED")
        await acme.deploy("fuel", spin, fuel=10_000, memory_bytes=1 << 20, table_elements=10)
        told = await refused(acme.call("fuel", "spin"), "ABORTED", "GUEST_FAILED")
        assert told.facts == {"limit": "OutOfFuel"}
        await acme.deploy("warmed", COUNTER, warm="warm")
        assert [await acme.call("warmed", "next") for _ in range(2)] == [[101], [101]]
        for wrong in (
            {"deadline_s": 0.0},
            {"deadline_s": float("nan")},
            {"fuel": 0},
            {"memory_bytes": 2**64 - 1},
            {"argv": ["\0"]},
            {"env": {"\0": ""}},
        ):
            rpc = acme.Upload(upload("spin", b"", **wrong))
            await refused(rpc, "INVALID_ARGUMENT", "INVALID")

    in_rpc_desk(data, test)


def test_an_upload_that_is_broken_off_or_too_long_is_none(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        settings = UploadSettings(plugin="p", bytes=len(ADD))
        start, piece = UploadRequest(settings=settings), UploadRequest(piece=ADD)
        for messages, words in (
            ([], "no message"),
            ([piece], "settings"),
            ([start], "did not come"),
            ([start, UploadRequest(piece=ADD[:-1])], "1 did not come"),
            ([start, piece, UploadRequest(piece=b"x")], "more came"),
            ([start, start], "pieces"),
            ([start, UploadRequest()], "pieces"),
        ):
            told = await refused(acme.Upload(iter(messages)), "INVALID_ARGUMENT", "INVALID")
            assert words in told.words
        large = UploadSettings(plugin="p", bytes=(64 << 20) + 1)
        rpc = acme.Upload(iter([UploadRequest(settings=large)]))
        await refused(rpc, "OUT_OF_RANGE", "TOO_LARGE")
        assert [p async for p in acme.ListPlugins(ListPluginsRequest())] == []
        assert os.listdir(data / "blobs") == []

    in_rpc_desk(data, test)


def test_aliases_switch_go_back_and_guard_their_version(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        for number in (1, 2):
            await acme.deploy("p", versioned(number))
        request = AliasRequest(plugin="p", alias="live")
        await refused(acme.RollBackAlias(request), "NOT_FOUND", "MISSING")
        for number in (1, 2):
            made = await acme.SetAlias(SetAliasRequest(plugin="p", alias="live", version=number))
            assert (made.alias, made.version) == ("live", number)
            assert await acme.call("p", "which", ref="live") == [number]
        assert await acme.RollBackAlias(request) == Alias(alias="live", version=1, previous=2)
        assert await acme.call("p", "which", ref="live") == [1]
        first = VersionRequest(plugin="p", version=1)
        await refused(acme.RemoveVersion(first), "FAILED_PRECONDITION", "CONFLICT")
        found = await acme.GetPlugin(PluginRequest(plugin="p"))
        assert list(found.aliases) == [Alias(alias="live", version=1, previous=2)]
        await acme.RemoveAlias(request)
        await acme.RemoveVersion(first)
        actions = [e.action for e in one.service.registry.audit.log("acme")]
        assert {"version.add", "alias.set", "alias.rollback", "alias.remove"} <= set(actions)
        far = SetAliasRequest(plugin="p", alias="live", version=2**64 - 1)
        await refused(acme.SetAlias(far), "NOT_FOUND", "MISSING")

    in_rpc_desk(data, test)


# ---- calls ----


def test_values_at_the_edge_come_back_as_they_went(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("types", guest_file("types"))
        for kind, given in (
            ("i32", -(2**31)),
            ("i64", 2**63 - 1),
            ("f32", float("-inf")),
            ("f64", 1e308),
            ("v128", bytes(range(16))),
        ):
            assert await acme.call("types", kind, Value(**{kind: given})) == [given]
        (returned,) = await acme.call("types", "f32", Value(f32=float("nan")))
        assert math.isnan(returned)
        assert await acme.call("types", "swap", 1, Value(i64=2**40)) == [2**40, 1]
        assert await acme.call("types", "nothing") == []
        for function, values in (
            ("i32", []),
            ("i32", [1, 2]),
            ("i32", [Value(i64=1)]),
            ("f64", [Value(f32=1)]),
            ("i32", [Value()]),
            ("v128", [Value(v128=b"short")]),
            ("externref", [1]),
            ("absent", []),
        ):
            rpc = acme.call("types", function, *values)
            await refused(rpc, "INVALID_ARGUMENT", "INVALID")

    in_rpc_desk(data, test)


def test_bytes_go_in_and_come_out(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("copy", COPY)
        for content in (b"", b"x", os.urandom(200_000)):
            request = CallBytesRequest(plugin="copy", function="same", input=content)
            assert (await acme.CallBytes(request)).output == content
        request.input = bytes(300_000)  # more than its memory has room for
        await refused(acme.CallBytes(request), "ABORTED", "GUEST_FAILED")

    in_rpc_desk(data, test)


def test_many_calls_go_over_one_stream(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("sum", ADD)
        await acme.deploy("copy", COPY)
        await acme.deploy("spin", guest_file("spin"), deadline_s=10)

        async def requests() -> AsyncIterator[CallManyRequest]:
            spin = CallRequest(plugin="spin", function="spin")
            yield CallManyRequest(id=999, timeout_s=0.3, call=spin)
            for number in range(200):
                arguments = [value(number), value(1)]
                call = CallRequest(plugin="sum", function="add", arguments=arguments)
                yield CallManyRequest(id=number, call=call)
            copied = CallBytesRequest(plugin="copy", function="same", input=b"hello")
            yield CallManyRequest(id=1000, call_bytes=copied)
            yield CallManyRequest(id=1001, call=CallRequest(plugin="absent", function="f"))
            yield CallManyRequest(id=1002)
            yield CallManyRequest(id=1003, timeout_s=-1, call=spin)

        replies = {r.id: r async for r in acme.CallMany(requests())}
        assert len(replies) == 205
        for number in range(200):
            assert replies[number].call.results[0].i32 == number + 1
        assert replies[1000].call_bytes.output == b"hello"
        problems = {number: replies[number].problem for number in (999, 1001, 1002, 1003)}
        assert [p.reason for p in problems.values()] == [
            "DEADLINE_PASSED",
            "MISSING",
            "INVALID",
            "INVALID",
        ]
        assert problems[1001].status == grpc.StatusCode.NOT_FOUND.value[0]
        assert next(iter(replies)) != 999  # what is slow keeps nobody waiting

        async def broken() -> AsyncIterator[Any]:
            call = CallRequest(plugin="sum", function="add", arguments=[value(1), value(1)])
            yield CallManyRequest(id=1, call=call)
            yield b"\xff\xff"

        rpc, seen = acme.CallMany(broken()), []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for reply in rpc:
                seen.append(reply.call.results[0].i32)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert seen == [2]
        await one.gone()

    in_rpc_desk(data, test)


def test_a_command_gets_and_gives_all_that_it_can(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("echo", guest_file("echo"), env={"COLOUR": "red"})
        rpc = acme.Run()
        await rpc.write(RunRequest(start=RunStart(plugin="echo", argv=["one", "7"])))
        seen = b""

        async def hear(wanted: bytes) -> None:
            nonlocal seen
            while wanted not in seen:
                seen += (await asyncio.wait_for(rpc.read(), 20)).stdout

        await hear(b"arg 7\n")  # before anything of the input was sent
        for word in (b"first", b"second"):
            await rpc.write(RunRequest(stdin=word))
            await hear(word)
        assert live(one) == 1
        large = os.urandom(300_000)

        async def send() -> None:
            for at in range(0, len(large), 10_000):
                await rpc.write(RunRequest(stdin=large[at : at + 10_000]))
            await rpc.done_writing()

        sending = asyncio.ensure_future(send())
        rest = []
        while (reply := await rpc.read()) is not grpc.aio.EOF:
            rest.append(reply)
        await sending
        seen += b"".join(reply.stdout for reply in rest)
        assert seen == b"arg echo\narg one\narg 7\nenv COLOUR=red\nfirstsecond" + large
        assert b"".join(reply.stderr for reply in rest) == b"echo: input ended\n"
        assert rest[-1] == RunReply(exit_status=7)
        await one.gone()

        start = RunRequest(start=RunStart(plugin="echo"))
        await refused(acme.Run(iter([RunRequest(stdin=b"x")])), "INVALID_ARGUMENT", "INVALID")
        await refused(acme.Run(iter([start, start])), "INVALID_ARGUMENT", "INVALID")
        for _ in range(20):  # while something is being written, more often than not
            await refused(acme.Run(iter([start, b"\xff"])), "INVALID_ARGUMENT", "INVALID")
        absent = RunRequest(start=RunStart(plugin="absent"))
        await refused(acme.Run(iter([absent])), "NOT_FOUND", "MISSING")
        await one.gone()

    in_rpc_desk(data, test)


def test_a_session_keeps_its_guest_until_it_is_closed(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("count", COUNTER)
        made = await acme.OpenSession(OpenSessionRequest(plugin="count"))
        for number in (1, 2):
            assert await acme.call("count", "next", session=made.session) == [number]
        other = await one.stub("other")
        await other.deploy("count", COUNTER)
        rpc = other.call("count", "next", session=made.session)
        foreign = await refused(rpc, "NOT_FOUND", "MISSING")
        none = await refused(other.call("count", "next", session="none"), "NOT_FOUND", "MISSING")
        assert foreign.words == none.words
        await refused(other.CloseSession(made), "NOT_FOUND", "MISSING")
        await acme.CloseSession(made)
        await refused(acme.CloseSession(made), "NOT_FOUND", "MISSING")
        await refused(acme.CloseSession(Session()), "NOT_FOUND", "MISSING")
        await one.gone()

    in_rpc_desk(data, test)


def test_a_key_makes_a_retry_the_same_request(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        for _ in range(2):
            assert (await acme.Upload(upload("count", COUNTER, idempotency_key="up"))).version == 1
        rpc = acme.Upload(upload("count", ADD, idempotency_key="up"))
        await refused(rpc, "FAILED_PRECONDITION", "CONFLICT")
        await acme.deploy("count", COUNTER)
        session = (await acme.OpenSession(OpenSessionRequest(plugin="count"))).session
        more = {"session": session, "idempotency_key": "k"}
        answers = [await acme.call("count", "next", **more) for _ in range(3)]
        assert answers == [[1], [1], [1]]
        assert await acme.call("count", "next", session=session) == [2]
        rpc = acme.call("count", "next", idempotency_key="k")
        await refused(rpc, "FAILED_PRECONDITION", "CONFLICT")
        rpc = acme.call("count", "next", idempotency_key="\n")
        await refused(rpc, "INVALID_ARGUMENT", "INVALID")

    in_rpc_desk(data, test)


# ---- who may ----


def test_a_token_opens_what_it_is_for_and_says_nothing_of_others(data):
    async def test(one: RpcDesk) -> None:
        acme, other = await one.stub("acme"), await one.stub("other")
        await acme.deploy("secret", ADD)
        version = VersionRequest(plugin="secret", version=1)
        for stub in (acme, other):
            absent = await refused(stub.call("absent", "add", 1, 2), "NOT_FOUND", "MISSING")
            assert absent.words == "there is no plugin 'absent'"
        hidden = await refused(other.call("secret", "add", 1, 2), "NOT_FOUND", "MISSING")
        assert hidden.words == "there is no plugin 'secret'"
        await refused(other.GetVersion(version), "NOT_FOUND", "MISSING")
        await refused(other.WatchVersion(version), "NOT_FOUND", "MISSING")
        assert [p async for p in other.ListPlugins(ListPluginsRequest())] == []
        words = set()
        for token in (None, "", "sh_" + "x" * 43, ADMIN[:-1]):
            nobody = Stub(one.channel(), token)
            for rpc in (
                nobody.call("secret", "add", 1, 2),
                nobody.Call(b"\xff" * 100),
                nobody.Upload(),
                nobody.WatchVersion(version),
                nobody.Run(iter([])),
                nobody.CallMany(iter([])),
            ):
                words.add((await refused(rpc, "UNAUTHENTICATED", "UNKNOWN")).words)
        assert len(words) == 1
        caller = await one.stub("acme", "invoke")
        assert await caller.call("secret", "add", 2, 3) == [5]
        await refused(caller.Upload(), "PERMISSION_DENIED", "DENIED")
        await refused(caller.RemoveVersion(version), "PERMISSION_DENIED", "DENIED")
        deployer = await one.stub("acme", "deploy")
        await refused(deployer.call("secret", "add", 2, 3), "PERMISSION_DENIED", "DENIED")

    in_rpc_desk(data, test)


@pytest.mark.parametrize("way", ["cancel", "deadline", "disconnect"])
def test_guests_end_with_their_rpc(data, way):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("spin", guest_file("spin"), deadline_s=3600)
        await acme.deploy("echo", guest_file("echo"), deadline_s=3600)
        spin = CallRequest(plugin="spin", function="spin")
        session = await acme.OpenSession(OpenSessionRequest(plugin="spin"))
        in_session = CallRequest(plugin="spin", function="spin", session=session.session)
        start = RunRequest(start=RunStart(plugin="echo"))

        async def until_live(guests: int) -> None:
            for _ in range(2000):
                if live(one) == guests:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(live(one))

        async with wire_to(one.port) as (wire, port):
            for name, request, guests in (
                ("Call", spin, 2),
                ("Run", start, 2),
                ("CallMany", CallManyRequest(id=1, call=spin), 2),
                ("Call", in_session, 1),
            ):
                stub = Stub(one.channel(port), None)
                more = {"metadata": acme.metadata, "timeout": 0.3 if way == "deadline" else 60}
                if name == "Call":
                    rpc = stub.Call(request, **more)
                else:
                    rpc = getattr(stub, name)(**more)
                    await rpc.write(request)
                if way != "deadline":
                    await until_live(guests)
                    await asyncio.sleep(0.05)
                if way == "cancel":
                    rpc.cancel()
                elif way == "disconnect":
                    wire.cut()
                else:
                    await asyncio.sleep(0.6)
                await asyncio.wait_for(one.service.bags.idle(), 20)
                await until_live(guests - 1)
        stats = one.service.bags.stats()
        assert (stats.added, stats.failed) == (stats.released, 0)

    in_rpc_desk(data, test)


def test_the_deadline_of_an_rpc_is_that_of_its_guest(data):
    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("spin", guest_file("spin"), deadline_s=60)
        before = time.monotonic()
        rpc = acme.Call(CallRequest(plugin="spin", function="spin"), timeout=0.2)
        assert await rpc.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await one.gone()
        assert time.monotonic() - before < 20

    in_rpc_desk(data, test)


# ---- health and reflection ----


def test_health_follows_readiness(data):
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    async def test(one: RpcDesk) -> None:
        channel = one.channel()
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            HealthCheckRequest.SerializeToString,
            HealthCheckResponse.FromString,
        )
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            HealthCheckRequest.SerializeToString,
            HealthCheckResponse.FromString,
        )
        serving, not_serving = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
        for name in ("", "sandhost.v1.Invoker", "sandhost.v1.Plugins"):
            assert (await check(HealthCheckRequest(service=name))).status == serving
        await refused(check(HealthCheckRequest(service="absent")), "NOT_FOUND", "MISSING")
        unknown = watch(HealthCheckRequest(service="absent"))
        assert (await unknown.read()).status == HealthCheckResponse.SERVICE_UNKNOWN
        watched = watch(HealthCheckRequest())
        assert (await watched.read()).status == serving
        pressure = one.service.host.pressure
        # The limit is moved instead of the memory, as in test_serve_bounds.py.
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for limit, wanted in ((resident / 0.96, not_serving), (64 * 2**30, serving)):
            pressure.limit_bytes = int(limit)
            assert (await asyncio.wait_for(watched.read(), 20)).status == wanted
            assert (await check(HealthCheckRequest())).status == wanted
        one.service.stop()
        assert (await watched.read()).status == not_serving
        stopping = asyncio.ensure_future(one.server.stop(60))
        for rpc in (watched, unknown):  # who only watches does not hold up the end
            assert await rpc.code() == grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(stopping, 10)

    in_rpc_desk(data, test, process_limit="64 GiB")


def test_reflection_tells_all_of_the_protocol(data):
    from google.protobuf import message_factory
    from google.protobuf.descriptor_pool import DescriptorPool
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    async def test(one: RpcDesk) -> None:
        acme = await one.stub("acme")
        await acme.deploy("sum", ADD)

        def ask() -> int:
            with grpc.insecure_channel(f"127.0.0.1:{one.port}") as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                assert set(database.get_services()) == {
                    "sandhost.v1.Invoker",
                    "sandhost.v1.Plugins",
                    "grpc.health.v1.Health",
                }
                pool = DescriptorPool(database)
                service = pool.FindServiceByName("sandhost.v1.Invoker")
                method = service.FindMethodByName("Call")
                request = message_factory.GetMessageClass(method.input_type)(
                    plugin="sum", function="add", arguments=[{"i32": 2}, {"i32": 3}]
                )
                reply = channel.unary_unary(
                    "/sandhost.v1.Invoker/Call",
                    type(request).SerializeToString,
                    message_factory.GetMessageClass(method.output_type).FromString,
                )(request, metadata=acme.metadata)
                return int(reply.results[0].i32)

        assert await asyncio.to_thread(ask) == 5

    in_rpc_desk(data, test)
