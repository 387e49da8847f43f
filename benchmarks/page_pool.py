"""Buffers for requests: a page pool beside a `bytearray` for each request.

    python benchmarks/page_pool.py            # two minutes, into benchmarks/results/
    python benchmarks/page_pool.py --quick

A request takes a buffer, writes its bytes into it as `recv_into` would, and lets go of it when eight
more have come. Both kinds of buffer are zeros at first. There is no limit to reach: who is faster
where is the result.
"""

from __future__ import annotations

import argparse
import json
import resource
import threading
from array import array
from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import Any

from common import RESULTS, in_turn, median, percentile, three_digits

import sandhost
from sandhost.bench.machine import describe

KIB = 1024
SIZES = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB]
USED = {"all of it": None, "4 KiB of it": 4 * KIB}
IN_FLIGHT = 8

Request = Callable[[], object]


def bytearrays(size: int, payload: bytes) -> tuple[Request, Request]:
    """Return what a request does with a `bytearray`, and what ends the block."""
    held: deque[bytearray] = deque(maxlen=IN_FLIGHT)
    used = len(payload)

    def request() -> None:
        buffer = bytearray(size)
        with memoryview(buffer) as view:
            view[:used] = payload
        held.append(buffer)

    return request, held.clear


def pooled(pool: sandhost.PagePool, payload: bytes) -> tuple[Request, Request]:
    """Return what a request does with a buffer of the pool, and what ends the block."""
    held: deque[sandhost.Buffer] = deque()
    used = len(payload)

    def request() -> None:
        buffer = pool.acquire()
        with buffer.view(0, used) as view:
            view[:] = payload
        held.append(buffer)
        if len(held) > IN_FLIGHT:
            pool.release(held.popleft())

    def end() -> None:
        while held:
            pool.release(held.popleft())

    return request, end


def block(make: Callable[[], tuple[Request, Request]], threads: int, seconds: float) -> Any:
    """Run requests on so many threads for a while: rate, latencies and page faults."""
    started = threading.Barrier(threads + 1)
    stop = threading.Event()
    taken = [array("q") for _ in range(threads)]

    def work(samples: array[int]) -> None:
        request, end = make()
        for _ in range(4 * IN_FLIGHT):  # what the first ones cost is not looked at here
            request()
        started.wait()
        while not stop.is_set():
            began = perf_counter_ns()
            request()
            samples.append(perf_counter_ns() - began)
        end()

    workers = [threading.Thread(target=work, args=(samples,)) for samples in taken]
    for worker in workers:
        worker.start()
    started.wait()
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, perf_counter_ns()
    stop.wait(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    lasted = perf_counter_ns() - began
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    ascending = sorted(ns for samples in taken for ns in samples)
    return {
        "per_s": len(ascending) / lasted * 1e9,
        **{f"p{p:g}_us": percentile(ascending, p) / 1000 for p in (50, 99, 99.9)},
        "faults": faults / len(ascending),
    }


def compare(size: int, used: int | None, threads: int, quick: bool) -> dict[str, Any]:
    """Measure both in turn; return the medians of the rounds."""
    payload = b"x" * min(size, used or size)
    with sandhost.PagePool(size, threads * (IN_FLIGHT + 2)) as pool:
        contenders = {
            "bytearray": partial(bytearrays, size, payload),
            "page pool": partial(pooled, pool, payload),
        }
        seconds = 0.05 if quick else 0.25
        blocks = {name: partial(block, make, threads, seconds) for name, make in contenders.items()}
        in_turn(blocks, 1)
        rounds = in_turn(blocks, 3 if quick else 7)
    return {
        name: {figure: median([r[figure] for r in results]) for figure in results[0]}
        for name, results in rounds.items()
    }


def main() -> int:
    """Run the benchmark; return an exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    rows = []
    for words, used in USED.items():
        for size in SIZES:
            if used == size:
                continue  # all of it is the same
            for threads in (1, 2):
                measured = compare(size, used, threads, quick)
                rows.append({"size": size, "used": words, "threads": threads, **measured})
                ours, theirs = measured["page pool"], measured["bytearray"]
                print(
                    f"{size // KIB:5} KiB, {words:11}, {threads} thread{'s' * (threads > 1):1}: "
                    f"pool {three_digits(ours['p50_us']):>5} µs, p99.9 {three_digits(ours['p99.9_us']):>5}; "
                    f"bytearray {three_digits(theirs['p50_us']):>5}, {three_digits(theirs['p99.9_us']):>5}; "
                    f"rate {ours['per_s'] / theirs['per_s']:.2f}×; "
                    f"faults {ours['faults']:.2f}, {theirs['faults']:.2f}",
                    flush=True,
                )
    result = {"machine": describe(), "quick": quick, "in_flight": IN_FLIGHT, "rows": rows}
    if not quick:
        (RESULTS / "page_pool.json").write_text(json.dumps(result, indent=2) + "\n")
        try:
            from page_pool_picture import draw
        except ImportError:
            print("no picture: matplotlib is not installed")
        else:
            draw(result, RESULTS / "page_pool.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
