"""What is too much for the service over HTTP: bodies, modules, numbers, memory; in this process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from helpers.serving import COUNTER, REVERSE, Desk, in_desk

from sandhost.govern.ladder import Level


def test_bodies_and_modules_have_a_largest_size(data):
    async def pieces(count: int):
        for _ in range(count):
            yield b" " * 1000

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("rev", REVERSE)
        for content in (bytes(10_001), pieces(11)):
            path = "/v1/plugins/rev/bytes/reverse"
            await acme.problem("POST", path, 413, "too-large", content=content)
        await acme.problem(
            "POST", "/v1/plugins/rev/call/alloc", 413, "too-large", content=pieces(11)
        )
        for content in (b" " * 20_001, pieces(21)):
            path = "/v1/plugins/rev"
            await acme.problem("PUT", path, 413, "too-large", content=content)
        assert len(os.listdir(data / "blobs")) == 1

    in_desk(data, test, body_limit=10_000, upload_limit=20_000)


def test_the_body_of_a_call_that_cannot_be_is_not_read_and_numbers_take_little(data):
    async def unwanted():
        raise AssertionError
        yield b""

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("rev", REVERSE)
        for path, status, code in (
            ("/v1/plugins/rev/bytes/alloc", 400, "invalid"),
            ("/v1/plugins/rev/bytes/nope", 400, "invalid"),
            ("/v1/plugins/rev/bytes/reverse?ref=7", 404, "missing"),
        ):
            await acme.problem("POST", path, status, code, content=unwanted())
        numbers = b'{"arguments": [1]%s}' % (b" " * 65_000)
        assert (await acme.ask("POST", "/v1/plugins/rev/call/alloc", 200, content=numbers))[
            "results"
        ]
        path = "/v1/plugins/rev/call/alloc"
        await acme.problem("POST", path, 413, "too-large", content=numbers + b" " * 600)

    in_desk(data, test)


def test_short_memory_becomes_a_429_and_goes_again(data):
    """The limit is moved instead of the memory, as in test_pressure.py."""

    async def level(one: Desk, wanted: Level) -> None:
        for _ in range(1500):
            if one.service.host.pressure.level == wanted:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(one.service.host.pressure.level)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("count", COUNTER)
        pressure = one.service.host.pressure
        pressure.limit_bytes = int(resident() / 0.96)
        await level(one, Level.RELEASE)
        path = "/v1/plugins/count/call/next"
        response = await acme.ask("POST", path)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["retry_after_s"] > 0
        response = await one.http.get("/readyz")
        assert (response.status_code, response.json()["pressure"]) == (503, "release")
        assert (await one.http.get("/healthz")).status_code == 200
        await acme.ask("GET", "/v1/plugins", 200)  # what starts no guest goes on
        pressure.limit_bytes = 64 * 2**30
        await level(one, Level.CALM)
        assert await acme.call("count", "next") == [1]
        assert (await one.http.get("/readyz")).status_code == 200
        assert one.service.admission.stats().refused["pressure"] == 1

    in_desk(data, test, process_limit="64 GiB")
