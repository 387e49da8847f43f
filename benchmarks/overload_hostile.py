"""The hostile tenant of overload.py: everything that a client with a token may try, at once.

A process of its own for what is slow, and one of overload.c for the flood. What each does is bounded, so
that what the others feel is the service under attack, and not two processors that an attacker on
the same machine has taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection

from overload_load import Load, Stream, call, statuses

FLOOD_PER_S, GUESSES_PER_S = 2000, 500
AT_ONCE = {"spin": 8, "grow": 4, "garbage": 2, "big": 2, "oversized": 1, "hoard": 2, "idle": 200}
MEANS = ("flood", "guess", *AT_ONCE)
"""Of what the attack is made."""
PAUSE_S = 0.05
"""Between attempts at what makes much work: uploads, bodies, sessions."""
OVERSIZED = 16 << 20
MODULES = 64
"""Different ones, more than are taken in an attack."""

SPIN = b'(module (func (export "spin") (loop (br 0))))'
GROW = b"""(module (memory (export "memory") 1)
  (func (export "grow") (local $at i32)
    (loop (drop (memory.grow (i32.const 16)))
      (i32.store (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 4096)))
      (br 0))))"""


def big_module(number: int) -> bytes:
    """Return a module that takes long to compile, another one for each number."""
    body = "(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const 31)) (i32.const 7)))" * 40
    functions = "".join(
        f'(func (export "f{i}") (param i32) (result i32) {body} (i32.const {number * 1000 + i}))'
        for i in range(400)
    )
    return f"(module {functions})".encode()


class Hostile:
    """One tenant that means harm."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token

    def prepare(self) -> None:
        """Deploy what it attacks with."""
        asyncio.run(_Attack(self._port, self._token).prepare())

    def begin(self, seconds: float, means: Sequence[str] = MEANS) -> Running:
        """Attack from now on for so long, by these means."""
        return Running(self._port, self._token, seconds, means)


class Running:
    """An attack that goes on."""

    def __init__(self, port: int, token: str, seconds: float, means: Sequence[str]) -> None:
        self._here, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_run, args=(port, token, seconds, means, there))
        self._process.start()
        floods = {
            "flood": Stream(FLOOD_PER_S, 64, call(token)),
            "guess": Stream(GUESSES_PER_S, 16, call("sh_" + secrets.token_urlsafe(32))),
        }
        self._flooding = [name for name in floods if name in means]
        self._flood = Load(
            port, [floods[name] for name in self._flooding], seconds, seed=7, first=False
        )

    def end(self) -> dict[str, int]:
        """Wait for it; return what it met, by what it did."""
        met = Counter(self._here.recv())
        self._process.join()
        arrivals = self._flood.arrivals()
        for number, name in enumerate(self._flooding):
            of_it = [one for one in arrivals if one.stream == number]
            met.update({f"{name} {status}": n for status, n in statuses(of_it).items()})
        return dict(met)


def _run(port: int, token: str, seconds: float, means: Sequence[str], pipe: Connection) -> None:
    # An attacker has a machine of his own: it is the service that is to be slowed, not this one.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    attack = _Attack(port, token)
    asyncio.run(attack.run(seconds, means))
    pipe.send(dict(attack.met))


class _Attack:
    def __init__(self, port: int, token: str) -> None:
        self.met: Counter[str] = Counter()
        self._port, self._token = port, token
        self._sessions: list[str] = []
        # Made before it begins: what it costs to make them is the attacker's, who has a machine of his own.
        first = random.getrandbits(20)
        self._modules = itertools.cycle([big_module(first + number) for number in range(MODULES)])
        self._noise = itertools.cycle([os.urandom(256 << 10) for _ in range(MODULES)])
        self._oversized_body = b"%x\r\n%b\r\n0\r\n\r\n" % (OVERSIZED, bytes(OVERSIZED))

    async def prepare(self) -> None:
        for name, module in (("spin", SPIN), ("grow", GROW)):
            await self._ask("PUT", f"/v1/plugins/{name}", module)
            await self._ask("GET", f"/v1/plugins/{name}/versions/1?wait=30")

    async def run(self, seconds: float, means: Sequence[str]) -> None:
        tasks = [
            asyncio.ensure_future(self._again(getattr(self, f"_{name}")))
            for name, count in AT_ONCE.items()
            if name in means
            for _ in range(count)
        ]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._sessions:
            await self._ask("DELETE", f"/v1/sessions/{self._sessions.pop()}")

    async def _again(self, what: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                outcome = await what()
            except (OSError, EOFError, ValueError):
                outcome = "closed"
            self.met[f"{what.__name__.strip('_')} {outcome}"] += 1
            await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))

    async def _spin(self) -> object:
        return (await self._ask("POST", "/v1/plugins/spin/call/spin"))[0]

    async def _grow(self) -> object:
        return (await self._ask("POST", "/v1/plugins/grow/call/grow"))[0]

    async def _garbage(self) -> object:
        return (await self._ask("PUT", "/v1/plugins/junk", next(self._noise)))[0]

    async def _big(self) -> object:
        return (await self._ask("PUT", "/v1/plugins/big", next(self._modules)))[0]

    async def _oversized(self) -> object:
        path, body = "/v1/plugins/spin/bytes/spin", self._oversized_body
        return (await self._ask("POST", path, body, chunked=True))[0]

    async def _hoard(self) -> object:
        status, answer = await self._ask("POST", "/v1/plugins/spin/sessions")
        if status == 201:
            self._sessions.append(json.loads(answer)["session"])
        return status

    async def _idle(self) -> object:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"POST /v1/plugins/sum/call/add HTTP/1.1\r\nHost: x\r\n")
        try:
            return len(await reader.read())
        finally:
            writer.close()

    async def _ask(
        self, method: str, path: str, body: bytes = b"", *, chunked: bool = False
    ) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            head += f"Authorization: Bearer {self._token}\r\n"
            if chunked:
                writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            else:
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            with contextlib.suppress(ConnectionError):  # refused before it was read
                for at in range(0, len(body), 65536):
                    writer.write(body[at : at + 65536])
                    await writer.drain()
            answer = await reader.read()
            return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]
        finally:
            writer.close()
