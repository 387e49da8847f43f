"""Large bodies go through buffers of a pool, which come back whatever ends the request."""

from __future__ import annotations

import asyncio
import os

import pytest
from helpers.serving import Desk, in_desk

from sandhost.serve import bodies
from sandhost.serve.bodies import SMALL
from sandhost.serve.http import make_app

ECHO = b"""(module
  (memory (export "memory") 1 200)
  (func (export "alloc") (param $n i32) (result i32)
    (drop (memory.grow (i32.div_u (i32.add (local.get $n) (i32.const 131071)) (i32.const 65536))))
    (i32.const 65536))
  (func (export "echo") (param $at i32) (param $n i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $n))))
  (func (export "large") (param i32 i32) (result i64)
    (drop (memory.grow (i32.const 64))) (i64.const 0x10000_00200000))
  (func (export "outside") (param i32 i32) (result i64) (i64.const 0x7fffffff_00100000))
  (func (export "trap") (param i32 i32) (result i64) unreachable)
  (func (export "spin") (param i32 i32) (result i64) (loop $next (br $next)) (i64.const 0)))"""
PATH = "/v1/plugins/p/bytes/"


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 3_000_000, 8 << 20])
def test_bodies_of_all_sizes_come_back_as_they_went(data, size):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", ECHO)
        given = os.urandom(size)

        async def pieces():
            for at in range(0, size, 50_000):
                yield given[at : at + 50_000]

        for content in (given, pieces()):  # with and without a Content-Length
            answer = await acme.ask("POST", f"{PATH}echo", content=content)
            assert (answer.status_code, answer.content) == (200, given)
            assert answer.headers["content-length"] == str(size)
        stats = one.service.bodies.stats()
        assert (stats.in_use, stats.acquired) == (0, 2 if size > SMALL else 0)

    in_desk(data, test)


def test_a_small_body_may_have_a_large_result(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", ECHO)
        answer = await acme.ask("POST", f"{PATH}large", content=b"?")
        assert answer.content == b"?" + bytes((2 << 20) - 1)
        stats = one.service.bodies.stats()
        assert (stats.in_use, stats.acquired) == (0, 1)

    in_desk(data, test)


def test_buffers_come_back_after_errors(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", ECHO)
        large = bytes(1 << 20)
        await acme.problem("POST", f"{PATH}trap", 422, "guest-failed", content=large)
        await acme.problem("POST", f"{PATH}outside", 422, "guest-failed", content=large)
        await acme.problem("POST", f"{PATH}nothing", 400, "invalid", content=large)
        late = {"Sandhost-Deadline": "0.1"}
        await acme.problem(
            "POST", f"{PATH}spin", 504, "deadline-passed", content=large, headers=late
        )

        async def too_much():
            for _ in range(9):
                yield large

        await acme.problem("POST", f"{PATH}echo", 413, "too-large", content=too_much())
        stats = one.service.bodies.stats()
        assert (stats.in_use, stats.acquired) == (0, 4)  # none for a function that takes no bytes
        assert one.service.bags.stats().failed == 0

    in_desk(data, test)


def test_who_finds_no_buffer_waits_and_is_refused(data, monkeypatch):
    monkeypatch.setattr(bodies, "_MEMORY", 1)  # two buffers

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", ECHO)
        go_on = asyncio.Event()

        async def slow():
            yield bytes(SMALL + 1)
            await go_on.wait()
            yield b"!"

        slow_ones = [
            asyncio.ensure_future(acme.ask("POST", f"{PATH}echo", content=slow())) for _ in range(2)
        ]
        while one.service.bodies.stats().in_use < 2:
            await asyncio.sleep(0.01)
        large = bytes(1 << 20)
        refused = await acme.problem("POST", f"{PATH}echo", 429, "too-many", content=large)
        assert "large bodies" in refused["detail"]
        assert (await acme.ask("POST", f"{PATH}echo", content=b"small")).content == b"small"
        go_on.set()
        for answer in await asyncio.gather(*slow_ones):
            assert len(answer.content) == SMALL + 2
        assert one.service.bodies.stats().in_use == 0

    in_desk(data, test)


@pytest.mark.parametrize("goes", [False, True])
def test_a_client_that_does_not_read_its_answer_loses_it(data, monkeypatch, goes):
    """It has a time, or as long as it stays there."""
    monkeypatch.setattr(bodies, "_REST_S", 30.0 if goes else 0.2)

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", ECHO)
        token = acme.headers["Authorization"].encode()
        reads_no_more, gone = asyncio.Event(), asyncio.Event()
        sent = 0
        messages = [{"type": "http.request", "body": bytes(1 << 20), "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            nonlocal sent
            sent += len(message.get("body", b""))
            if sent:
                reads_no_more.set()
                await asyncio.Event().wait()  # as a server does whose socket takes nothing

        scope = {
            "type": "http",
            "method": "POST",
            "path": f"{PATH}echo",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"authorization", token), (b"content-length", b"1048576")],
        }
        serving = asyncio.ensure_future(make_app(one.service)(scope, receive, send))
        await reads_no_more.wait()
        assert one.service.bodies.stats().in_use == 1
        assert one.service.host.stats().guests_live == 0  # nobody's guest waits for a client
        if goes:
            gone.set()
        await asyncio.wait_for(serving, 10)
        assert sent == 64 << 10
        assert one.service.bodies.stats().in_use == 0
        assert one.service.bags.stats().failed == 0

    in_desk(data, test)
