"""A fresh guest for each request over HTTP, beside the same application answering without a sandbox.

    python benchmarks/serving.py            # a minute, into benchmarks/results/
    python benchmarks/serving.py --quick

One process serves: the application of `sandhost serve`, and one more route that adds in Python, with the
same token check, body and JSON. This one asks, over connections that stay open, a request at a time
on each. Both want a processor: with two, the server has one of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from common import RESULTS, median, percentile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandhost.bench.machine import describe
from sandhost.serve.app import open_service
from sandhost.serve.config import Settings
from sandhost.serve.http import make_app
from sandhost.serve.records import VersionSettings
from sandhost.serve.requests import body, json_object, route, token_of
from sandhost.serve.tokens import Scope

CONNECTIONS = (1, 16)
ADMIN = "sh_" + "A" * 43
ADD = b"""(module (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""
WAYS = {"without a sandbox": "/plain", "a fresh guest": "/v1/plugins/sum/call/add"}


async def serve(folder: str, pipe: Connection) -> None:
    """Serve until the other end of the pipe says so."""
    settings = Settings(data=folder, admin_token=ADMIN)
    with open_service(settings) as (service, _):
        service.start()

        async def plain(request: Request) -> Response:
            service.who(token_of(request), Scope.INVOKE)
            left, right = json_object(await body(request, settings.body_limit))["arguments"]
            return JSONResponse({"results": [left + right]})

        registry = service.registry
        who = registry.who(ADMIN)
        digest, size = registry.blobs.put([ADD], 1 << 20)
        limits = settings.guest_limits()
        version = await service.deploy(who, "sum", (digest, size), VersionSettings(limits))
        while registry.version(who.tenant, "sum", version.number).state != "ready":
            await asyncio.sleep(0.01)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(service, [route("POST", "/plain", plain)]),
                port=0,
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
def served() -> Iterator[int]:
    """Have a server in a process of its own; give its port."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=run_server, args=(folder, there))
        process.start()
        yield here.recv()
        here.send(None)
        process.join()
        assert process.exitcode == 0


async def ask(port: int, path: str, seconds: float, connections: int) -> tuple[float, list[float]]:
    """Return requests a second, and each one's µs."""
    content = b'{"arguments": [2, 3]}'
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nContent-Length: "
    request = f"{head}{len(content)}\r\n\r\n".encode() + content
    taken: list[float] = []
    until = time.perf_counter() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < until:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length)) == {"results": [5]}
            taken.append((time.perf_counter() - began) * 1e6)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    return len(taken) / (time.perf_counter() - began), taken


def measure(port: int, connections: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures for so many connections."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            rate, taken = asyncio.run(ask(port, WAYS[way], seconds, connections))
            rates[way].append(rate)
            times[way] += taken
    plain, guest = WAYS
    ratios = [ours / theirs for ours, theirs in zip(rates[guest], rates[plain])]
    figures: dict[str, Any] = {
        way: {
            "requests_per_s": median(rates[way]),
            "p50_us": percentile(sorted(times[way]), 50),
            "p99_us": percentile(sorted(times[way]), 99),
        }
        for way in WAYS
    }
    return {**figures, "throughput_ratio": median(ratios), "ratios": ratios}


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    rounds, seconds = (2, 1.0) if quick else (5, 2.0)
    results: dict[str, Any] = {}
    with served() as port:
        for connections in CONNECTIONS:
            found = results[str(connections)] = measure(port, connections, rounds, seconds)
            for way in WAYS:
                figures = found[way]
                print(
                    f"{connections:3} connections, {way:18} {figures['requests_per_s']:8,.0f}/s"
                    f"   p50 {figures['p50_us']:8,.0f} µs   p99 {figures['p99_us']:8,.0f} µs"
                )
            print(f"    throughput with a guest, to without: {found['throughput_ratio']:.2f}")
    if not quick:
        record = {"machine": describe(), "connections": results}
        (RESULTS / "serving.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
