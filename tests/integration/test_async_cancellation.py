"""A call that is cancelled ends: wherever it is, whoever cancels, and nothing is left of it."""

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest
from helpers import balanced, guest_file
from helpers.waiting import COMPUTES, load_waiting, turns, until

import sandhost

pytestmark = pytest.mark.anyio


async def waits_often(plugin: sandhost.Plugin) -> None:
    """A task with every kind of wait in it."""
    async with plugin.spawn_async(limits=sandhost.Limits(deadline=60)) as guest:
        assert await guest.call_async("waits", 3) == 12
        assert await guest.call_async("work", 3_000_000) == 7
        async with plugin.spawn_async() as other:
            assert await other.call_async("wait", 1) == 1
            assert await other.call_async("add", 1, 1) == 2


async def test_cancelled_at_every_turn_a_task_leaves_nothing(host: sandhost.Host) -> None:
    cleaned = entered = 0

    async def later(guest: sandhost.Guest, x: int) -> int:
        nonlocal cleaned, entered
        entered += 1
        try:
            await anyio.lowlevel.checkpoint()
            if x == 2:
                await guest.call_async("add", x, x)
            await anyio.sleep(0)
        finally:
            cleaned += 1
        return x

    host.function("env", "later", "(i32) -> i32")(later)
    host.function("env", "now", "(i32) -> i32")(lambda x: x)
    plugin = host.load(guest_file("waits"))
    finished = False
    turn = 0
    while not finished:

        async def run() -> None:
            nonlocal finished
            await waits_often(plugin)
            finished = True

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await turns(turn)
            tasks.cancel_scope.cancel()
        assert cleaned == entered
        balanced(host)
        turn += 1
    assert turn > 10


async def test_a_task_that_is_cancelled_again_while_it_ends_its_call_leaves_nothing(
    host: sandhost.Host, anyio_backend_name: str
) -> None:
    """As gRPC does, when a client's deadline is the call's own. Task.cancel knows nothing of shields."""
    if anyio_backend_name != "asyncio":
        return
    plugin = host.load(guest_file("spin"))

    async def run() -> None:
        async with plugin.spawn_async(limits=sandhost.Limits(deadline=3600)) as guest:
            with anyio.move_on_after(0.05):
                await guest.call_async("spin")

    for _ in range(5):
        task = asyncio.ensure_future(run())
        while not task.done():
            await asyncio.sleep(0.0005)
            if host.stats().guests_live and not task.done():
                task.cancel()
        assert task.cancelled()
        balanced(host)


@pytest.mark.parametrize("call", ["spin", "wait"])
async def test_a_timeout_ends_the_call_and_closes_the_guest(host: sandhost.Host, call: str) -> None:
    async def later(_: int) -> int:
        await anyio.sleep_forever()
        return 0

    guest = load_waiting(host, later).spawn()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.03):
            await guest.call_async(call, *([1] if call == "wait" else []))
    assert guest.closed
    balanced(host)


async def test_a_guest_is_kept_where_that_is_safe(host: sandhost.Host) -> None:
    entered = anyio.Event()

    async def later(_: int) -> int:
        entered.set()
        await anyio.sleep_forever()
        return 0

    plugin = load_waiting(host, later)
    guest = plugin.spawn()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: guest.call_async("wait", 1, on_cancel="keep"))
        await entered.wait()
        group.cancel_scope.cancel()
    assert not guest.closed
    assert await guest.call_async("add", 20, 1) == 21
    with anyio.move_on_after(0.02):
        await guest.call_async("spin", on_cancel="keep")  # in the middle of a computation: not safe
    assert guest.closed


@pytest.mark.parametrize("call", ["spin", "wait"])
async def test_another_thread_cancels_a_call(host: sandhost.Host, call: str) -> None:
    entered = threading.Event()

    async def later(_: int) -> int:
        entered.set()
        await anyio.sleep_forever()
        return 0

    guest = load_waiting(host, later).spawn()

    def cancel() -> None:
        if call == "wait":
            entered.wait()
        while not guest.cancel():
            pass

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(sandhost.GuestCancelled):
        await guest.call_async(call, *([1] if call == "wait" else []))
    thread.join()
    assert not guest.closed  # it was the call that was cancelled, not the task
    assert await guest.call_async("add", 1, 2) == 3
    guest.close()


async def test_an_inner_call_is_cancelled_alone(host: sandhost.Host) -> None:
    async def later(guest: sandhost.Guest, x: int) -> int:
        if x == 1:
            with anyio.move_on_after(0.02):
                await guest.call_async("wait", 0)
            with anyio.move_on_after(0.02):
                await guest.call_async("spin")
            return int(await guest.call_async("add", 40, 2))
        await anyio.sleep_forever()
        return 0

    host.function("env", "later", "(i32) -> i32")(later)
    host.function("env", "now", "(i32) -> i32")(lambda x: x)
    async with host.load(guest_file("waits")).spawn_async() as guest:
        assert await guest.call_async("wait", 1) == 42


async def test_the_end_of_a_block_ends_calls_of_other_tasks(host: sandhost.Host) -> None:
    entered = anyio.Event()
    ended: list[type[BaseException]] = []

    async def later(_: int) -> int:
        entered.set()
        await anyio.sleep_forever()
        return 0

    async def call(guest: sandhost.Guest) -> None:
        try:
            await guest.call_async("wait", 1)
        except sandhost.GuestCancelled as error:
            ended.append(type(error))

    async with anyio.create_task_group() as tasks:
        async with load_waiting(host, later).spawn_async() as guest:
            tasks.start_soon(call, guest)
            await entered.wait()
        assert guest.closed
    assert ended == [sandhost.GuestCancelled]


@pytest.mark.parametrize("leaves", ["return", "raise", "cancel"])
async def test_views_survive_whatever_ends_the_call(host: sandhost.Host, leaves: str) -> None:
    async def later(_: int) -> int:
        if leaves == "raise":
            raise KeyError
        if leaves == "cancel":
            await anyio.sleep_forever()
        return 1

    guest = load_waiting(host, later).spawn()
    await guest.call_async("dirty", 8)
    with guest.memory.view(0, 8) as view:
        with anyio.move_on_after(0.02):
            try:
                await guest.call_async("wait", 1)
            except KeyError:
                pass
        assert bytes(view) == b"\x01" * 8
        assert not guest.closed
    guest.close()


async def test_a_cancelled_wait_for_a_worker_waits_for_the_worker(host: sandhost.Host) -> None:
    plugin = load_waiting(host)
    for _ in range(20):
        guest = plugin.spawn()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.call_async, "spin")
            await until(lambda: guest.stats().running)  # noqa: B023 - awaited here
            tasks.cancel_scope.cancel()
        assert guest.closed
    assert host.stats().guests_live == 0


async def tell_and_cancel(guest: sandhost.Guest, scope: anyio.CancelScope) -> None:
    """As soon as it gives way: it has hardly anything left to compute when it goes on."""
    await until(lambda: guest.stats().running)
    guest.memory.write(0, b"\1")
    scope.cancel()


async def test_a_guest_that_is_cancelled_while_it_computes_waits_for_nothing_more() -> None:
    """It would come to its next wait before it sees that it was cancelled, and never leave it."""
    asked: list[int] = []

    async def later(x: int) -> int:
        asked.append(x)
        return x

    with sandhost.Host(cache=False, workers=0) as host:
        host.function("env", "later", "(i32) -> i32")(later)
        guest = host.load(COMPUTES).spawn()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell_and_cancel, guest, tasks.cancel_scope)
            await guest.call_async("until_told_then_wait")
        assert tasks.cancel_scope.cancel_called
        assert asked == []
        assert guest.closed
        balanced(host)


async def test_an_inner_call_that_ends_as_it_is_cancelled_leaves_the_outer_one_alone() -> None:
    async def later(guest: sandhost.Guest, x: int) -> int:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell_and_cancel, guest, tasks.cancel_scope)
            await guest.call_async("until_told")
        assert tasks.cancel_scope.cancel_called
        return x

    with sandhost.Host(cache=False, workers=0) as host:
        host.function("env", "later", "(i32) -> i32")(later)
        async with host.load(COMPUTES).spawn_async() as guest:
            assert await guest.call_async("wait") == 1
        balanced(host)
