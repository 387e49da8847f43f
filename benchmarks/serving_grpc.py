"""A fresh guest for each RPC, beside the same gRPC server answering without a sandbox.

    python benchmarks/serving_grpc.py            # two minutes, into benchmarks/results/
    python benchmarks/serving_grpc.py --quick

One process serves: the server of `sandhost serve`, with one more RPC that adds in Python, after the same
token check, with the same messages and a bag of its own. This one asks, over one connection, so many calls
at a time. Both want a processor: with two, the server has one of them. Where others want it too, the
server's own processor time for a call says more than the rate. Beside both: many calls on one stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio
from common import RESULTS, median, percentile
from serving_process import ADD, ADMIN, deploy, processor_s, running

from sandhost.bench.machine import describe
from sandhost.serve.app import open_service
from sandhost.serve.config import Settings
from sandhost.serve.rpc.doors import Doors, Rpc
from sandhost.serve.rpc.messages import (
    CallManyReply,
    CallManyRequest,
    CallReply,
    CallRequest,
    Value,
)
from sandhost.serve.rpc.server import RpcServer
from sandhost.serve.tokens import Scope

AT_ONCE = (1, 16)
WAYS = {"without a sandbox": "/plain.Plain/Call", "a fresh guest": "/sandhost.v1.Invoker/Call"}
REQUEST = CallRequest(plugin="sum", function="add", arguments=[Value(i32=2), Value(i32=3)])
METADATA = (("authorization", f"Bearer {ADMIN}"),)


async def serve(folder: str, pipe: Connection) -> None:
    """Serve until the other end of the pipe says so."""
    settings = Settings(data=folder, admin_token=ADMIN)
    with open_service(settings) as (service, _):
        service.start()

        async def plain(_rpc: Rpc, request: CallRequest) -> CallReply:
            left, right = request.arguments
            return CallReply(results=[Value(i32=left.i32 + right.i32)])

        await deploy(service, ADMIN, "sum", ADD)
        server = RpcServer(service, 100)
        doors = Doors(service)
        handlers = {"Call": doors.one("Call", Scope.INVOKE, CallRequest, plain)}
        server.add("plain.Plain", handlers)
        pipe.send(await server.start("127.0.0.1", 0))
        await asyncio.to_thread(pipe.recv)
        await server.stop(5)
        await service.drain()


async def ask(port: int, path: str, seconds: float, at_once: int) -> tuple[float, list[float]]:
    """Return calls a second, and each one's µs."""
    taken: list[float] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(path, CallRequest.SerializeToString, CallReply.FromString)
        until = time.perf_counter() + seconds

        async def one() -> None:
            while (began := time.perf_counter()) < until:
                reply = await call(REQUEST, metadata=METADATA)
                assert reply.results[0].i32 == 5
                taken.append((time.perf_counter() - began) * 1e6)

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(at_once)))
        return len(taken) / (time.perf_counter() - began), taken


async def ask_on_one_stream(port: int, seconds: float, at_once: int) -> float:
    """Return calls a second."""
    free, count = asyncio.Semaphore(at_once), 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        path = "/sandhost.v1.Invoker/CallMany"
        call = channel.stream_stream(
            path, CallManyRequest.SerializeToString, CallManyReply.FromString
        )
        until = time.perf_counter() + seconds

        async def requests() -> AsyncIterator[CallManyRequest]:
            while time.perf_counter() < until:
                await free.acquire()
                yield CallManyRequest(call=REQUEST)

        began = time.perf_counter()
        async for reply in call(requests(), metadata=METADATA):
            assert reply.call.results[0].i32 == 5
            free.release()
            count += 1
        return count / (time.perf_counter() - began)


def measure(port: int, pid: int, at_once: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures for so many calls at a time."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    streamed = []
    for number in range(rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            before_s = processor_s(pid)
            rate, taken = asyncio.run(ask(port, WAYS[way], seconds, at_once))
            costs[way].append((processor_s(pid) - before_s) / len(taken) * 1e6)
            rates[way].append(rate)
            times[way] += taken
        streamed.append(asyncio.run(ask_on_one_stream(port, seconds, at_once)))
    plain, guest = WAYS
    ratios = [ours / theirs for ours, theirs in zip(rates[guest], rates[plain])]
    figures: dict[str, Any] = {
        way: {
            "calls_per_s": median(rates[way]),
            "server_us_a_call": median(costs[way]),
            "p50_us": percentile(sorted(times[way]), 50),
            "p99_us": percentile(sorted(times[way]), 99),
        }
        for way in WAYS
    }
    figures["a fresh guest, on one stream"] = {"calls_per_s": median(streamed)}
    return {**figures, "throughput_ratio": median(ratios), "ratios": ratios}


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    rounds, seconds = (2, 1.0) if quick else (9, 2.0)
    results: dict[str, Any] = {}
    with running(serve) as (pid, port):
        assert isinstance(port, int)
        for at_once in AT_ONCE:
            found = results[str(at_once)] = measure(port, pid, at_once, rounds, seconds)
            for way in WAYS:
                figures = found[way]
                print(
                    f"{at_once:3} at once, {way:18} {figures['calls_per_s']:8,.0f}/s"
                    f"   p50 {figures['p50_us']:8,.0f} µs   p99 {figures['p99_us']:8,.0f} µs"
                    f"   server {figures['server_us_a_call']:6,.0f} µs"
                )
            rate = found["a fresh guest, on one stream"]["calls_per_s"]
            print(f"    on one stream {rate:,.0f}/s")
            print(f"    throughput with a guest, to without: {found['throughput_ratio']:.2f}")
    if not quick:
        record = {"machine": describe(), "at_once": results}
        (RESULTS / "serving_grpc.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
