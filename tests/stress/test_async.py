"""Tasks by the dozen that wait, compute, time out, cancel each other and close guests under one another."""

from __future__ import annotations

import contextlib
import random
import threading

import anyio
import pytest
from helpers import balanced, guest_file
from helpers.waiting import load_waiting

import sandhost

TASKS, ROUNDS = 24, 12
CALLS: list[tuple[str, tuple[int, ...]]] = [
    ("wait", (1,)),
    ("wait", (13,)),
    ("waits", (5,)),
    ("work", (3_000_000,)),
    ("add", (1, 2)),
    ("trap", ()),
    ("spin", ()),
]
EXPECTED = (
    KeyError,
    TimeoutError,
    sandhost.GuestCancelled,
    sandhost.GuestClosed,
    sandhost.GuestBusy,
    sandhost.GuestTrap,
    sandhost.DeadlineExceeded,
)


async def meddle(
    plugin: sandhost.Plugin, chance: random.Random, shared: list[sandhost.Guest]
) -> None:
    """One task: guests of its own, and now and then somebody else's."""
    for _ in range(ROUNDS):
        limits = sandhost.Limits(deadline=chance.choice([None, 0.001, 0.02, 5]))
        with contextlib.suppress(*EXPECTED):
            async with plugin.spawn_async(limits=limits, tenant=f"t{chance.randrange(3)}") as guest:
                shared.append(guest)
                with anyio.move_on_after(chance.choice([0.0005, 0.01, 5])):
                    for _ in range(chance.randrange(1, 5)):
                        name, arguments = chance.choice(CALLS)
                        on_cancel = chance.choice(["close", "keep"])
                        await guest.call_async(name, *arguments, on_cancel=on_cancel)
        if shared and chance.random() < 0.3:
            victim = shared[chance.randrange(len(shared))]
            with contextlib.suppress(*EXPECTED):
                if chance.random() < 0.5:
                    victim.cancel()
                else:
                    await victim.aclose()


async def crowd(host: sandhost.Host, seed: int) -> None:
    chance = random.Random(seed)

    async def later(guest: sandhost.Guest, x: int) -> int:
        await anyio.sleep(chance.choice([0, 0, 0.0005, 0.003]))
        if x == 13:
            raise KeyError(x)
        if chance.random() < 0.1:
            with contextlib.suppress(*EXPECTED):
                await guest.call_async("wait", 0)
        return x

    host.function("env", "later", "(i32) -> i32")(later)
    host.function("env", "now", "(i32) -> i32")(lambda x: x)
    plugin = host.load(guest_file("waits"))
    shared: list[sandhost.Guest] = []
    async with anyio.create_task_group() as tasks:
        for _ in range(TASKS):
            tasks.start_soon(meddle, plugin, random.Random(chance.random()), shared)
    for guest in shared:
        await guest.aclose()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("workers", [0, 2])
def test_tasks_meddle_with_each_others_guests(backend: str, workers: int) -> None:
    with sandhost.Host(cache=False, workers=workers, max_guests=512) as host:
        anyio.run(crowd, host, 20261126 + workers, backend=backend)
        balanced(host)
        stats = host.stats()
        assert stats.cancels > 0
        assert stats.deadlines > 0


def test_loops_in_threads_meddle_on_one_host() -> None:
    failures: list[BaseException] = []
    with sandhost.Host(cache=False, workers=2, max_guests=512) as host:

        def run(seed: int) -> None:
            try:
                anyio.run(crowd, host, seed, backend=("asyncio", "trio")[seed % 2])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        balanced(host)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_wake_up_is_lost(backend: str) -> None:
    """Of many suspensions, some on workers and some in place, each is answered once."""
    guests, rounds = 40, 250
    answered = 0

    async def later(x: int) -> int:
        nonlocal answered
        await anyio.lowlevel.checkpoint()
        answered += 1
        return x

    async def main(host: sandhost.Host) -> None:
        plugin = load_waiting(host, later)
        total = sum(range(1, rounds + 1))

        async def run() -> None:
            async with plugin.spawn_async() as guest:
                assert await guest.call_async("waits", rounds) == 2 * total + rounds

        async with anyio.create_task_group() as tasks:
            for _ in range(guests):
                tasks.start_soon(run)

    with sandhost.Host(cache=False) as host:
        anyio.run(main, host, backend=backend)
        balanced(host)
    assert answered == guests * rounds
