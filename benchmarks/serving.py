"""A fresh guest for each request over HTTP, beside the same application answering without a sandbox.

    python benchmarks/serving.py            # a minute, into benchmarks/results/
    python benchmarks/serving.py --quick

One process serves: the application of `sandhost serve`, and one more route that adds in Python, with the
same token check, body and JSON. This one asks, over connections that stay open, a request at a time
on each. Both want a processor: with two, the server has one of them. The server's own CPU time for each
request is taken too, which says the same on a machine that is busy with others.

Then an open loop: requests begin at their times, at 80 % of what was reached before, whether those before
them are answered or not, and their time counts from when they were to begin. Then bodies: the same
function by way of the pool's buffers, of any size here, and of Python's bytes, with the memory that the
server had at its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from common import RESULTS, median, percentile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandhost.bench.machine import describe
from sandhost.serve import bodies
from sandhost.serve.app import open_service
from sandhost.serve.config import Settings
from sandhost.serve.http import make_app
from sandhost.serve.records import VersionSettings
from sandhost.serve.requests import body, json_object, route, token_of
from sandhost.serve.service import Invocation
from sandhost.serve.tokens import Scope
from sandhost.serve.wire import BoundedProtocol

CONNECTIONS = (1, 16)
OPEN_LOOP_LOAD, OPEN_LOOP_CONNECTIONS = 0.8, 128
BODY_BYTES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
BODY_CONNECTIONS = 8
ADMIN = "sh_" + "A" * 43
ADD = b"""(module (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""
ECHO = b"""(module
  (memory (export "memory") 1 200)
  (func (export "alloc") (param $n i32) (result i32)
    (drop (memory.grow (i32.div_u (i32.add (local.get $n) (i32.const 131071)) (i32.const 65536))))
    (i32.const 65536))
  (func (export "echo") (param $at i32) (param $n i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $n)))))"""
BODY_WAYS = {"Python's bytes": "/bytes", "the pool": "/v1/plugins/echo/bytes/echo"}
WAYS = {"without a sandbox": "/plain", "a fresh guest": "/v1/plugins/sum/call/add"}
ANSWERS = {"/plain": b'{"results":[5]}', "/v1/plugins/sum/call/add": b'{"results": [5]}'}
"""JSON of Starlette's, and of Python's."""


async def serve(folder: str, pipe: Connection) -> None:
    """Serve until the other end of the pipe says so."""
    settings = Settings(data=folder, admin_token=ADMIN)
    bodies.SMALL = 0  # all go through the pool, to see from which size on that is worth it
    with open_service(settings) as (service, _):
        service.start()

        async def plain(request: Request) -> Response:
            service.who(token_of(request), Scope.INVOKE)
            left, right = json_object(await body(request, settings.body_limit))["arguments"]
            return JSONResponse({"results": [left + right]})

        async def joined(request: Request) -> Response:
            who = service.who(token_of(request), Scope.INVOKE)
            what = Invocation(who, "echo", "latest", "echo")
            given = await body(request, settings.body_limit)
            return Response(await service.call_bytes(what, given))

        registry = service.registry
        who = registry.tokens.who(ADMIN)
        limits = settings.guest_limits()
        for name, module in (("sum", ADD), ("echo", ECHO)):
            blob = registry.blobs.put([module], 1 << 20)
            version = await service.deploy(who, name, blob, VersionSettings(limits))
            while registry.plugins.version(who.tenant, name, version.number).state != "ready":
                await asyncio.sleep(0.01)
        routes = [route("POST", "/plain", plain), route("POST", "/bytes", joined)]
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(service, routes),
                port=0,
                http=BoundedProtocol,
                lifespan="off",
                access_log=False,
                log_config=None,
            )
        )
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        pipe.send(server.servers[0].sockets[0].getsockname()[1])
        await asyncio.to_thread(pipe.recv)
        server.should_exit = True
        await serving
        await service.drain()


def run_server(folder: str, pipe: Connection) -> None:
    """Be the server's process."""
    import uvloop

    uvloop.install()
    asyncio.run(serve(folder, pipe))


@contextlib.contextmanager
def served() -> Iterator[tuple[int, int]]:
    """Have a server in a process of its own; give its port and its number."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=run_server, args=(folder, there))
        process.start()
        assert process.pid is not None
        yield here.recv(), process.pid
        here.send(None)
        process.join()
        assert process.exitcode == 0


class Asker:
    """A connection that asks one thing again and again."""

    def __init__(self, port: int, path: str, content: bytes, answer: bytes) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n"
        self.request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        self.port, self.answer = port, answer

    async def __aenter__(self) -> Asker:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.port, limit=1 << 20
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self) -> None:
        """Ask once, and check the answer."""
        self.writer.write(self.request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert await self.reader.readexactly(length) == self.answer


def adding(port: int, path: str) -> Asker:
    """Return who has two numbers added."""
    return Asker(port, path, b'{"arguments": [2, 3]}', ANSWERS[path])


async def closed_loop(makes: list[Asker], seconds: float) -> tuple[float, list[float]]:
    """Have each ask as soon as it is answered; return requests a second, and each one's µs."""
    taken: list[float] = []
    until = time.perf_counter() + seconds

    async def one(asker: Asker) -> None:
        async with asker:
            while (began := time.perf_counter()) < until:
                await asker.ask()
                taken.append((time.perf_counter() - began) * 1e6)

    began = time.perf_counter()
    await asyncio.gather(*map(one, makes))
    return len(taken) / (time.perf_counter() - began), taken


async def open_loop(makes: list[Asker], rate: float, seconds: float) -> list[float]:
    """Begin requests at their times; return each one's µs from then until its answer."""
    taken: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        idle: asyncio.Queue[Asker] = asyncio.Queue()
        for asker in makes:
            idle.put_nowait(await stack.enter_async_context(asker))
        began, asking = time.perf_counter(), set()

        async def one(asker: Asker, due: float) -> None:
            await asker.ask()
            taken.append((time.perf_counter() - due) * 1e6)
            idle.put_nowait(asker)

        for number in range(round(rate * seconds)):
            due = began + number / rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            task = asyncio.ensure_future(one(await idle.get(), due))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)
    return taken


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, word: str) -> int:
    """Return a figure of /proc/PID/status, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{word}:")[1].split()[0]) << 10


def measure(port: int, pid: int, connections: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures for so many connections."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    used = dict.fromkeys(WAYS, 0.0)
    for number in range(rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            askers = [adding(port, WAYS[way]) for _ in range(connections)]
            before = cpu_s(pid)
            rate, taken = asyncio.run(closed_loop(askers, seconds))
            used[way] += cpu_s(pid) - before
            rates[way].append(rate)
            times[way] += taken
    plain, guest = WAYS
    ratios = [ours / theirs for ours, theirs in zip(rates[guest], rates[plain])]
    figures: dict[str, Any] = {
        way: {
            "requests_per_s": median(rates[way]),
            "server_cpu_us": used[way] / len(times[way]) * 1e6,
            **percentiles(times[way]),
        }
        for way in WAYS
    }
    return {
        **figures,
        "throughput_ratio": median(ratios),
        "ratios": ratios,
        "server_cpu_ratio": figures[plain]["server_cpu_us"] / figures[guest]["server_cpu_us"],
    }


def percentiles(taken: list[float]) -> dict[str, float]:
    """Return what is said of times."""
    ordered = sorted(taken)
    return {"p50_us": percentile(ordered, 50), "p99_us": percentile(ordered, 99)}


def measure_open_loop(port: int, capacity: float, seconds: float) -> dict[str, Any]:
    """Return times of requests with a fresh guest each, at a part of what the server can do."""
    rate = OPEN_LOOP_LOAD * capacity
    askers = [adding(port, WAYS["a fresh guest"]) for _ in range(OPEN_LOOP_CONNECTIONS)]
    taken = asyncio.run(open_loop(askers, rate, seconds))
    return {"requests_per_s": rate, "requests": len(taken), **percentiles(taken)}


def measure_bodies(port: int, pid: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return throughput and peak memory for bodies of each size, by each way."""
    results: dict[str, Any] = {}
    for size in BODY_BYTES:
        content = os.urandom(size)
        rates: dict[str, list[float]] = {way: [] for way in BODY_WAYS}
        peaks: dict[str, list[int]] = {way: [] for way in BODY_WAYS}
        for number in range(rounds):
            for way in list(BODY_WAYS)[:: 1 if number % 2 else -1]:
                askers = [
                    Asker(port, BODY_WAYS[way], content, content) for _ in range(BODY_CONNECTIONS)
                ]
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
                before = memory(pid, "VmRSS")
                rate, _ = asyncio.run(closed_loop(askers, seconds))
                rates[way].append(rate)
                peaks[way].append(memory(pid, "VmHWM") - before)
        results[str(size)] = {
            way: {"requests_per_s": median(rates[way]), "peak_bytes": max(peaks[way])}
            for way in BODY_WAYS
        }
        for way in BODY_WAYS:
            found = results[str(size)][way]
            print(
                f"{size >> 10:5} KiB, by {way:14} {found['requests_per_s']:8,.0f}/s"
                f"   {found['peak_bytes'] / 2**20:6.1f} MiB more at the peak"
            )
    return results


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    rounds, seconds = (2, 1.0) if quick else (5, 2.0)
    results: dict[str, Any] = {}
    with served() as (port, pid):
        for connections in CONNECTIONS:
            found = results[str(connections)] = measure(port, pid, connections, rounds, seconds)
            for way in WAYS:
                figures = found[way]
                print(
                    f"{connections:3} connections, {way:18} {figures['requests_per_s']:8,.0f}/s"
                    f"   p50 {figures['p50_us']:8,.0f} µs   p99 {figures['p99_us']:8,.0f} µs"
                    f"   {figures['server_cpu_us']:5,.0f} µs of the server's CPU"
                )
            print(
                f"    throughput with a guest, to without: {found['throughput_ratio']:.2f};"
                f" by the server's CPU: {found['server_cpu_ratio']:.2f}"
            )
        capacity = results[str(CONNECTIONS[-1])]["a fresh guest"]["requests_per_s"]
        opened = measure_open_loop(port, capacity, seconds * rounds)
        print(
            f"open loop at {opened['requests_per_s']:,.0f}/s: p50 {opened['p50_us']:,.0f} µs"
            f"   p99 {opened['p99_us']:,.0f} µs"
        )
        by_size = measure_bodies(port, pid, rounds, seconds)
    if not quick:
        record = {
            "machine": describe(),
            "connections": results,
            "open_loop": opened,
            "bodies": by_size,
        }
        (RESULTS / "serving.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
