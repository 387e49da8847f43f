"""Calls that compute, and whom they keep waiting: the event loop comes first, guests are for its workers."""

from __future__ import annotations

import os
import threading

import anyio
import pytest
from helpers import balanced, threads_of
from helpers.waiting import COMPUTES, load_waiting, until

import sandhost

pytestmark = pytest.mark.anyio


async def test_what_computes_does_not_keep_the_loop(host: sandhost.Host) -> None:
    plugin = load_waiting(host)
    async with plugin.spawn_async() as guest, anyio.create_task_group() as tasks:
        assert await guest.call_async("work", 50_000_000) == 7
        tasks.start_soon(guest.call_async, "spin")
        for _ in range(10):
            await anyio.sleep(0.001)  # nobody would come back from here
        assert guest.stats().running
        tasks.cancel_scope.cancel()


async def started_workers(host: sandhost.Host) -> set[int]:
    """Return the threads that a call which computes has started."""

    def workers() -> set[int]:
        return {thread for thread, name in threads_of().items() if name == "sandhost-worker"}

    before = workers()
    async with load_waiting(host).spawn_async() as guest, anyio.create_task_group() as tasks:
        tasks.start_soon(guest.call_async, "spin")
        await until(lambda: workers() - before)
        tasks.cancel_scope.cancel()
    return workers() - before


async def test_workers_give_way_to_the_loop(host: sandhost.Host) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for worker in await started_workers(host):
        assert os.getpriority(os.PRIO_PROCESS, worker) == min(own + 10, 19)
        assert os.sched_getscheduler(worker) == os.sched_getscheduler(0)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one processor")
@pytest.mark.parametrize(("processors", "policy"), [(1, os.SCHED_OTHER), (2, os.SCHED_IDLE)])
async def test_workers_in_the_background_run_behind_all_others(
    processors: int, policy: int
) -> None:
    own, here = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(here)[:processors])
    try:
        with sandhost.Host(cache=False, background=True) as host:
            for worker in await started_workers(host):
                assert os.sched_getscheduler(worker) == policy
                assert os.getpriority(os.PRIO_PROCESS, worker) == min(own + 10, 19)
    finally:
        os.sched_setaffinity(0, here)


async def test_large_guests_are_closed_beside_the_loop(host: sandhost.Host) -> None:
    closed_by = []

    class Noted(sandhost.Guest):
        def close(self) -> sandhost.Reclaim:
            closed_by.append(threading.get_ident())
            return super().close()

    for pages in (1, 1024):
        plugin = host.load(b'(module (memory (export "memory") %d))' % pages)
        plugin.guest_class = Noted
        async with plugin.spawn_async() as guest:
            pass
        assert guest.closed
        assert await guest.aclose() == guest.close()
    here = threading.get_ident()
    assert [thread == here for thread in closed_by] == [True] * 3 + [False] + [True] * 2


async def test_without_workers_guests_take_turns_on_the_loop() -> None:
    with sandhost.Host(cache=False, workers=0) as host:
        host.function("env", "later", "(i32) -> i32")(lambda x: x)
        plugin = host.load(COMPUTES)
        async with plugin.spawn_async() as guest, anyio.create_task_group() as tasks:
            tasks.start_soon(guest.call_async, "until_told")
            await until(lambda: guest.stats().running)
            guest.memory.write(0, b"\1")  # there is nobody else who could tell it
        balanced(host)
