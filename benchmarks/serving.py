"""A fresh guest for each request over HTTP, beside the same server answering without a sandbox.

    python benchmarks/serving.py            # two minutes, into benchmarks/results/
    python benchmarks/serving.py --quick

One process serves, in three ways:

    a fresh guest       what `sandhost serve` does: its protocol, its gate, its application
    without a sandbox   the same, with a plugin that adds in Python where a guest would be
    a usual one         uvicorn and Starlette as they are, with a route that adds in Python, after the same token check

The load is the C program of overload.py, which leaves the server a processor of its own: connections that stay open, a
request at a time on each, and as many requests as they take. The server's own processor time for each request is
taken too, which says the same on a machine that is busy with others.

Then an open loop: requests begin at their times, at 80 % of what was reached before, whether those before
them are answered or not, and their time counts from when they were to begin. Then bodies: the same
function by way of the pool's buffers, of any size here, and of Python's bytes, with the memory that the
server had at its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from common import RESULTS, Claim, median, percentile
from overload_load import Load, Stream, call
from serving_process import ADD, ADMIN, deploy, processor_s, running, tenant_token
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandhost.bench.machine import describe
from sandhost.serve import bodies
from sandhost.serve.app import open_service
from sandhost.serve.config import Settings
from sandhost.serve.gate import Gate
from sandhost.serve.http import make_app
from sandhost.serve.invocation import Invocation
from sandhost.serve.loaded import Loaded
from sandhost.serve.requests import arguments_of, body, route, token_of
from sandhost.serve.tokens import Scope
from sandhost.serve.wire import GatedProtocol
from sandhost.tenants import Tenant

CONNECTIONS = (1, 16)
MOST_PER_S = 30_000
"""More than any of them can do."""
OPEN_LOOP_LOAD, OPEN_LOOP_CONNECTIONS = 0.8, 128
BODY_BYTES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
BODY_CONNECTIONS = 8
ECHO = b"""(module
  (memory (export "memory") 1 200)
  (func (export "alloc") (param $n i32) (result i32)
    (drop (memory.grow (i32.div_u (i32.add (local.get $n) (i32.const 131071)) (i32.const 65536))))
    (i32.const 65536))
  (func (export "echo") (param $at i32) (param $n i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $n)))))"""
BODY_WAYS = {"Python's bytes": "/bytes", "the pool": "/v1/plugins/echo/bytes/echo"}
GUEST, SAME, USUAL = "a fresh guest", "without a sandbox", "a usual one"
SUM = '{"arguments": [2, 3]}'


class Served(NamedTuple):
    """What is to be known of the process that serves."""

    port: int
    usual_port: int
    token: str

    def way(self, name: str) -> tuple[int, str]:
        """Return the port and the path of a way."""
        if name == USUAL:
            return self.usual_port, "/plain"
        return self.port, f"/v1/plugins/{'sum' if name == GUEST else 'plain'}/call/add"


class Plain(Loaded):
    """A version that adds in Python."""

    def call_at_once(self, tenant: Tenant, function: str, arguments: Iterable[Any]) -> Any:
        """Add."""
        left, right = arguments
        return left + right


async def serve(folder: str, pipe: Connection) -> None:
    """Serve until the other end of the pipe says so."""
    settings = Settings(data=folder, admin_token=ADMIN)
    bodies.SMALL = 0  # all go through the pool, to see from which size on that is worth it
    with open_service(settings) as (service, _):
        service.start()
        token = tenant_token(service)

        async def plain(request: Request) -> Response:
            service.who(token_of(request), Scope.INVOKE)
            left, right = arguments_of(await body(request, settings.body_limit))  # type: ignore[misc]
            return JSONResponse({"results": [left + right]})

        async def joined(request: Request) -> Response:
            who = service.who(token_of(request), Scope.INVOKE)
            what = Invocation(who, "echo", "latest", "echo")
            given = await body(request, settings.body_limit)
            return Response(await service.call_bytes(what, given))

        await deploy(service, token, "sum", ADD)
        await deploy(service, ADMIN, "echo", ECHO)  # whom the gate refuses nothing
        version = await deploy(service, token, "plain", ADD)
        service.versions._loaded[version.id] = Plain(*await service.loaded(version))

        class Protocol(GatedProtocol):
            gate = Gate(service)

        ours = make_app(service, [route("POST", "/bytes", joined)])
        usual = Starlette(routes=[route("POST", "/plain", plain)])
        servers = []
        for app, protocol in ((ours, Protocol), (usual, HttpToolsProtocol)):
            config = uvicorn.Config(
                app,
                port=0,
                http=protocol,
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
            )
            servers.append(uvicorn.Server(config))
        serving = [asyncio.ensure_future(server.serve()) for server in servers]
        while not all(server.started for server in servers):
            await asyncio.sleep(0.01)
        ports = [server.servers[0].sockets[0].getsockname()[1] for server in servers]
        pipe.send(Served(*ports, token))
        await asyncio.to_thread(pipe.recv)
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving)
        await service.drain()


def check(served: Served) -> None:
    """See to it that all ways answer the same."""
    for name in (GUEST, SAME, USUAL):
        port, path = served.way(name)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}",
            SUM.encode(),
            {"Authorization": f"Bearer {served.token}"},
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer) == {"results": [5]}


class Asker:
    """A connection that sends bytes and gets them back, again and again."""

    def __init__(self, served: Served, path: str, content: bytes) -> None:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n"
        self.request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        self.port, self.answer = served.port, content

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


async def closed_loop(makes: list[Asker], seconds: float) -> float:
    """Have each ask as soon as it is answered; return requests a second."""
    count, until = 0, time.perf_counter() + seconds

    async def one(asker: Asker) -> None:
        nonlocal count
        async with asker:
            while time.perf_counter() < until:
                await asker.ask()
                count += 1

    began = time.perf_counter()
    await asyncio.gather(*map(one, makes))
    return count / (time.perf_counter() - began)


def memory(pid: int, word: str) -> int:
    """Return a figure of /proc/PID/status, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{word}:")[1].split()[0]) << 10


def measure(
    served: Served, pid: int, connections: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Return the figures for so many connections."""
    ways = (GUEST, SAME, USUAL)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    used = dict.fromkeys(ways, 0.0)
    for number in range(rounds):
        for way in (ways, ways[1:] + ways[:1], ways[2:] + ways[:2])[number % 3]:
            port, path = served.way(way)
            each = Stream(MOST_PER_S / connections, 1, call(served.token, path))
            before = processor_s(pid)
            arrivals = Load(port, [each] * connections, seconds).arrivals()
            used[way] += processor_s(pid) - before
            sent = [one for one in arrivals if one.status != 2]
            assert all(one.status in (0, 200) for one in sent), {one.status for one in sent}
            taken = [(one.done_s - one.sent_s) * 1e6 for one in sent if one.status == 200]
            rates[way].append(len(taken) / seconds)
            times[way] += taken
    figures: dict[str, Any] = {
        way: {
            "requests_per_s": median(rates[way]),
            "server_cpu_us": used[way] / len(times[way]) * 1e6,
            **percentiles(times[way]),
        }
        for way in ways
    }
    for way in (SAME, USUAL):
        ratios = [ours / theirs for ours, theirs in zip(rates[GUEST], rates[way])]
        figures[f"to {way}"] = {
            "throughput_ratio": median(ratios),
            "ratios": ratios,
            "server_cpu_ratio": figures[way]["server_cpu_us"] / figures[GUEST]["server_cpu_us"],
        }
    return figures


def percentiles(taken: list[float]) -> dict[str, float]:
    """Return what is said of times."""
    ordered = sorted(taken)
    return {"p50_us": percentile(ordered, 50), "p99_us": percentile(ordered, 99)}


def measure_open_loop(served: Served, capacity: float, seconds: float) -> dict[str, Any]:
    """Return times of requests with a fresh guest each, at a part of what the server can do."""
    rate = OPEN_LOOP_LOAD * capacity
    port, path = served.way(GUEST)
    stream = Stream(rate, OPEN_LOOP_CONNECTIONS, call(served.token, path))
    arrivals = Load(port, [stream], seconds).arrivals()
    good = [one.ms * 1e3 for one in arrivals if one.status == 200]
    return {
        "requests_per_s": rate,
        "requests": len(arrivals),
        "answered": len(good),
        **percentiles(good),
    }


def measure_bodies(served: Served, pid: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return throughput and peak memory for bodies of each size, by each way."""
    results: dict[str, Any] = {}
    for size in BODY_BYTES:
        content = os.urandom(size)
        rates: dict[str, list[float]] = {way: [] for way in BODY_WAYS}
        peaks: dict[str, list[int]] = {way: [] for way in BODY_WAYS}
        for number in range(rounds):
            for way in list(BODY_WAYS)[:: 1 if number % 2 else -1]:
                askers = [Asker(served, BODY_WAYS[way], content) for _ in range(BODY_CONNECTIONS)]
                Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
                before = memory(pid, "VmRSS")
                rate = asyncio.run(closed_loop(askers, seconds))
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


def say(connections: int, found: dict[str, Any]) -> None:
    """Print the figures for so many connections."""
    for way in (GUEST, SAME, USUAL):
        figures = found[way]
        print(
            f"{connections:3} connections, {way:18} {figures['requests_per_s']:8,.0f}/s"
            f"   p50 {figures['p50_us']:8,.0f} µs   p99 {figures['p99_us']:8,.0f} µs"
            f"   {figures['server_cpu_us']:5,.0f} µs of the server's processor"
        )
    for way in (SAME, USUAL):
        ratio = found[f"to {way}"]
        print(
            f"    throughput, to {way}: {ratio['throughput_ratio']:.2f};"
            f" by the server's processor time: {ratio['server_cpu_ratio']:.2f}"
        )


def claims(results: dict[str, Any], opened: dict[str, Any]) -> list[Claim]:
    """Return what is to be reached, and what was."""
    made = [
        Claim(
            f"throughput to {way}, {connections} connections",
            found[f"to {way}"]["throughput_ratio"],
            "×",
            0.85,
            at_most=False,
        )
        for connections, found in results.items()
        for way in (SAME, USUAL)
    ]
    most = results[str(CONNECTIONS[-1])][GUEST]["requests_per_s"]
    return [
        *made,
        Claim("with a fresh guest each", most, "requests/s", 3000, at_most=False),
        Claim("p99 at 80 % of the load", opened["p99_us"] / 1e3, "ms", 20),
    ]


def main() -> int:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    rounds, seconds = (3, 1.0) if quick else (9, 2.0)
    results: dict[str, Any] = {}
    with running(serve) as (pid, served):
        assert isinstance(served, Served)
        check(served)
        for connections in CONNECTIONS:
            found = measure(served, pid, connections, rounds, seconds)
            results[str(connections)] = found
            say(connections, found)
        capacity = results[str(CONNECTIONS[-1])][GUEST]["requests_per_s"]
        opened = measure_open_loop(served, capacity, seconds * rounds)
        print(
            f"open loop at {opened['requests_per_s']:,.0f}/s: p50 {opened['p50_us']:,.0f} µs"
            f"   p99 {opened['p99_us']:,.0f} µs"
        )
        by_size = {} if quick else measure_bodies(served, pid, 5, seconds)
    made = claims(results, opened)
    for claim in made:
        print(f"  {claim.what:52} {claim}  {'yes' if claim.reached else 'NO'}")
    if not quick:
        record = {
            "machine": describe(),
            "connections": results,
            "open_loop": opened,
            "bodies": by_size,
        }
        (RESULTS / "serving.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(claim.reached for claim in made) else 1


if __name__ == "__main__":
    raise SystemExit(main())
