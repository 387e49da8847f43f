"""`sandhost serve` as a process, by gRPC: raw sockets, signals, and an end that leaves nothing and says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from helpers import guest_file, wait_until
from helpers.rpcs import with_stub
from helpers.serving import Child, child

from sandhost.serve.rpc.messages import (
    CallManyRequest,
    CallRequest,
    OpenSessionRequest,
    RunRequest,
    RunStart,
    UploadRequest,
    UploadSettings,
)

BUSY = b"""(module (func (export "work") (param $n i32) (result i32)
  (loop $next (br_if $next (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
  (local.get $n)))"""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"12345678"


def raw(port: int, data: bytes) -> bytes:
    """Send bytes, and return all that comes until the connection is closed."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
        try:
            one.sendall(data)
            while piece := one.recv(65536):
                received += piece
        except ConnectionError:
            pass
    return received


def test_bytes_that_are_no_grpc_leave_nothing_behind(data):
    with child(data) as one:
        frame = bytes([0xFF, 0xFF, 0xFF, 1, 4, 0, 0, 0, 1])  # headers of 16 MiB
        for rubbish in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00" + bytes(100),
            os.urandom(10_000),
            PREFACE + frame + bytes(100_000),
            PREFACE + bytes([0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]),  # a window grown by nothing
            PREFACE + PING * 10_000,  # who asks too often whether anybody is there
        ):
            raw(one.grpc_port, rubbish)
        with_stub(one, lambda acme: acme.deploy("busy", BUSY))
        assert one.end() == 0, one.said()
        assert b"Traceback" not in one.said()


@pytest.mark.slow
def test_who_connects_and_says_nothing_is_sent_away(data):
    with child(data) as one:
        assert raw(one.grpc_port, b"") == raw(one.grpc_port, PREFACE[:10])
        assert one.end() == 0, one.said()


def test_a_term_signal_ends_nothing_that_was_begun(data, monkeypatch):
    """With Python's development mode in the process: what its end leaves open is said."""
    monkeypatch.setenv("PYTHONDEVMODE", "1")

    async def test(acme: Any, one: Child) -> None:
        await acme.deploy("busy", BUSY, deadline_s=3600)
        await acme.OpenSession(OpenSessionRequest(plugin="busy"))
        long = [asyncio.ensure_future(acme.call("busy", "work", 2**29)) for _ in range(2)]
        many = acme.CallMany()
        work = CallRequest(plugin="busy", function="work", arguments=[{"i32": 2**29}])
        await many.write(CallManyRequest(id=7, call=work))
        rests = acme.CallMany()  # a stream without a call
        health = acme.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await health.read() == b"\x08\x01"
        await asyncio.to_thread(wait_until, lambda: one.guests() == 4)
        one.process.send_signal(signal.SIGTERM)
        assert await health.read() == b"\x08\x02"  # NOT_SERVING, and the door is still open
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await acme.call("busy", "work", 1)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not any(call.done() for call in long)
        assert await asyncio.gather(*long) == [[0]] * 2
        reply = await many.read()
        assert (reply.id, reply.call.results[0].i32) == (7, 0)
        for rpc in (many, rests, health):
            assert await rpc.code() == grpc.StatusCode.UNAVAILABLE
        assert await asyncio.to_thread(one.process.wait, 30) == 0, one.said()

    with child(data) as one:
        with_stub(one, lambda acme: test(acme, one))
        for word in (b"Traceback", b"Warning", b"ignored", b"never"):
            assert word not in one.said(), one.said()


@pytest.mark.parametrize("signals", [1, 2])
def test_what_does_not_end_in_its_time_is_cancelled(data, signals):
    """With a second signal at once, else after the time to drain."""

    async def test(acme: Any, one: Child) -> None:
        await acme.deploy("spin", guest_file("spin"), deadline_s=3600)
        await acme.deploy("echo", guest_file("echo"), deadline_s=3600)
        spin = CallRequest(plugin="spin", function="spin")
        rpcs = [acme.Call(spin), acme.Run(), acme.CallMany(), acme.Upload()]
        await rpcs[1].write(RunRequest(start=RunStart(plugin="echo")))
        await rpcs[2].write(CallManyRequest(call=spin))
        await rpcs[3].write(UploadRequest(settings=UploadSettings(plugin="p", bytes=100)))
        await asyncio.to_thread(wait_until, lambda: one.guests() == 3)
        for _ in range(signals):
            one.process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.2)
        assert await asyncio.to_thread(one.process.wait, 30) == 0, one.said()
        for rpc in rpcs:
            with contextlib.suppress(grpc.aio.AioRpcError):
                while hasattr(rpc, "read") and await rpc.read() is not grpc.aio.EOF:
                    pass  # a client sees the status behind the messages
            assert await rpc.code() != grpc.StatusCode.OK

    with child(data, "--drain-time", "1 s" if signals == 1 else "1 h") as one:
        with_stub(one, lambda acme: test(acme, one))
        assert b"guests are left" not in one.said()
        assert b"Traceback" not in one.said(), one.said()


def test_the_door_can_be_left_away(data):
    with child(data, "--grpc", "none") as one:
        assert one.grpc_port is None
        assert httpx.get(f"{one.url}/readyz").status_code == 200
        assert one.end() == 0, one.said()
