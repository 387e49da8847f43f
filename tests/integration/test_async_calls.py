"""Calls that can wait: what they take and give. Whom they keep waiting is in test_async_workers.py."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time

import anyio
import pytest
from helpers import DEADLINE, balanced, guest_file
from helpers.waiting import load_waiting, turns, until

import sandhost
from sandhost.aio.port import _ports

pytestmark = pytest.mark.anyio


async def test_a_call_returns_what_the_function_returns(host: sandhost.Host) -> None:
    async with load_waiting(host).spawn_async() as guest:
        assert await guest.call_async("add", 2, 3) == 5
        assert await guest.call_async("dirty", 10) is None
        assert await guest.func("add").call_async(2**32 - 1, 0) == -1
        assert await guest.call_async("swap", 1.5, 2.5, 2**63) == (-(2**63), 2.5, 1.5)
        assert guest.call("peek", 3) == 1


async def test_every_type_of_value_crosses(host: sandhost.Host) -> None:
    vector = bytes(range(16))
    async with host.load(guest_file("types")).spawn_async() as guest:
        assert await guest.call_async("v128", vector) == vector
        assert await guest.call_async("all_numbers", 2**32 - 1, -1, 0.5, 1e300) == (
            -1,
            -1,
            0.5,
            1e300,
        )
        with pytest.raises(TypeError, match="reference"):
            await guest.call_async("funcref", None)
        with pytest.raises(TypeError, match="16 bytes"):
            await guest.call_async("v128", b"short")


async def test_a_call_waits_for_a_coroutine(host: sandhost.Host) -> None:
    async with load_waiting(host).spawn_async() as guest:
        assert await guest.call_async("wait", 41) == 42
        assert await guest.call_async("waits", 50) == sum(2 * (n + 1) for n in range(1, 51))
        assert await guest.call_async("deep", 1500) == 1502
        assert guest.stats().host_calls == 102


async def test_an_ordinary_function_still_works(host: sandhost.Host) -> None:
    here = threading.get_ident()
    seen = []
    plugin = load_waiting(host, now=lambda x: seen.append(threading.get_ident()) or x * 2)
    async with plugin.spawn_async() as guest:
        assert await guest.call_async("ask", 4) == 8
        assert guest.call("ask", 4) == 8
    assert set(seen) == {here}


async def test_host_functions_run_in_the_callers_context(host: sandhost.Host) -> None:
    request = contextvars.ContextVar("request", default="nobody's")
    seen = []

    async def later(x: int) -> int:
        await anyio.lowlevel.checkpoint()
        seen.append(request.get())
        return x

    plugin = load_waiting(host, later, lambda x: seen.append(request.get()) or x)
    request.set("mine")
    async with plugin.spawn_async() as guest:
        await guest.call_async("waits", 2)
    assert seen == ["mine"] * 4


async def test_what_a_host_function_raises_comes_out_as_it_was_raised(host: sandhost.Host) -> None:
    class Odd(Exception):
        pass

    error = Odd("as it is")

    async def later(_: int) -> int:
        await anyio.lowlevel.checkpoint()
        raise error

    async with load_waiting(host, later).spawn_async() as guest:
        with pytest.raises(Odd) as raised:
            await guest.call_async("wait", 1)
        assert raised.value is error
        assert not guest.closed
        assert await guest.call_async("add", 1, 1) == 2


async def test_a_result_that_does_not_fit_is_told_by_name(host: sandhost.Host) -> None:
    async def later(_: int) -> int:
        return "many"  # type: ignore[return-value]

    async with load_waiting(host, later).spawn_async() as guest:
        with pytest.raises(sandhost.HostCallError, match=r"env\.later returned 'many'"):
            await guest.call_async("wait", 1)


async def test_wrong_calls_are_refused_by_name(host: sandhost.Host) -> None:
    async with load_waiting(host).spawn_async() as guest:
        with pytest.raises(sandhost.ConfigError, match="no function 'nope'"):
            await guest.call_async("nope")
        with pytest.raises(TypeError, match="takes 2 arguments"):
            await guest.call_async("add", 1)
        with pytest.raises(OverflowError, match="add"):
            await guest.call_async("add", 1, 2**40)
        with pytest.raises(TypeError):
            await guest.call_async("add", 1, "two")
        with pytest.raises(sandhost.GuestTrap) as trap:
            await guest.call_async("trap")
        assert trap.value.code == "unreachable"
    with pytest.raises(sandhost.GuestClosed):
        await guest.call_async("add", 1, 1)


def test_without_an_event_loop_a_call_cannot_wait(host: sandhost.Host) -> None:
    with load_waiting(host).spawn() as guest:
        waiting = guest.call_async("add", 1, 2)
        with pytest.raises(sandhost.ConfigError, match="no event loop"):
            waiting.send(None)


async def test_a_call_that_blocks_does_not_reach_a_coroutine(host: sandhost.Host) -> None:
    plugin = load_waiting(host)
    async with plugin.spawn_async() as guest:
        with pytest.raises(sandhost.ConfigError, match=r"env\.later.*call_async"):
            guest.call("wait", 1)
        assert guest.call("add", 1, 1) == 2
    with pytest.raises(sandhost.ConfigError, match=r"env\.later"):
        plugin.call("wait", 1)


async def test_a_deadline_holds_while_a_guest_computes_and_while_it_waits(
    host: sandhost.Host,
) -> None:
    async def later(_: int) -> int:
        await anyio.sleep_forever()
        return 0

    plugin = load_waiting(host, later)
    limits = sandhost.Limits(deadline=DEADLINE)
    async with plugin.spawn_async(limits=limits) as guest:
        for call in ("spin", "wait"):
            began = time.monotonic()
            with pytest.raises(sandhost.DeadlineExceeded, match="50 ms"):
                await guest.call_async(call, *([1] if call == "wait" else []))
            assert time.monotonic() - began >= DEADLINE * 0.9
        assert await guest.call_async("add", 1, 2) == 3
    assert host.stats().deadlines == 2


async def test_fuel_is_counted_over_waits(host: sandhost.Host) -> None:
    load_waiting(host)
    plugin = host.load(guest_file("waits").read_bytes(), fuel=True)
    async with plugin.spawn_async(limits=sandhost.Limits(fuel=10_000)) as guest:
        assert await guest.call_async("wait", 1) == 2
        assert 0 < guest.stats().fuel_used < 10_000
        with pytest.raises(sandhost.OutOfFuel):
            await guest.call_async("spin")


async def test_a_guest_can_be_called_from_inside_its_own_host_function(host: sandhost.Host) -> None:
    async def later(guest: sandhost.Guest, x: int) -> int:
        assert guest.memory.read(0, 1) == b"\0"
        with pytest.raises(sandhost.GuestBusy, match="call_async"):
            guest.call("add", 1, 1)
        if x:
            return int(await guest.call_async("wait", x - 1)) + 1
        return int(await guest.call_async("add", 10, 20))

    def now(guest: sandhost.Guest, x: int) -> int:
        return int(guest.call("add", x, 100))

    host.function("env", "later", "(i32) -> i32")(later)
    host.function("env", "now", "(i32) -> i32")(now)
    plugin = host.load(guest_file("waits"))
    async with plugin.spawn_async() as guest:
        assert await guest.call_async("wait", 0) == 30
        assert await guest.call_async("wait", 12) == 42
        assert await guest.call_async("ask", 1) == 101
        assert guest.call("ask", 1) == 101


async def test_another_task_cannot_enter_a_guest_that_waits(host: sandhost.Host) -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    async def later(x: int) -> int:
        entered.set()
        await go_on.wait()
        return x

    plugin = load_waiting(host, later)
    async with plugin.spawn_async() as guest, anyio.create_task_group() as tasks:
        tasks.start_soon(guest.call_async, "wait", 1)
        await entered.wait()
        with pytest.raises(sandhost.GuestBusy, match="another task"):
            await guest.call_async("add", 1, 1)
        for use in (lambda: guest.call("add", 1, 1), guest.close, guest.snapshot):
            with pytest.raises(sandhost.GuestBusy):
                use()
        assert guest.stats().running
        go_on.set()


async def test_calls_at_once_within_one_host_function_are_refused(host: sandhost.Host) -> None:
    refused = 0

    async def later(guest: sandhost.Guest, x: int) -> int:
        nonlocal refused

        async def inner() -> None:
            nonlocal refused
            try:
                await guest.call_async("wait", 0)
            except sandhost.GuestBusy:
                refused += 1

        if x:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(inner)
                tasks.start_soon(inner)
        await turns(3)
        return x + 1

    host.function("env", "later", "(i32) -> i32")(later)
    host.function("env", "now", "(i32) -> i32")(lambda x: x)
    async with host.load(guest_file("waits")).spawn_async() as guest:
        assert await guest.call_async("wait", 7) == 8
    assert refused == 1


async def test_guests_call_guests_and_a_circle_is_named(host: sandhost.Host) -> None:
    guests: dict[str, sandhost.Guest] = {}

    async def later(guest: sandhost.Guest, x: int) -> int:
        other = guests["b" if guest is guests["a"] else "a"]
        return int(await other.call_async("add" if x else "wait", *((x, 100) if x else (0,))))

    host.function("env", "later", "(i32) -> i32")(later)
    host.function("env", "now", "(i32) -> i32")(lambda x: x)
    plugin = host.load(guest_file("waits"), name="p")
    async with plugin.spawn_async() as guests["a"], plugin.spawn_async() as guests["b"]:
        assert await guests["a"].call_async("wait", 3) == 103
        with pytest.raises(sandhost.GuestBusy, match="in a circle: p → p → p"):
            await guests["a"].call_async("wait", 0)
        assert await guests["b"].call_async("wait", 3) == 103
    guests.clear()


async def test_guests_that_call_guests_too_deep_are_stopped(host: sandhost.Host) -> None:
    deepest = 0

    async def later(x: int) -> int:
        nonlocal deepest
        deepest = max(deepest, x)
        async with plugin.spawn_async() as guest:
            return int(await guest.call_async("wait", x + 1))

    plugin = load_waiting(host, later)
    async with plugin.spawn_async() as guest:
        with pytest.raises(sandhost.LimitExceeded, match="32 deep"):
            await guest.call_async("wait", 1)
    assert deepest == 32


async def test_a_start_function_may_wait(host: sandhost.Host) -> None:
    plugin = load_waiting(host, start=True)
    async with plugin.spawn_async() as guest:
        assert await guest.call_async("started") == 6
    guest = await plugin.spawn_async()
    assert guest.call("started") == 6
    await guest.aclose()
    with pytest.raises(sandhost.ConfigError, match="call_async"):
        plugin.spawn()


async def test_a_start_function_that_fails_leaves_nothing(host: sandhost.Host) -> None:
    async def later(_: int) -> int:
        raise KeyError("start")

    with pytest.raises(KeyError, match="start"):
        await load_waiting(host, later, start=True).spawn_async()


async def test_forks_wait_too(host: sandhost.Host) -> None:
    plugin = load_waiting(host)
    async with plugin.spawn_async() as guest:
        await guest.call_async("dirty", 100)
        assert await guest.call_async("wait", 1) == 2
        snapshot = guest.snapshot()
    async with snapshot.spawn_async() as fork:
        assert await fork.call_async("peek", 99) == 1
        assert await fork.call_async("wait", 1) == 2


async def test_guests_wait_at_once_on_one_thread(host: sandhost.Host) -> None:
    gate = anyio.Event()
    arrived = 0

    async def later(x: int) -> int:
        nonlocal arrived
        arrived += 1
        await gate.wait()
        return x + 1

    plugin = load_waiting(host, later)
    threads = threading.active_count()
    results = []

    async def one(k: int) -> None:
        async with plugin.spawn_async() as guest:
            results.append(await guest.call_async("wait", k))

    async with anyio.create_task_group() as tasks:
        for k in range(200):
            tasks.start_soon(one, k)
        await until(lambda: arrived == 200)
        assert host.stats().stacks_live == 200
        assert threading.active_count() <= threads
        gate.set()
    assert sorted(results) == list(range(1, 201))


def test_two_loops_in_two_threads_share_a_host(host: sandhost.Host) -> None:
    plugin = load_waiting(host)

    async def many() -> None:
        async with plugin.spawn_async() as guest:
            for k in range(200):
                assert await guest.call_async("wait", k) == k + 1
            assert await guest.call_async("work", 50_000_000) == 7

    failures: list[BaseException] = []

    def run(backend: str) -> None:
        try:
            anyio.run(many, backend=backend)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(b,)) for b in ("asyncio", "trio", "asyncio")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_is_gone_is_held_by_nobody(host: sandhost.Host, backend: str) -> None:
    plugin = load_waiting(host)

    async def call() -> None:
        async with plugin.spawn_async() as guest:
            assert await guest.call_async("wait", 1) == 2

    gc.collect()
    before = len(_ports)
    for _ in range(3):
        anyio.run(call, backend=backend)
    gc.collect()
    assert len(_ports) == before


def test_a_host_ends_what_a_loop_left_behind() -> None:
    async def later(_: int) -> int:
        await asyncio.Event().wait()
        return 0

    with sandhost.Host(cache=False) as host:
        plugin = load_waiting(host, later)
        guests = [plugin.spawn() for _ in range(4)]
        loop = asyncio.new_event_loop()
        calls = [guest.call_async("wait", 1) for guest in guests[:2]]
        calls += [guest.call_async("spin") for guest in guests[2:]]
        tasks = [loop.create_task(call) for call in calls]
        loop.run_until_complete(asyncio.sleep(0.02))
        loop.close()  # with tasks that nobody has cancelled
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
    balanced(host)
    for guest in guests:
        guest.close()


async def test_a_coroutine_that_is_closed_ends_its_call(host: sandhost.Host) -> None:
    async def later(_: int) -> int:
        await anyio.sleep_forever()
        return 0

    plugin = load_waiting(host, later)
    guest = plugin.spawn()
    waiting = guest.call_async("wait", 1)
    waiting.send(None)
    assert host.stats().stacks_live == 1
    waiting.close()
    await until(lambda: _closed(guest))
    spinning = plugin.spawn()
    away = spinning.call_async("spin")
    away.send(None)
    away.close()
    await until(lambda: not host.stats().guests_live or _closed(spinning))


def _closed(guest: sandhost.Guest) -> bool:
    try:
        guest.close()
    except sandhost.GuestBusy:
        return False
    return True


async def test_a_closed_host_ends_calls_that_wait() -> None:
    host = sandhost.Host(cache=False)
    entered, go_on = anyio.Event(), anyio.Event()

    async def later(x: int) -> int:
        entered.set()
        await go_on.wait()
        return x

    guest = load_waiting(host, later).spawn()
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises((sandhost.GuestClosed, sandhost.GuestCancelled)):
                await guest.call_async("wait", 1)

        tasks.start_soon(call)
        await entered.wait()
        host.close()
        go_on.set()
    balanced(host)
    guest.close()


async def test_a_stack_counts_for_tenant_and_host() -> None:
    with sandhost.Host(cache=False, memory_limit="2 MiB") as host:
        plugin = load_waiting(host)
        tenant = host.tenant("small", "128 KiB")
        async with plugin.spawn_async(tenant=tenant) as guest:
            with pytest.raises(sandhost.OutOfMemory, match="tenant's limit is 128 KiB"):
                await guest.call_async("wait", 1)
            assert not guest.closed
        async with plugin.spawn_async() as guest:
            assert await guest.call_async("wait", 1) == 2
            assert host.stats().stack_bytes == 640 << 10
        balanced(host)
