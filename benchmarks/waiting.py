"""Guests on the event loop: what an await costs, how many wait at once, how late the loop is meanwhile.

    python benchmarks/waiting.py            # some three minutes, into benchmarks/results/
    python benchmarks/waiting.py --quick
    python benchmarks/waiting.py --only await live

Beside each figure stands what asyncio itself takes for the same thing without a guest. Exits with 1
while a figure is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

from common import RESULTS, Claim, Row, percentile, summary_us

import sandhost
from sandhost.bench.machine import describe

_WAT = b"""(module
  (import "env" "later" (func $later (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "wait") (param i32) (result i32) (call $later (local.get 0)))
  (func (export "waits") (param i32) (result i32)
    (loop (drop (call $later (i32.const 1)))
      (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0))) (i32.const 7))
  (func (export "spin") (param i32) (result i32)
    (loop (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0))) (i32.const 7)))"""
_BLOCK = 1000


def _host(**options: Any) -> sandhost.Host:
    return sandhost.Host(max_guests=options.pop("max_guests", 256), **options)


def _plugin(host: sandhost.Host, later: Callable[[int], Awaitable[int]]) -> sandhost.Plugin:
    host.function("env", "later", "(i32) -> i32")(later)
    return host.load(_WAT)


async def _blocks(call: Callable[[], Awaitable[object]], rounds: int) -> list[float]:
    """Return µs a call, one figure for each block."""
    taken = []
    for _ in range(rounds):
        began = perf_counter_ns()
        for _ in range(_BLOCK):
            await call()
        taken.append((perf_counter_ns() - began) / _BLOCK / 1000)
    return taken


def awaits(quick: bool) -> Row:
    """An await of a call that waits for nothing, and of one that waits once, in turn with asyncio alone."""

    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def nothing() -> int:
        return 5

    async def main() -> dict[str, list[float]]:
        with _host() as host:
            async with _plugin(host, later).spawn_async() as guest:
                add, wait = guest.func("add"), guest.func("wait")
                contenders: dict[str, Callable[[], Awaitable[object]]] = {
                    "await of a coroutine": nothing,
                    "await of add(2, 3)": lambda: add.call_async(2, 3),
                    "await asyncio.sleep(0)": lambda: asyncio.sleep(0),
                    "await of one that awaits asyncio.sleep(0)": lambda: wait.call_async(1),
                }
                out: dict[str, list[float]] = {name: [] for name in contenders}
                for _ in range(3 if quick else 15):
                    for name, call in contenders.items():
                        out[name] += await _blocks(call, 3)
                return out

    times = asyncio.run(main())
    medians = {name: percentile(sorted(values), 50) for name, values in times.items()}
    return Row(
        "await of a call",
        f"medians of blocks of {_BLOCK} awaits, the contenders in turn",
        [
            Claim("await of add(2, 3)", medians["await of add(2, 3)"], "µs", 15),
            Claim(
                "async host function that suspends once",
                medians["await of one that awaits asyncio.sleep(0)"],
                "µs",
                30,
            ),
        ],
        {"median_us": medians, "blocks_us": times},
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def live(quick: bool) -> Row:
    """So many guests suspended in a host function at once, on one thread; then all are woken."""
    count = 1000 if quick else 10_000

    async def main() -> dict[str, Any]:
        gate = asyncio.Event()
        arrived = 0

        async def later(x: int) -> int:
            nonlocal arrived
            arrived += 1
            await gate.wait()
            return x + 1

        with _host(max_guests=count) as host:
            plugin = _plugin(host, later)

            async def one(k: int) -> bool:
                async with plugin.spawn_async() as guest:
                    return bool(await guest.call_async("wait", k) == k + 1)

            await _warm_up(plugin, gate)
            gc.collect()
            before, arrived = _resident_bytes(), 0
            began = perf_counter()
            tasks = [asyncio.create_task(one(k)) for k in range(count)]
            while arrived < count:
                await asyncio.sleep(0.01)
            suspended_s = perf_counter() - began
            held, stats = _resident_bytes() - before, host.stats()
            threads = threading.active_count(), len(list(Path("/proc/self/task").iterdir()))
            began = perf_counter()
            gate.set()
            right = sum(await asyncio.gather(*tasks))
            return {
                "guests": count,
                "right": right,
                "suspended_s": suspended_s,
                "woken_and_closed_s": perf_counter() - began,
                "resident_bytes_each": held / count,
                "stacks_live": stats.stacks_live,
                "python_threads": threads[0],
                "os_threads": threads[1],
            }

    async def _warm_up(plugin: sandhost.Plugin, gate: asyncio.Event) -> None:
        gate.set()
        async with plugin.spawn_async() as guest:
            await guest.call_async("wait", 1)
        gate.clear()

    detail = asyncio.run(main())
    return Row(
        f"{count:,} guests suspended at once",
        "all of them in an async host function; resident memory by statm, less what was before",
        [
            Claim("woken, with the right result", detail["right"], "guests", count, at_most=False),
            Claim("resident each", detail["resident_bytes_each"] / 1024, "KiB", 64),
            Claim("threads of Python's", detail["python_threads"], "", 1),
        ],
        detail,
    )


def suspensions(quick: bool) -> Row:
    """Suspensions, answered by tasks that meet on one loop: each must be woken once."""
    guests, each = 100, 500 if quick else 10_000

    async def main() -> tuple[int, int, float]:
        answered = 0

        async def later(x: int) -> int:
            nonlocal answered
            answered += 1
            if answered % 7 == 0:
                await asyncio.sleep(0)
            return x

        with _host() as host:
            plugin = _plugin(host, later)

            async def one() -> int:
                async with plugin.spawn_async() as guest:
                    return int(await guest.call_async("waits", each))

            began = perf_counter()
            results = await asyncio.gather(*(one() for _ in range(guests)))
            return answered, results.count(7), perf_counter() - began

    answered, right, took = asyncio.run(main())
    wanted = guests * each
    return Row(
        f"{wanted:,} suspensions",
        f"{guests} guests on one loop, each suspended {each:,} times; a seventh of the answers take a turn",
        [
            Claim("lost", wanted - answered, "wake-ups", 0),
            Claim("guests that finished right", right, "guests", guests, at_most=False),
        ],
        {"answered": answered, "us_each": took * 1e6 / wanted},
    )


async def _lateness(seconds: float) -> list[int]:
    """Return by how many ns a timer of 1 ms was late, again and again."""
    loop = asyncio.get_running_loop()
    late: list[int] = []
    until = perf_counter() + seconds
    while perf_counter() < until:
        due = perf_counter_ns() + 1_000_000
        fired = loop.create_future()
        loop.call_later(0.001, fired.set_result, None)
        await fired
        late.append(perf_counter_ns() - due)
    return late


def lateness(quick: bool) -> Row:
    """How late timers of the loop are while 100 guests compute, beside none and beside wasmtime-py in threads."""
    seconds = 2.0 if quick else 8.0

    async def later(x: int) -> int:
        return x

    async def with_guests(**options: Any) -> list[int]:
        with _host(**options) as host:
            plugin = _plugin(host, later)
            stop = False

            async def compute() -> None:
                async with plugin.spawn_async() as guest:
                    while not stop:
                        await guest.call_async("spin", 20_000_000)

            tasks = [asyncio.create_task(compute()) for _ in range(100)]
            await asyncio.sleep(0.2)
            late = await _lateness(seconds)
            stop = True
            await asyncio.gather(*tasks)
            return late

    async def alone() -> list[int]:
        return await _lateness(seconds)

    contenders: dict[str, Callable[[], Awaitable[list[int]]]] = {
        "the loop alone": alone,
        "100 guests compute": with_guests,
        "100 guests compute, workers=0": lambda: with_guests(workers=0),
        "wasmtime-py, 100 threads": lambda: _wasmtime_py(seconds),
    }
    late = {name: summary_us(asyncio.run(run())) for name, run in contenders.items()}  # type: ignore[arg-type]
    return Row(
        "lateness of the loop",
        f"timers of 1 ms over {seconds:g} s, by how much each was late",
        [Claim("p99 while 100 guests compute", late["100 guests compute"]["p99"] / 1000, "ms", 5)],
        {"late_us": late},
    )


async def _wasmtime_py(seconds: float) -> list[int]:
    import wasmtime

    engine = wasmtime.Engine()
    module = wasmtime.Module(engine, wasmtime.wat2wasm(_WAT))
    stop = False

    def compute() -> None:
        store = wasmtime.Store(engine)
        kind = wasmtime.FuncType([wasmtime.ValType.i32()], [wasmtime.ValType.i32()])
        instance = wasmtime.Instance(store, module, [wasmtime.Func(store, kind, lambda x: x)])
        spin = instance.exports(store)["spin"]
        while not stop:
            spin(store, 20_000_000)

    with ThreadPoolExecutor(100) as pool:
        running = [pool.submit(compute) for _ in range(100)]
        await asyncio.sleep(0.2)
        late = await _lateness(seconds)
        stop = True
        for one in running:
            one.result()
    return late


_ROWS: dict[str, Callable[[bool], Row]] = {
    "await": awaits,
    "live": live,
    "suspensions": suspensions,
    "lateness": lateness,
}


def main() -> int:
    """Measure the rows; return 1 while one is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a rough look")
    parser.add_argument("--only", nargs="*", choices=_ROWS, help="these rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "waiting.json")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.only or _ROWS:
        row = _ROWS[name](arguments.quick)
        rows.append(row)
        print(row.what)
        for claim in row.claims:
            print(f"  {'reached' if claim.reached else 'MISSED '}  {claim.what}: {claim}")
        sys.stdout.flush()
    data = {
        "machine": describe(),
        "quick": arguments.quick,
        "rows": [row.as_json() for row in rows],
    }
    if not arguments.only:
        arguments.out.write_text(json.dumps(data, indent=1) + "\n")
        from waiting_picture import draw

        draw(data, arguments.out.with_suffix(".png"))
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
