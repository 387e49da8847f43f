"""The gate in this process, where a test can look at it and break it: faults of ours, and heads that it keeps."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvicorn
from helpers.serving import Client, Desk, desk

from sandhost.serve import gate as gates
from sandhost.serve.gate import Gate
from sandhost.serve.http import make_app
from sandhost.serve.wire import GatedProtocol


def which(number: int) -> bytes:
    return f'(module (func (export "which") (result i32) (i32.const {number})))'.encode()


class Gated:
    """A service behind its gate, and one connection to it."""

    def __init__(
        self, one: Desk, gate: Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.desk, self.gate, self._reader, self._writer = one, gate, reader, writer

    async def call(self, client: Client, plugin: str, more: str = "") -> tuple[int, bytes]:
        """Call `which`, on the one connection; return status and body."""
        token = client.headers["Authorization"]
        self._writer.write(
            f"POST /v1/plugins/{plugin}/call/which HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: {token}\r\n{more}Content-Length: 0\r\n\r\n".encode()
        )
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 20)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), await self._reader.readexactly(length)


@contextlib.asynccontextmanager
async def gated(data: Path) -> AsyncIterator[Gated]:
    async with desk(data) as one:

        class Protocol(GatedProtocol):
            gate = Gate(one.service)

        config = uvicorn.Config(
            make_app(one.service), http=Protocol, ws="none", lifespan="off", log_config=None
        )
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                yield Gated(one, Protocol.gate, reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()
                server.should_exit = True
                await serving


def in_gated(data: Path, test: Callable[[Gated], Awaitable[None]]) -> None:
    async def run() -> None:
        async with gated(data) as one:
            await test(one)

    asyncio.run(run())


def test_a_fault_of_ours_is_logged_and_answered_and_the_connection_goes_on(
    tmp_path, monkeypatch, caplog
):
    def broken(*_given: object) -> object:
        raise KeyError("what the tenant is not to read")

    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        for _ in range(2):  # when it is parsed, and when it is known
            assert await one.call(acme, "p") == (200, b'{"results": [1]}')
            with monkeypatch.context() as patched:
                patched.setattr("sandhost.serve.direct.to_json", broken)
                status, body = await one.call(acme, "p")
            assert (status, json.loads(body)["title"]) == (500, "internal")
            assert b"not to read" not in body
        assert await one.call(acme, "p") == (200, b'{"results": [1]}')
        assert one.desk.service.host.stats().guests_live == 0

    with caplog.at_level(logging.ERROR, "sandhost.serve"):
        in_gated(tmp_path / "data", test)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError] * 2


def test_when_too_many_heads_are_known_all_are_forgotten_and_read_again(tmp_path):
    async def test(one: Gated) -> None:
        known = one.gate._known
        acme, other = await one.desk.client("acme"), await one.desk.client("other")
        await acme.deploy("p", which(1))
        await acme.deploy("q", which(2))
        await other.deploy("p", which(3))
        asked = [(acme, "p", b"1"), (acme, "q", b"2"), (other, "p", b"3")]

        async def ask(number: int) -> None:
            client, plugin, result = asked[number % 3]
            found = await one.call(client, plugin, f"X-Number: {number}\r\n")
            assert found == (200, b'{"results": [%b]}' % result), number

        most = gates._MOST_KNOWN
        assert most == 4096
        for number in range(most):
            await ask(number)
        assert len(known) == most
        for number in (0, 1, 2, most - 1):  # as they are known
            await ask(number)
        assert len(known) == most
        await ask(most)
        assert len(known) == 1
        for number in (0, 1, 2, most - 1, most, 0, 1, 2):
            await ask(number)
        assert len(known) == 5

    in_gated(tmp_path / "data", test)


@pytest.mark.parametrize("length", [gates._MOST_HEAD_BYTES, gates._MOST_HEAD_BYTES + 1])
def test_a_head_is_known_up_to_its_largest_size(tmp_path, length):
    async def test(one: Gated) -> None:
        acme = await one.desk.client("acme")
        await acme.deploy("p", which(1))
        await one.call(acme, "p")
        (short,) = one.gate._known
        more = f"X-Long: {'x' * (length - len(short) - len('X-Long: ') - 2)}\r\n"
        for _ in range(2):
            assert await one.call(acme, "p", more) == (200, b'{"results": [1]}')
        longest = max(map(len, one.gate._known))
        assert longest == (length if length <= gates._MOST_HEAD_BYTES else len(short))

    in_gated(tmp_path / "data", test)
