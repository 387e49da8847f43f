"""The gate in this process, where a test can look at it and break it: faults of ours, and heads that it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from helpers.serving import Client, Desk, desk

from sandhost.serve import gate as gates
from sandhost.serve import wire as wires
from sandhost.serve.app import _new_loop
from sandhost.serve.gate import Gate
from sandhost.serve.http import make_app
from sandhost.serve.listening import duplicates, listen
from sandhost.serve.shares import NOBODY
from sandhost.serve.wire import GatedProtocol


def which(number: int) -> bytes:
    return f'(module (func (export "which") (result i32) (i32.const {number})))'.encode()


def request(client: Client, plugin: str, more: str = "") -> bytes:
    """Return a call of `which`."""
    return (
        f"POST /v1/plugins/{plugin}/call/which HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {client.headers['Authorization']}\r\n{more}Content-Length: 0\r\n\r\n"
    ).encode()


ONE = (200, b'{"results": [1]}')


class Wire:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def call(self, client: Client, plugin: str, more: str = "") -> tuple[int, bytes]:
        """Call `which`; return status and body."""
        self.writer.write(request(client, plugin, more))
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        """Return the answer."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 20)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), await self._reader.readexactly(length)

    async def answers(self, count: int) -> list[int]:
        """Return the statuses of so many."""
        return [(await self.answer())[0] for _ in range(count)]

    async def ended(self) -> None:
        """Wait until it is closed, with nothing more to read."""
        assert await asyncio.wait_for(self._reader.read(), 20) == b""


class Gated:
    """A service behind its gate."""

    def __init__(self, one: Desk, gate: Gate, server: uvicorn.Server, port: int) -> None:
        self.desk, self.gate, self.server, self.port = one, gate, server, port
        self._wires: list[Wire] = []

    async def wire(self) -> Wire:
        """Connect."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self._wires.append(wire)
        return wire

    async def close(self) -> None:
        """Let all connections go."""
        for wire in self._wires:
            wire.writer.close()
            with contextlib.suppress(OSError):  # it was reset
                await wire.writer.wait_closed()


@contextlib.asynccontextmanager
async def gated(data: Path, **settings: Any) -> AsyncIterator[Gated]:
    async with desk(data) as one:

        class Protocol(GatedProtocol):
            gate = Gate(one.service)

        config = uvicorn.Config(
            make_app(one.service),
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            **settings,
        )
        server = uvicorn.Server(config)
        with listen("127.0.0.1", 0) as listener, duplicates(listener) as sockets:
            serving = asyncio.ensure_future(server.serve(sockets=sockets))
            here = Gated(one, Protocol.gate, server, listener.getsockname()[1])
            try:
                yield here
            finally:
                await here.close()
                server.should_exit = True
                await serving


def in_gated(data: Path, test: Callable[[Gated], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        async with gated(data, **settings) as one:
            await test(one)

    loop = _new_loop()  # the service's own, which is uvloop's: it looks at timers before sockets
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(run())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_a_fault_of_ours_is_logged_and_answered_and_the_connection_goes_on(
    tmp_path, monkeypatch, caplog
):
    def broken(*_given: object) -> object:
        raise KeyError("what the tenant is not to read")

    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        wire = await one.wire()
        for _ in range(2):  # when it is parsed, and when it is known
            assert await wire.call(acme, "p") == ONE
            with monkeypatch.context() as patched:
                patched.setattr("sandhost.serve.direct.to_json", broken)
                status, body = await wire.call(acme, "p")
            assert (status, json.loads(body)["title"]) == (500, "internal")
            assert b"not to read" not in body
        assert await wire.call(acme, "p") == ONE
        assert one.desk.service.host.stats().guests_live == 0

    with caplog.at_level(logging.ERROR, "sandhost.serve"):
        in_gated(tmp_path / "data", test)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError] * 2


def test_when_too_many_heads_are_known_all_are_forgotten_and_read_again(tmp_path):
    async def test(one: Gated) -> None:
        known, numbers = one.gate._known, itertools.count()
        acme, other = await one.desk.client("acme"), await one.desk.client("other")
        await acme.deploy("p", which(1))
        await acme.deploy("q", which(2))
        await other.deploy("p", which(3))
        wire = await one.wire()
        asked = [(acme, "p", b"1"), (acme, "q", b"2"), (other, "p", b"3")]

        async def ask(number: int) -> None:
            client, plugin, result = asked[number % 3]
            found = await wire.call(client, plugin, f"X-Number: {number}\r\n")
            assert found == (200, b'{"results": [%b]}' % result), number

        async def ask_until_known(count: int) -> None:
            """A call that took long here, where others run too, was the application's, and its head is not kept."""
            for _ in range(2 * gates._MOST_KNOWN):
                await ask(next(numbers))
                assert len(known) <= gates._MOST_KNOWN == 4096
                if len(known) == count:
                    return
            pytest.fail(f"{len(known)} heads are known, and never {count}")

        await ask_until_known(gates._MOST_KNOWN)
        some = (0, 1, 2, gates._MOST_KNOWN // 2, gates._MOST_KNOWN - 1)
        kept = dict(known)
        for head in list(kept)[:3] + list(kept)[-3:]:  # as they are known
            number = int(head.split(b"X-Number: ")[1].split(b"\r\n")[0])
            await ask(number)
        assert known == kept
        await ask_until_known(1)
        for number in (*some, *some):
            await ask(number)
        assert len(known) <= 1 + len(some)

    in_gated(tmp_path / "data", test)


@pytest.mark.parametrize("length", [gates._MOST_HEAD_BYTES, gates._MOST_HEAD_BYTES + 1])
def test_a_head_is_known_up_to_its_largest_size(tmp_path, length):
    async def test(one: Gated) -> None:
        known = one.gate._known
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        wire = await one.wire()
        while not known:  # a call that took long is the application's, and its head is not kept
            assert await wire.call(acme, "p") == ONE
        (short,) = known
        more = f"X-Long: {'x' * (length - len(short) - len('X-Long: ') - 2)}\r\n"
        for _ in range(5):
            assert await wire.call(acme, "p", more) == ONE
        longest = max(map(len, known))
        assert longest == (length if length <= gates._MOST_HEAD_BYTES else len(short))

    in_gated(tmp_path / "data", test)


def test_a_connection_may_rest_for_long_but_not_where_many_are_open(tmp_path, monkeypatch):
    monkeypatch.setattr(wires, "_CROWDED_S", 0.4)

    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        first = await one.wire()
        assert await first.call(acme, "p") == ONE
        await asyncio.sleep(1)
        assert await first.call(acme, "p") == ONE
        others = [await one.wire() for _ in range(4)]  # five of six
        resting, busy = others[0], others[1]
        began_s = time.monotonic()
        for wire in others:
            assert await wire.call(acme, "p") == ONE
        await asyncio.sleep(0.3)
        assert await busy.call(acme, "p") == ONE  # it is older, but has not rested
        await resting.ended()
        assert time.monotonic() - began_s >= 0.4

    in_gated(tmp_path / "data", test, timeout_keep_alive=60, limit_concurrency=6)


def test_who_connects_when_as_many_have_as_may_is_told_so_and_counted(tmp_path):
    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        first, second = await one.wire(), await one.wire()
        for wire in (first, second):
            assert await wire.call(acme, "p") == ONE
        third = await one.wire()
        status, body = await third.call(acme, "p")
        problem = json.loads(body)
        assert (status, problem["title"], problem["retry_after_s"]) == (503, "unavailable", 5)
        await third.ended()
        counted = {
            (taken.operation, taken.status): sum(taken.counts)
            for taken in one.desk.service.durations.taken()
        }
        assert counted["call", "5xx"] == 1
        assert await first.call(acme, "p") == ONE

    in_gated(tmp_path / "data", test, limit_concurrency=3)


def test_who_asks_when_the_time_to_rest_is_over_is_answered(tmp_path):
    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        wire = await one.wire()
        assert await wire.call(acme, "p") == ONE
        loop, (here, there) = asyncio.get_running_loop(), socket.socketpair()

        def late() -> None:  # called while sockets are looked at; timers come next
            loop.remove_reader(here)
            os.write(wire.writer.get_extra_info("socket").fileno(), request(acme, "p"))
            time.sleep(1.2)

        with here, there:
            loop.add_reader(here, late)
            there.send(b"now")
            assert await wire.answer() == ONE
        await wire.ended()

    in_gated(tmp_path / "data", test, timeout_keep_alive=1)


def test_a_tenant_that_is_removed_while_its_requests_are_at_work_stops_nobody(
    tmp_path, monkeypatch
):
    """Its share of the loop's turns is still counted, and what it may have can no longer be asked for."""
    monkeypatch.setattr("sandhost.serve.shares._TERMS_HOLD_S", 0.05)

    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        gone = await one.desk.client("gone")
        for client in (acme, gone):
            await client.deploy("p", which(1))
        await gone.deploy("spin", b'(module (func (export "which") (loop (br 0))))')
        theirs, ours = await one.wire(), await one.wire()
        path = "/v1/admin/tenants/gone"
        await one.desk.admin.ask("PUT", path, 200, json={"quotas": {"cpus": 0.05}})
        for _ in range(5):  # of a quota that is then not full for seconds
            assert (await theirs.call(gone, "p"))[0] == 200
        theirs.writer.write(request(gone, "spin", "Sandhost-Deadline: 0.3\r\n"))
        await asyncio.sleep(0.1)
        await one.desk.admin.ask("DELETE", path, 204)
        until_s = time.monotonic() + 1
        while time.monotonic() < until_s:
            assert await ours.call(acme, "p") == ONE
            await asyncio.sleep(0.02)
        assert (await theirs.answer())[0] in (429, 504)  # its quota or its time was over
        assert (await theirs.call(gone, "p"))[0] == 401

    in_gated(tmp_path / "data", test)


def test_what_was_refused_is_refused_again_before_its_tenants_turn_and_nothing_else_is(
    tmp_path, monkeypatch
):
    soon = "Sandhost-Deadline: 0.05\r\n"  # which the application would have

    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        wire = await one.wire()
        assert (await wire.call(acme, "p"))[0] == 200
        monkeypatch.setattr(one.desk.service.admission, "_pressure", lambda: 4)
        assert (await wire.call(acme, "p", soon))[0] == 429
        waiting: list[Callable[[], object]] = []
        with monkeypatch.context() as patched:
            patched.setattr(one.gate.shares, "must_wait", lambda _tenant: True)
            patched.setattr(one.gate.shares, "wait", lambda _tenant, go_on: waiting.append(go_on))
            assert (await wire.call(acme, "p", soon))[0] == 429
            assert not waiting
            other = await one.wire()
            other.writer.write(request(acme, "p"))
            while not waiting:
                await asyncio.sleep(0.01)
            patched.setattr(one.gate.shares, "has_time_to_refuse", lambda _tenant: False)
            wire.writer.write(request(acme, "p", soon))
            while len(waiting) < 2:
                await asyncio.sleep(0.01)
        for go_on in waiting:
            go_on()
        assert [(await each.answer())[0] for each in (other, wire)] == [429, 429]

    in_gated(tmp_path / "data", test)


def test_what_is_pipelined_behind_a_slow_request_stays_in_its_socket(tmp_path):
    count, spin = 20_000, b'(module (func (export "which") (loop (br 0))))'

    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        await acme.deploy("spin", spin)
        wire = await one.wire()
        slow = request(acme, "spin", "Sandhost-Deadline: 0.3\r\n")
        (protocol,) = one.server.server_state.connections
        answers = asyncio.ensure_future(wire.answers(count))
        wire.writer.write(slow * 10 + request(acme, "p") * (count - 10))
        most = 0
        while not answers.done():
            most = max(most, len(protocol.pipeline))
            await asyncio.sleep(0.01)
        assert set(answers.result()) <= {200, 429, 504}
        assert 100 < most < 4000  # what is read at once has fewer, and so has what is held

    in_gated(tmp_path / "data", test)


def test_many_that_connect_are_taken_within_a_few_turns_of_the_loop(tmp_path):
    count = 64

    async def test(one: Gated) -> None:
        loop, turns = asyncio.get_running_loop(), 0
        connections = one.server.server_state.connections

        def turn() -> None:
            nonlocal turns
            turns += 1
            if len(connections) < count:
                loop.call_soon(turn)

        waiting = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(count)]
        turn()
        while len(connections) < count:
            await asyncio.sleep(0.001)
        assert turns < count / 2
        for each in waiting:
            each.close()

    in_gated(tmp_path / "data", test)


def test_a_new_connection_with_a_token_does_not_wait_behind_those_without(tmp_path, monkeypatch):
    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        held: list[Callable[[], object]] = []
        monkeypatch.setattr(one.gate.shares, "must_wait", lambda tenant: tenant == NOBODY)
        monkeypatch.setattr(one.gate.shares, "wait", lambda _tenant, go_on: held.append(go_on))
        guess = request(acme, "p").replace(b"Bearer sh_", b"Bearer sh_x")
        without = re.sub(rb"Authorization: [^\r]*\r\n", b"", guess)
        strangers = [await one.wire() for _ in range(3)]
        for wire, what in zip(strangers, (guess, without, b"GET / HTTP/1.1\r\n\r\n")):
            wire.writer.write(what)
        while len(held) < len(strangers):
            await asyncio.sleep(0.01)
        assert await (await one.wire()).call(acme, "p") == ONE
        in_small = request(acme, "p").replace(b"Authorization: Bearer ", b"authorization:bearer  ")
        (small := await one.wire()).writer.write(in_small)
        assert (await small.answer())[0] == 200
        for go_on in held:
            go_on()
        assert [(await wire.answer())[0] for wire in strangers] == [401, 401, 404]

    in_gated(tmp_path / "data", test)
