"""`host.gc`: the collector over the real handle heap, with guests that leak."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from helpers import PATIENCE, guest_file

import sandhost

LEAKER = b"""(module
  (import "env" "open" (func $open (param i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "leak") (param $n i32) (param $bytes i32)
    (loop $again
      (drop (call $open (local.get $bytes)))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n))))
  (func (export "hold") (param $bytes i32) (i64.store (i32.const 8) (call $open (local.get $bytes)))))"""

RELEASER = b"""(module
  (import "env" "open" (func $open (param i32) (result i64)))
  (import "sandhost" "release" (func $release (param i64) (result i32)))
  (func (export "run") (param $n i32)
    (loop $again
      (drop (call $release (call $open (i32.const 8))))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))"""


class Table:
    """What guests open here."""

    def __init__(self, size: int) -> None:
        self.bytes = bytes(size)


@pytest.fixture
def leaker(host: sandhost.Host) -> sandhost.Plugin:
    host.handles.kind(Table, size=lambda table: len(table.bytes))

    @host.function("env", "open")
    def open_table(size: int) -> sandhost.Handle[Table]:
        return Table(size)

    return host.load(LEAKER)


def test_what_guests_leak_is_collected_by_itself(
    host: sandhost.Host, leaker: sandhost.Plugin
) -> None:
    kib, each = 64, 1 << 16
    with leaker.spawn() as guest:
        for _ in range(40):
            guest.call("leak", kib, each)  # 4 MiB each time
        until = time.monotonic() + PATIENCE
        while host.gc.stats().cycles == 0 and time.monotonic() < until:
            guest.call("leak", 1, each)
            time.sleep(0.01)
        assert host.gc.stats().by_reason.get("heap goal", 0) > 0
        host.gc.collect()
        assert host.handles.figures().live_bytes < 4 << 20


def test_cycle_follows_cycle_as_long_as_a_guest_allocates(host: sandhost.Host) -> None:
    cells, at_once, heap = 60_000, 1000, host.handles
    highest = 0.0  # live bytes to the goal
    with host.load(guest_file("turnover")).spawn() as guest:
        guest.call("fill", cells)
        host.gc.collect()
        for number in range(20 * cells // at_once):  # without a collection: 20 times the goal
            guest.call("replace", number * at_once % cells, at_once, 0)
            figures = heap.figures()
            highest = max(highest, figures.live_bytes / figures.heap_goal_bytes)
        assert host.gc.stats().by_reason["heap goal"] >= 2
        assert highest < 10  # 1.0 where cores are free to mark; 20 without a collection
        host.gc.collect()
        assert heap.figures().live_cells == cells + 1


def test_cycles_begin_and_end_while_python_is_held_up(host: sandhost.Host) -> None:
    cells, heap = 60_000, host.handles
    with host.load(guest_file("turnover")).spawn() as guest:
        guest.call("fill", cells)
        host.gc.collect()
        host.gc.memory_limit = limit = max(heap.figures().live_bytes * 2, 8 << 20)
        before = host.gc.stats()
        begun, over = threading.Event(), threading.Event()

        def replace() -> None:
            begun.set()
            for _ in range(20):
                guest.call("replace", 0, cells, 0)
                if over.is_set():
                    break

        thread = threading.Thread(target=replace)
        thread.start()
        begun.wait()
        keeps_the_lock = ctypes.PyDLL(None)  # of the interpreter, while the call lasts
        peak = 0
        while heap.figures().cycles < before.cycles + 3 and thread.is_alive():
            keeps_the_lock.usleep(300_000)
            peak = max(peak, heap.figures().peak_bytes)
        over.set()
        thread.join()
        host.gc.collect()
        after, figures = host.gc.stats(), heap.figures()
        assert after.by_reason.get("limit", 0) + after.by_reason.get("heap goal", 0) >= 3
        assert after.cycles == figures.cycles == sum(after.by_reason.values())
        assert peak <= limit * 1.03
        assert figures.live_cells == cells + 1


def test_what_guests_release_by_hand_is_dropped_without_a_cycle(host: sandhost.Host) -> None:
    host.handles.kind(Table, size=64)

    @host.function("env", "open")
    def open_table(size: int) -> sandhost.Handle[Table]:
        return Table(size)

    with host.load(RELEASER).spawn() as guest:
        until = time.monotonic() + PATIENCE
        while host.gc.stats().finalizers < 20_000 and time.monotonic() < until:
            guest.call("run", 1000)
        stats = host.gc.stats()
        assert stats.finalizers >= 20_000
        assert stats.cycles == 0


def test_a_collection_keeps_what_a_guest_has_in_its_memory(
    host: sandhost.Host, leaker: sandhost.Plugin
) -> None:
    with leaker.spawn() as guest:
        guest.call("hold", 1000)
        guest.call("leak", 10, 1000)
        cycle = host.gc.collect()
        assert cycle is not None
        assert cycle.reason == "explicit"
        assert host.handles.figures().live_cells == 1
        guest.memory.write(8, bytes(8))
        host.gc.collect()
        assert host.handles.figures().live_cells == 0


def test_a_burst_of_collections_shares_two_cycles(
    host: sandhost.Host, leaker: sandhost.Plugin
) -> None:
    with leaker.spawn() as guest:
        guest.call("leak", 1000, 100)
    before = host.gc.stats()
    barrier = threading.Barrier(16)

    def collect() -> None:
        barrier.wait()
        host.gc.collect()

    threads = [threading.Thread(target=collect) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = host.gc.stats()
    assert after.forced_calls - before.forced_calls == 16
    assert after.forced_shared > before.forced_shared
    assert after.cycles - before.cycles < 16


def test_a_paused_collector_comes_back(host: sandhost.Host, leaker: sandhost.Plugin) -> None:
    with leaker.spawn() as guest:
        with pytest.raises(KeyError), host.gc.paused():
            for _ in range(10):
                guest.call("leak", 64, 1 << 16)
            assert host.gc.stats().by_reason.get("heap goal", 0) == 0
            raise KeyError
        until = time.monotonic() + PATIENCE
        while not host.gc.stats().cycles and time.monotonic() < until:
            time.sleep(0.01)
        assert host.gc.stats().by_reason.get("heap goal", 0) > 0
    with host.gc.percent_set(400):
        assert host.gc.percent == 400
    assert host.gc.percent == 100


def test_a_closed_host_collects_no_more(leaker: sandhost.Plugin, host: sandhost.Host) -> None:
    gone: list[int] = []
    handle = host.handles.new(object(), finalize=lambda thing: gone.append(id(thing)))
    host.handles.release(handle)
    collector = host.gc
    host.close()
    assert collector.closed
    assert len(gone) == 1
    with pytest.raises(sandhost.GuestClosed):
        collector.collect()
    with pytest.raises(sandhost.GuestClosed):
        host.load(LEAKER)


def test_an_asynchronous_host_function_takes_and_gives_handles(host: sandhost.Host) -> None:
    import asyncio

    @host.function("env", "open")
    async def open_table(size: int) -> sandhost.Handle[Table]:
        await asyncio.sleep(0)
        return Table(size)

    plugin = host.load(LEAKER)

    async def main() -> None:
        async with plugin.spawn_async() as guest:
            await guest.call_async("hold", 100)
            await guest.call_async("leak", 5, 100)
            host.gc.collect()
            assert host.handles.figures().live_cells == 1
        assert host.handles.figures().live_cells == 0

    asyncio.run(main())


def test_each_cycle_prints_a_line_when_asked(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sandhost
        with sandhost.Host(cache=False) as host:
            host.handles.release(host.handles.new(b"x" * 1000))
            host.gc.collect()
            host.gc.collect()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "SANDHOST_GCTRACE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("gc 1 @")
    assert "MB goal" in lines[1]


def test_a_program_without_handles_and_tasks_imports_nothing_for_them(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sandhost, sys
        with sandhost.Host(cache=False) as host:
            with host.load(b'(module (func (export "f")))').spawn() as guest:
                guest.call("f")
        assert not {"sandhost.gc.collector", "sandhost.aio", "anyio", "asyncio"} & set(sys.modules)
        """
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)


# ---- guests that are in a call all the time ----

ALWAYS_INSIDE = b"""(module
  (import "env" "open" (func $open (param i32) (result i64)))
  (import "env" "read" (func $read (param i64) (result i32)))
  (import "env" "rest" (func $rest (param i32) (result i32)))
  (memory (export "memory") 1)
  (global $in_global (mut i64) (i64.const 0))
  (func $leak (param $count i32)
    (loop $again
      (drop (call $open (i32.const 1000)))
      (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1))))))
  (func (export "session") (param $turns i32) (result i32) (local $in_local i64) (local $sum i32)
    (local.set $in_local (call $open (i32.const 1)))
    (i64.store (i32.const 8) (call $open (i32.const 2)))
    (global.set $in_global (call $open (i32.const 3)))
    (loop $again
      (call $leak (i32.const 100))
      (drop (call $rest (i32.const 0)))
      (local.set $sum (i32.add (local.get $sum) (call $read (local.get $in_local))))
      (local.set $sum (i32.add (local.get $sum) (call $read (i64.load (i32.const 8)))))
      (local.set $sum (i32.add (local.get $sum) (call $read (global.get $in_global))))
      (br_if $again (local.tee $turns (i32.sub (local.get $turns) (i32.const 1)))))
    (local.get $sum))
  (func (export "compute") (result i32) (local $in_local i64) (local $other i64) (local $k i64)
    (local.set $in_local (call $open (i32.const 5)))
    (call $leak (i32.const 100))
    (loop $again
      (local.set $k (i64.add (local.get $k) (i64.const 1)))
      (local.set $other (i64.mul (i64.xor (local.get $other) (local.get $in_local)) (local.get $k)))
      (i64.store (i32.const 64) (local.get $other))
      (br_if $again (i32.eqz (i32.load8_u (i32.const 32)))))
    (call $read (local.get $in_local))))"""


@pytest.fixture
def inside(host: sandhost.Host) -> sandhost.Plugin:
    host.handles.kind(Table, size=lambda table: len(table.bytes))

    @host.function("env", "open")
    def open_table(size: int) -> sandhost.Handle[Table]:
        return Table(size)

    @host.function("env", "read")
    def read_table(table: sandhost.Handle[Table]) -> int:
        return len(table.bytes)

    @host.function("env", "rest")
    async def rest(_: int) -> int:
        host.gc.collect()
        return 0

    return host.load(ALWAYS_INSIDE)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_session_that_waits_keeps_only_what_it_still_has(
    inside: sandhost.Plugin, host: sandhost.Host, workers: int
) -> None:
    import asyncio

    live: list[int] = []

    async def main() -> None:
        async with inside.spawn_async() as guest:

            async def look() -> None:
                while True:
                    await asyncio.sleep(0)
                    live.append(host.handles.figures().live_cells)

            looking = asyncio.create_task(look())
            assert await guest.call_async("session", 20) == 20 * (1 + 2 + 3)
            looking.cancel()
        host.gc.collect()
        assert host.handles.figures().live_cells == 0

    asyncio.run(main())
    assert (
        max(live) <= 3 + 2 * 100
    )  # of 2,003: what was in flight as a cycle began goes with the next
    assert min(live[-5:]) >= 3


def test_a_guest_that_computes_scans_itself(inside: sandhost.Plugin, host: sandhost.Host) -> None:
    heap = host.handles
    with inside.spawn() as guest:
        result: list[int] = []
        thread = threading.Thread(target=lambda: result.append(guest.call("compute")))
        thread.start()
        until = time.monotonic() + PATIENCE
        while heap.figures().allocs < 101 and time.monotonic() < until:
            time.sleep(0.001)
        while heap.figures().live_cells > 4 and time.monotonic() < until:
            host.gc.collect()
        left = heap.figures().live_cells
        guest.memory.write(32, b"\1")
        thread.join()
        assert (
            1 <= left <= 4
        )  # the one in use; and of 100, what a word of the stack has not forgotten
        assert result == [5]
    assert heap.figures().live_cells == 0
