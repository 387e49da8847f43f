"""What clients may do to a connection: slow, too much, out of order, half closed; and to the door: guess.

Others are served meanwhile, and nothing stays. What is no HTTP at all is in test_serve_process.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from helpers import guest_file
from helpers.serving import ADMIN, Child, Client, child

BYTES = b"""(module (memory (export "memory") 256)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "much") (param $at i32) (param $n i32) (result i64)
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 900000))))"""
ANSWER = b'(module (func (export "which") (result i32) (i32.const 1)))'


class Wire:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    opened: ClassVar[list[Wire]] = []
    """Of this test: whatever becomes of it, they are closed at its end."""

    @classmethod
    async def open(cls, port: int) -> Wire:
        one = cls(*await asyncio.open_connection("127.0.0.1", port))
        cls.opened.append(one)
        return one

    @classmethod
    async def close_all(cls) -> None:
        for one in cls.opened:
            one.writer.transport.abort()
            with contextlib.suppress(OSError):
                await one.writer.wait_closed()
        cls.opened.clear()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Return the next answer: status, head, body."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), head, await self.reader.readexactly(length)

    async def at_end(self) -> bool:
        """Tell whether nothing more comes, since it is closed."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(1), 20) == b""
        return True


def call(token: str, body: bytes = b"", more: str = "", path: str = "p/call/which") -> bytes:
    """Return a request."""
    head = f"POST /v1/plugins/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    return f"{head}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Service:
    """A service with a tenant and its plugins."""

    def __init__(self, one: Child) -> None:
        self.one, self.port = one, one.port
        self.token = ""
        asyncio.run(self._prepare())

    async def _prepare(self) -> None:
        async with self.one.http() as http:
            admin = Client(http, ADMIN)
            await admin.ask("PUT", "/v1/admin/tenants/acme", 201, json={})
            made = await admin.ask(
                "POST", "/v1/admin/tenants/acme/tokens", 201, json={"scopes": ["deploy", "invoke"]}
            )
            self.token = made["token"]
            for name, module in (("p", ANSWER), ("b", BYTES), ("spin", guest_file("spin"))):
                await Client(http, self.token).deploy(name, module)

    def run(self, test: Callable[[Client], Awaitable[None]]) -> None:
        """Run a test as the tenant; nothing may be at work afterwards."""

        async def run() -> None:
            async with self.one.http() as http:
                acme = Client(http, self.token)
                try:
                    await test(acme)
                finally:
                    await Wire.close_all()
                until_s = time.monotonic() + 20
                while not await _idle(http):
                    assert time.monotonic() < until_s
                    await asyncio.sleep(0.02)
                assert await acme.call("p", "which") == [1]

        asyncio.run(run())


async def _idle(http: httpx.AsyncClient) -> bool:
    text = (await Client(http, ADMIN).ask("GET", "/metrics", 200)).text
    names = ("requests_waiting", "requests_in_flight", "sessions_live")
    return all(f"\nsandhost_serve_{name} 0.0\n" in text for name in names)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests: what one of them does to it, the next ones have to bear."""
    folder = tmp_path_factory.mktemp("wire")
    with child(folder / "data", "--body-limit", "1 MB", "--queue-time", "200 ms") as one:
        yield Service(one)
        assert one.end() == 0, one.said()
        assert b"Traceback" not in one.said(), one.said()


def test_pipelined_requests_are_answered_in_order_also_those_that_are_refused(service):
    async def test(acme: Client) -> None:
        wire = await Wire.open(service.port)
        good, bad = call(service.token), call("sh_" + "x" * 43)
        wire.send(good + bad + good + bad + bad + good)
        for status in (200, 401, 200, 401, 401, 200):
            assert (await wire.answer())[0] == status
        wire.send(bad * 400)  # each answered from the frame of the one before would be too deep
        for _ in range(400):
            assert (await wire.answer())[0] == 401
        wire.send(good)
        assert (await wire.answer())[2] == b'{"results": [1]}'

    service.run(test)


def test_a_long_pipeline_is_answered_in_order_to_its_end_while_others_are_served(service):
    """More than is read in one turn, by far; and its sender has closed his half."""

    async def test(acme: Client) -> None:
        good, bad = call(service.token), call(service.token, path="p/call/none")
        wire, count = await Wire.open(service.port), 400
        wire.send((good + bad + good) * count)
        wire.writer.write_eof()
        beside = asyncio.ensure_future(acme.call("p", "which"))
        statuses = [(await wire.answer())[0] for _ in range(3 * count)]
        triples = [statuses[at : at + 3] for at in range(0, 3 * count, 3)]
        let_in = [triple for triple in triples if 429 not in triple]
        assert len(let_in) > 10  # a tenth of a second of it is too much
        assert all(triple == [200, 400, 200] for triple in let_in)
        assert await wire.at_end()
        assert await beside == [1]

    service.run(test)


def test_nothing_is_answered_behind_what_ends_the_connection(service):
    async def test(_acme: Client) -> None:
        wire, good = await Wire.open(service.port), call(service.token)
        too_large = call("sh_" + "x" * 43, more="Transfer-Encoding: chunked\r\n")
        wire.send(good + too_large.replace(b"Content-Length: 0\r\n", b"") + b"junk" + good * 200)
        assert (await wire.answer())[0] == 200
        assert (await wire.answer())[0] == 401
        assert await wire.at_end()

    service.run(test)


def test_who_closes_his_half_gets_his_answer_or_leaves_nothing(service):
    async def test(acme: Client) -> None:
        for request in (call(service.token), call(service.token, b'{"arguments": []}')):
            wire = await Wire.open(service.port)
            wire.send(request)
            wire.writer.write_eof()
            assert (await wire.reader.read())[:12] in (b"HTTP/1.1 200", b"")
        for part in (b"POST /v1", call(service.token)[:-2], call(service.token, b"x" * 100)[:-50]):
            wire = await Wire.open(service.port)
            wire.send(part)
            wire.writer.write_eof()
            await wire.at_end()

    service.run(test)


def test_a_body_that_comes_slowly_holds_up_nobody_and_is_taken(service):
    async def test(acme: Client) -> None:
        body = b'{"arguments":  []}'
        slow = [await Wire.open(service.port) for _ in range(40)]
        for wire in slow:
            wire.send(call(service.token, body)[: -len(body)])
        for at in range(len(body)):
            for wire in slow:
                wire.send(body[at : at + 1])
            if not at % 6:
                assert await acme.call("p", "which") == [1]
            await asyncio.sleep(0.02)
        for wire in slow:
            assert (await wire.answer())[0] == 200

    service.run(test)


def test_an_answer_that_nobody_reads_stops_nobody_else(service):
    async def test(acme: Client) -> None:
        slow = [await Wire.open(service.port) for _ in range(8)]
        for wire in slow:
            wire.writer.transport.pause_reading()
            wire.send(call(service.token, path="b/bytes/much") * 10)  # 9 MB of answers each
        for _ in range(20):
            assert await acme.call("p", "which") == [1]
            await asyncio.sleep(0.01)
        for wire in slow[:4]:
            wire.writer.transport.resume_reading()
            for _ in range(10):
                status, _, body = await wire.answer()
                assert (status, len(body)) in ((200, 900_000), (429, len(body)))

    service.run(test)


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_that_are_too_large_are_refused_before_they_are_read(service, chunked):
    async def test(acme: Client) -> None:
        wire = await Wire.open(service.port)
        head = call(service.token, path="b/bytes/much").partition(b"Content-Length")[0]
        if chunked:
            wire.send(
                head
                + b"Transfer-Encoding: chunked\r\n\r\n"
                + b"8000\r\n%b\r\n" % bytes(0x8000) * 40
            )
        else:
            wire.send(head + b"Content-Length: 100000000000\r\n\r\n")
        status, _, body = await wire.answer()
        assert status == 413
        assert b'"limit": 1000000' in body

    service.run(test)


def test_a_refused_request_with_a_body_to_come_ends_its_connection(service):
    async def test(acme: Client) -> None:
        nobody = "sh_" + "x" * 43
        for rest in (
            b"Content-Length: 100000\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\n",
            b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        ):
            wire = await Wire.open(service.port)
            wire.send(call(nobody).partition(b"Content-Length")[0] + rest)
            status, head, _ = await wire.answer()
            assert status == 401
            assert b"connection: close" in head.lower()
            assert await wire.at_end()

    service.run(test)


def test_who_is_refused_while_still_sending_gets_the_answer(service):
    async def test(acme: Client) -> None:
        nobody = Client(acme.http, "sh_" + "x" * 43)
        for _ in range(20):
            response = await nobody.ask("POST", "/v1/plugins/b/bytes/much", content=bytes(900_000))
            assert response.status_code == 401

    service.run(test)


def test_guessing_tokens_costs_a_connection_little_and_finds_nothing(service):
    guesses = 2000

    async def test(acme: Client) -> None:
        def cpu() -> int:
            stat = (
                Path(f"/proc/{service.one.process.pid}/stat").read_text().rpartition(")")[2].split()
            )
            return int(stat[11]) + int(stat[12])

        wire = await Wire.open(service.port)
        seen = set()
        before = cpu()
        for number in range(guesses):
            # Some that are near a right one: their answer is the same, to the byte.
            guess = (
                service.token[:-4] + secrets.token_hex(2)
                if number % 2
                else secrets.token_urlsafe(32)
            )
            wire.send(call(guess))
            status, _, body = await wire.answer()
            seen.add((status, body))
        assert len(seen) == 1
        assert seen.pop()[0] == 401
        # Not a time: processor ticks of 10 ms; a guess that was hashed slowly would cost hundreds.
        assert cpu() - before < guesses / 2
        assert await acme.call("p", "which") == [1]

    service.run(test)


def test_more_than_can_be_done_is_refused_at_once_and_over_when_it_is_over(service):
    """Guests that compute hold all places; what cannot wait is refused, by known heads as well."""

    async def test(acme: Client) -> None:
        wires = [await Wire.open(service.port) for _ in range(150)]
        spin = call(service.token, path="spin/call/spin", more="Sandhost-Deadline: 2\r\n")
        for wire in wires:
            wire.send(spin)
        wanted = asyncio.gather(*(wire.answer() for wire in wires))
        answers = await asyncio.wait_for(wanted, 30)
        statuses = {status for status, _, _ in answers}
        assert statuses <= {429, 504}, statuses
        assert 429 in statuses
        for status, head, body in answers:
            if status == 429:
                assert b"retry-after: " in head.lower()
                assert b'"title": "too-many"' in body
        for wire in wires:
            wire.send(call(service.token))  # the connections are as good as before
        for wire in wires:
            status, _, body = await wire.answer()
            assert status == 429 or body == b'{"results": [1]}'
        until_s = time.monotonic() + 10
        while (await acme.ask("POST", "/v1/plugins/p/call/which")).status_code != 200:
            assert time.monotonic() < until_s
            await asyncio.sleep(0.05)

    service.run(test)


def test_whoever_goes_while_waiting_for_a_place_leaves_the_line(service):
    async def test(acme: Client) -> None:
        wires = [await Wire.open(service.port) for _ in range(60)]
        spin = call(service.token, path="spin/call/spin")
        for wire in wires:
            wire.send(spin)
        await asyncio.sleep(0.05)
        await Wire.close_all()  # the guests end long before their ten seconds

    service.run(test)


async def _figure(http: httpx.AsyncClient, name: str) -> float:
    text = (await Client(http, ADMIN).ask("GET", "/metrics", 200)).text
    return float(text.partition(f"\nsandhost_serve_{name} ")[2].split()[0])


TAKEN_AS_WELL = [
    ("which", b""),
    ("which", b'{"arguments": []}'),
    ("which", b'{"arguments": [1]}'),
    ("which", b'{"arguments": {}}'),
    ("which", b'{"argument": []}'),
    ("which", b"[]"),
    ("which", b'{"arguments": [NaN]}'),
    ("which", b"\xff"),
    ("nothing", b""),
    ("trap", b""),
    ("sum", b'{"arguments": [2, 3]}'),
    ("sum", b'{"arguments": [2, 9007199254740993]}'),
    ("sum", b'{"arguments": [2, 18446744073709551616]}'),
    ("half", b'{"arguments": ["Infinity"]}'),
    ("much", b""),
]
SOME = b"""(module (memory (export "memory") 1)
  (func (export "which") (result i32) (i32.const 1))
  (func (export "sum") (param i32 i64) (result i64) (i64.add (i64.extend_i32_s (local.get 0)) (local.get 1)))
  (func (export "half") (param f64) (result f64) (f64.div (local.get 0) (f64.const 2)))
  (func (export "much") (result i32) (memory.grow (i32.const 60000)))
  (func (export "trap") unreachable))"""


def test_what_is_answered_at_the_wire_is_what_the_application_answers(service):
    async def test(acme: Client) -> None:
        await acme.deploy("some", SOME)
        # Who will not wait for long goes to the application.
        own, direct = "Sandhost-Deadline: 0.0999\r\n", "Sandhost-Deadline: 9.5\r\n"
        last = "Connection: close\r\n"
        kept = await Wire.open(service.port)
        at_once: Counter[bool] = Counter()  # by whether it should be
        for function, body in TAKEN_AS_WELL:
            answers = []
            # The second time its head is known.
            for more in (own, "", "", direct, own + last, last, last):
                wire = await Wire.open(service.port) if last in more else kept
                before = await _figure(acme.http, "requests_at_once_total")
                wire.send(call(service.token, body, more, f"some/call/{function}"))
                status, head, content = await wire.answer()
                lines = sorted(
                    line.lower()
                    for line in head.split(b"\r\n")[1:]
                    if not line.lower().startswith(b"date:")
                )
                # wasmtime names the next instruction where a tick came just as the function began.
                answers.append(
                    (status, lines, re.sub(rb"at 0x[0-9a-f]+", b"at its place", content))
                )
                if last in more:
                    assert await wire.at_end()
                by_wire = own not in more
                at_once[by_wire] += await _figure(acme.http, "requests_at_once_total") - before
            assert answers[1:4] == answers[:1] * 3, (function, body)
            assert answers[5:] == answers[4:5] * 2, (function, body)
            assert b"connection: close" in answers[4][1]
        assert at_once[False] == 0
        # What once took long, as on a busy machine anything may, goes to the application for a while.
        assert at_once[True] > len(TAKEN_AS_WELL) * 5 / 2

    service.run(test)


def test_heads_that_were_seen_before_are_read_as_the_first_time(service):
    async def test(acme: Client) -> None:
        made = await Client(acme.http, ADMIN).ask("PUT", "/v1/admin/tenants/other", 201, json={})
        assert made is not None
        token = (
            await Client(acme.http, ADMIN).ask(
                "POST", "/v1/admin/tenants/other/tokens", 201, json={"scopes": ["deploy", "invoke"]}
            )
        )["token"]
        other = b'(module (func (export "which") (result i32) (i32.const 2)))'
        await Client(acme.http, token).deploy("p", other)
        mine, theirs = call(service.token), call(token)
        for _ in range(3):
            # Two in one piece: the head of the first is not the second's.
            wire = await Wire.open(service.port)
            wire.send(mine + theirs)
            assert [(await wire.answer())[2] for _ in range(2)] == [
                b'{"results": [1]}',
                b'{"results": [2]}',
            ]
            for one, number in ((mine, 1), (theirs, 2), (mine, 1)):
                wire.send(one)
                assert (await wire.answer())[2] == b'{"results": [%d]}' % number
            # Empty lines before a request are no head.
            wire.send(b"\r\n\r\n" + mine)
            assert (await wire.answer())[2] == b'{"results": [1]}'
            wire.send(b"\r\n\r\n" + theirs)
            assert (await wire.answer())[2] == b'{"results": [2]}'
            # Lines that end in another way: the parser's end of the head may not be ours.
            for odd in (mine.replace(b"\r\nHost", b"\nHost"), b"\n" + mine):
                odd_wire = await Wire.open(service.port)
                odd_wire.send(odd)
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    assert (await odd_wire.answer())[2] != b'{"results": [2]}'
            # In pieces, and with another body under the same head.
            for piece in (mine[:40], mine[40:-2], mine[-2:]):
                wire.send(piece)
                await asyncio.sleep(0.01)
            assert (await wire.answer())[0] == 200
            for body, status in ((b"{}", 200), (b"{!", 400), (b"{}", 200)):
                wire.send(call(service.token, body))
                assert (await wire.answer())[0] == status
        # A token that is revoked is known no longer, whatever was read before.
        gone = await Client(acme.http, ADMIN).ask("GET", "/v1/admin/tenants/other/tokens", 200)
        for one in gone["tokens"]:
            await Client(acme.http, ADMIN).ask(
                "DELETE", f"/v1/admin/tenants/other/tokens/{one['id']}", 204
            )
        wire.send(theirs)
        assert (await wire.answer())[0] == 401
        await Client(acme.http, ADMIN).ask("DELETE", "/v1/admin/tenants/other", 204)

    service.run(test)


@pytest.mark.parametrize("token", ["good", "bad"])
def test_who_reads_no_answers_is_not_read_from(service, token):
    async def test(acme: Client) -> None:
        one = call(service.token if token == "good" else "sh_" + "x" * 43)
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port, limit=1 << 16)
        wire = Wire(reader, writer)
        Wire.opened.append(wire)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        count = (64 << 20) // len(one)
        wire.send(one * count)
        left, since_s, seen = -1, time.monotonic(), []
        # Not for long: what was read may end within a head, and is closed after ten seconds.
        while time.monotonic() - since_s < 2:
            if left != (left := writer.transport.get_write_buffer_size()):
                since_s = time.monotonic()
                seen.append((round(since_s, 1), left))
            await asyncio.sleep(0.1)
        assert not writer.transport.is_closing(), seen
        assert left > 32 << 20, seen
        assert await acme.call("p", "which") == [1]

    service.run(test)
