"""The run: every case, all contenders in turn, several repetitions.

    case        a workload × a number of threads
    repetition  every contender runs one block, in an order that rotates: A B C, B C A, C A B, …
    block       cycles for a fixed time, in all threads at once

So a drift of the machine hits all alike, and the spread between repetitions shows how much it was.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ..errors import ConfigError
from .checks import check
from .contenders import OPERATIONS, Contender, Ours, Samples
from .latency import Histogram
from .machine import describe
from .peers import available, open_peer
from .results import Results, Row
from .workload import Workload

__all__ = ["Settings", "Step", "block", "run"]

_WARM_UP_S = 0.02


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    policies: tuple[str, ...]
    threads: tuple[int, ...]
    peers: tuple[str, ...]
    repetitions: int
    block_s: float
    checked_guests: int
    """Held against the kernel one by one, for each policy and workload; not timed."""
    batch_guests: int

    def steps(self, workloads: int) -> int:
        """Return how many blocks and checks a run has."""
        contenders = len(self.policies) + len(self.peers)
        return workloads * contenders * (len(self.threads) * self.repetitions + 1)


Step = Callable[[str], None]
"""Called after each block and check, with what it was."""


def run(workloads: Sequence[Workload], settings: Settings, step: Step) -> Results:
    """Measure every workload.

    Raises:
        SandhostError: a workload does not run.
    """
    results = Results(describe(), {**asdict(settings), "garbage_collector": "on, heap frozen"})
    started = time.monotonic()
    gc.collect()
    gc.freeze()  # what is loaded by now is not gone through again and again
    try:
        for workload in workloads:
            results.rows += _run_one(workload, settings, results, step)
    finally:
        gc.unfreeze()
    results.seconds = time.monotonic() - started
    return results


def _run_one(workload: Workload, settings: Settings, results: Results, step: Step) -> list[Row]:
    contenders = _open(workload, settings, results)
    try:
        groups = [
            _measure(contenders, workload, threads, settings, step) for threads in settings.threads
        ]
        for index, contender in enumerate(contenders):
            groups[0][index].check = check(
                contender, settings.checked_guests, settings.batch_guests
            )
            step(f"{contender.name}: checking what came back")
    finally:
        for contender in contenders:
            contender.close()
    return [row for group in groups for row in group]


def _open(workload: Workload, settings: Settings, results: Results) -> list[Contender]:
    contenders: list[Contender] = [Ours(policy, workload) for policy in settings.policies]
    for peer in settings.peers:
        if not available(peer):
            results.left_out[peer] = f"not installed: pip install {peer.partition('-')[0]}"
            continue
        try:
            contenders.append(open_peer(peer, workload))
        except ConfigError as error:
            results.left_out[peer] = str(error)
    return contenders


def _measure(
    contenders: list[Contender],
    workload: Workload,
    threads: int,
    settings: Settings,
    step: Step,
) -> list[Row]:
    rows = [
        Row(
            contender.name,
            contender.how,
            workload.plugin,
            workload.label,
            workload.pages,
            workload.memory_bytes,
            threads,
            {operation: Histogram() for operation in OPERATIONS},
        )
        for contender in contenders
    ]
    for contender in contenders:
        block(contender, threads, _WARM_UP_S)
    count = len(contenders)
    for repetition in range(settings.repetitions):
        for turn in range(count):
            index = (turn + repetition) % count
            samples, seconds = block(contenders[index], threads, settings.block_s)
            _record(rows[index], samples, seconds)
            step(f"{contenders[index].name}: {workload.label}, {threads} threads")
    return rows


def block(contender: Contender, threads: int, seconds: float) -> tuple[Samples, float]:
    """Run cycles in all threads for a while; return the samples and how long it took."""
    gc.collect()
    parts = [Samples() for _ in range(threads)]
    if threads == 1:
        started = time.perf_counter_ns()
        contender.cycles(started + round(seconds * 1e9), parts[0])
        ended = time.perf_counter_ns()
    else:
        started, ended = _in_threads(contender, parts, seconds)
    whole = parts[0]
    for part in parts[1:]:
        whole.extend(part)
    return whole, (ended - started) / 1e9


def _in_threads(contender: Contender, parts: list[Samples], seconds: float) -> tuple[int, int]:
    barrier = threading.Barrier(len(parts) + 1)
    failures: list[BaseException] = []
    until = [0]

    def work(part: Samples) -> None:
        barrier.wait()
        try:
            contender.cycles(until[0], part)
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            failures.append(error)

    workers = [threading.Thread(target=work, args=(part,), daemon=True) for part in parts]
    for worker in workers:
        worker.start()
    started = time.perf_counter_ns()
    until[0] = started + round(seconds * 1e9)
    barrier.wait()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return started, time.perf_counter_ns()


def _record(row: Row, samples: Samples, seconds: float) -> None:
    figures = {"cycles_per_s": len(samples.spawn) / seconds}
    for operation in OPERATIONS:
        values = samples.of(operation)
        if values:
            row.histograms[operation].record(values)
            figures[operation] = statistics.median(values)
    row.repetitions.append(figures)
