"""Everything that the service does, by several tenants at once, for a while: right answers, and nothing left.

./run test stress            # ten seconds of it
./run test slow              # ten minutes, for the night; -- -k soak for this alone
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from helpers import guest_file, wait_until
from helpers.serving import ADMIN, Child, Client, child

TENANTS = 4
MOST_GROWTH_BYTES = 64 << 20
"""Of resident memory, from the first quarter of the time to the end; arbitrary, and no more for a longer time."""
MOST_MORE = 16
"""Threads and files, likewise: pools fill up, and the database opens files for each thread."""

SUM = guest_file("add").read_bytes()
COUNTER = b"""(module (global $n (mut i32) (i32.const 0)) (func (export "next") (result i32)
  (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n)))"""
BACK = b"""(module (memory (export "memory") 4)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "same") (param $at i32) (param $n i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $n))))
  (func (export "trap") (param i32 i32) (result i64) unreachable))"""


def versioned(number: int) -> bytes:
    """Return a module whose function `which` returns this number."""
    return f'(module (func (export "which") (result i32) (i32.const {number})))'.encode()


class Actor:
    """One tenant: what it does, each with an answer that it knows."""

    def __init__(self, client: Client, seed: int, until_s: float) -> None:
        self.client, self.chance, self.until_s = client, random.Random(seed), until_s
        self.done: Counter[str] = Counter()

    async def ask(self, method: str, path: str, status: int, **more: object) -> httpx.Response:
        """Return the answer, once it is no refusal: those say when to come again."""
        while True:
            response: httpx.Response = await self.client.ask(method, path, **more)
            if response.status_code != 429:
                break
            assert int(response.headers["retry-after"]) >= 1
            self.done["refused"] += 1
            await asyncio.sleep(0.05)
        assert response.status_code == status, (path, response.status_code, response.text)
        return response

    async def call(self, plugin: str, function: str, *arguments: int, **more: object) -> list[int]:
        path = f"/v1/plugins/{plugin}/call/{function}"
        response = await self.ask("POST", path, 200, json={"arguments": arguments}, **more)
        results: list[int] = response.json()["results"]
        return results

    async def deploy(self, plugin: str, module: bytes) -> int:
        made = await self.ask("PUT", f"/v1/plugins/{plugin}", 202, content=module)
        number = int(made.json()["version"])
        path = f"/v1/plugins/{plugin}/versions/{number}"
        found = await self.ask("GET", f"{path}?wait=60", 200)
        assert found.json()["state"] == "ready", found.text
        return number

    async def prepare(self) -> None:
        """Deploy what the others use."""
        spin = guest_file("spin").read_bytes()
        echo = guest_file("echo").read_bytes()
        modules = {"sum": SUM, "count": COUNTER, "back": BACK, "spin": spin, "echo": echo}
        for name, module in modules.items():
            await self.deploy(name, module)

    # ---- what it does ----

    async def numbers(self) -> None:
        left, right = self.chance.randrange(2**30), self.chance.randrange(2**30)
        assert await self.call("sum", "add", left, right) == [left + right]

    async def bytes_(self) -> None:
        given = self.chance.randbytes(self.chance.choice([0, 1, 1000, 100_000]))
        response = await self.ask("POST", "/v1/plugins/back/bytes/same", 200, content=given)
        assert response.content == given

    async def session(self) -> None:
        made = await self.ask("POST", "/v1/plugins/count/sessions", 201)
        name = made.json()["session"]
        headers = {"Sandhost-Session": name}
        for number in range(1, self.chance.randrange(2, 8)):
            assert await self.call("count", "next", headers=headers) == [number]
        await self.ask("DELETE", f"/v1/sessions/{name}", 204)
        await self.ask("POST", "/v1/plugins/count/call/next", 404, headers=headers)

    async def command(self) -> None:
        given = self.chance.randbytes(self.chance.randrange(20_000))
        response = await self.ask("POST", "/v1/plugins/echo/run?argv=a&argv=3", 200, content=given)
        lines = [json.loads(line) for line in response.text.splitlines()]
        written = b"".join(base64.b64decode(line.get("stdout", "")) for line in lines)
        assert written == b"arg echo\narg a\narg 3\n" + given
        assert lines[-1] == {"exit": 3}

    async def versions(self) -> None:
        number = await self.deploy("which", versioned(self.done["versions"]))
        ref = {"ref": str(number)}
        assert await self.call("which", "which", params=ref) == [self.done["versions"]]
        alias = "/v1/plugins/which/aliases/live"
        await self.ask("PUT", alias, 200, json={"version": number})
        live = {"ref": "live"}
        assert await self.call("which", "which", params=live) == [self.done["versions"]]
        if number > 1:  # the one before is named by nobody now
            path = f"/v1/plugins/which/versions/{number - 1}"
            await self.ask("DELETE", path, 204)
            await self.ask("GET", path, 404)

    async def deadline(self) -> None:
        headers = {"Sandhost-Deadline": "0.05"}
        await self.ask("POST", "/v1/plugins/spin/call/spin", 504, headers=headers)

    async def cancel(self) -> None:
        with contextlib.suppress(httpx.TimeoutException):
            await self.client.ask("POST", "/v1/plugins/spin/call/spin", timeout=0.05)

    async def retry(self) -> None:
        left = self.chance.randrange(1000)
        headers = {"Idempotency-Key": str(self.chance.getrandbits(64))}
        for _ in range(2):
            assert await self.call("sum", "add", left, 1, headers=headers) == [left + 1]

    async def wrong(self) -> None:
        call = "/v1/plugins/sum/call/add"
        await self.ask("POST", call, 400, content=b"{")
        await self.ask("POST", call, 400, json={"arguments": [1]})
        await self.ask("POST", "/v1/plugins/none/call/add", 404, json={"arguments": [1, 2]})
        await self.ask("POST", "/v1/plugins/back/bytes/trap", 422, content=b"x")
        await self.ask("POST", call, 413, content=bytes(200_000))
        await self.ask("PUT", "/v1/plugins/bad?memory=lots", 400, content=b"x")
        nobody = Client(self.client.http, "sh_" + "x" * 43)
        response = await nobody.ask("GET", "/v1/plugins")
        assert response.status_code == 401

    async def again(self, what: Callable[[], Awaitable[None]]) -> None:
        """Do one thing until the time is over."""
        while time.monotonic() < self.until_s:
            await what()
            self.done[what.__name__.strip("_")] += 1
            await asyncio.sleep(self.chance.choice([0, 0, 0.02]))

    async def act(self) -> None:
        """Do all of them at once."""
        await asyncio.gather(
            *map(
                self.again,
                (
                    self.numbers,
                    self.numbers,
                    self.bytes_,
                    self.session,
                    self.command,
                    self.versions,
                    self.deadline,
                    self.cancel,
                    self.retry,
                    self.wrong,
                ),
            )
        )


class Held(NamedTuple):
    """Some of what a process has."""

    resident_bytes: int
    threads: int
    files: int


class Process:
    """What the service's process holds, by the kernel."""

    def __init__(self, one: Child) -> None:
        self.one, self.proc = one, Path(f"/proc/{one.process.pid}")

    def held(self) -> Held:
        words = (self.proc / "statm").read_text().split()
        return Held(
            int(words[1]) * os.sysconf("SC_PAGESIZE"),
            len(os.listdir(self.proc / "task")),
            len(os.listdir(self.proc / "fd")),
        )

    def metrics(self, *names: str) -> list[float]:
        """Return metrics, summed over their labels."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        lines = httpx.get(f"{self.one.url}/metrics", headers=headers).text.splitlines()
        values = [line.rsplit(" ", 1) for line in lines if line[:1] != "#"]
        return [
            sum(float(value) for what, value in values if what.split("{")[0] == f"sandhost_{name}")
            for name in names
        ]

    def holds_nothing(self) -> bool:
        guests, sessions, in_flight, bags = self.metrics(
            "guests", "serve_sessions_live", "serve_requests_in_flight", "serve_bags_live"
        )
        return (guests, sessions, in_flight) == (0, 0, 0) and bags <= 1  # the one that asks


async def soak(one: Child, process: Process, seconds: float) -> Counter[str]:
    """Have all tenants act, and return how often they did what."""
    done: Counter[str] = Counter()
    warm, end = Held(0, 0, 0), Held(0, 0, 0)
    async with contextlib.AsyncExitStack() as stack:
        actors = []
        for number in range(TENANTS):
            http = await stack.enter_async_context(one.http())
            admin = Client(http, ADMIN)
            path = f"/v1/admin/tenants/t{number}"
            await admin.ask("PUT", path, 201, json={"quotas": {"memory_limit": 256 << 20}})
            made = await admin.ask(
                "POST", f"{path}/tokens", 201, json={"scopes": ["deploy", "invoke"]}
            )
            actors.append(Actor(Client(http, made["token"]), number, 0.0))
        await asyncio.gather(*(actor.prepare() for actor in actors))
        for part in (1, 3):  # quarters of the time
            for actor in actors:
                actor.until_s = time.monotonic() + seconds * part / 4
            await asyncio.gather(*(actor.act() for actor in actors))
            await asyncio.to_thread(wait_until, process.holds_nothing)
            warm, end = end, process.held()
        for actor in actors:
            done += actor.done
    assert end.resident_bytes - warm.resident_bytes < MOST_GROWTH_BYTES, (warm, end)
    assert end.threads - warm.threads < MOST_MORE, (warm, end)
    assert end.files - warm.files < MOST_MORE, (warm, end)
    # Connections that the clients have closed.
    wait_until(lambda: process.held().files <= warm.files)
    return done


@pytest.mark.parametrize(
    "seconds",
    [8, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
    ids=["short", "ten minutes"],
)
def test_tenants_get_right_answers_for_a_while_and_nothing_is_left(tmp_path, seconds):
    with child(tmp_path / "data", "--body-limit", "150 kB", "--guest-deadline", "60 s") as one:
        process = Process(one)
        done = asyncio.run(soak(one, process, seconds))
        for what in (
            "numbers",
            "bytes",
            "session",
            "command",
            "versions",
            "deadline",
            "cancel",
            "retry",
            "wrong",
        ):
            assert done[what] >= TENANTS, done
        # Connections that the clients closed; the database opens files for the threads that use it.
        assert one.end() == 0, one.said()
        assert b"Traceback" not in one.said(), one.said()
        print(f"{seconds} s: {dict(done)}")
