"""Admission with real tasks on a real event loop: cancelled, refused, released, and nothing is left."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import guest_file
from helpers.virtual_time import run_in_virtual_time

import sandhost
from sandhost.serve.bag import Bags
from sandhost.serve.concurrency import AdaptiveLimit
from sandhost.serve.overload import Admission
from sandhost.serve.problems import DeadlinePassed, TooMany


def test_requests_run_as_many_as_may_and_in_order() -> None:
    async def main() -> None:
        now = most = 0
        order: list[int] = []
        loop = asyncio.get_running_loop()
        admission = Admission(AdaptiveLimit(3, 1, 3), wait_s=10, clock=loop.time)

        async def one(number: int) -> None:
            nonlocal now, most
            async with admission.enter("acme"):
                order.append(number)
                now += 1
                most = max(most, now)
                await asyncio.sleep(1)
                now -= 1

        await asyncio.gather(*(one(number) for number in range(12)))
        assert most == 3
        assert order == list(range(12))
        assert admission.stats()[1:4] == (0, 0, 0)

    run_in_virtual_time(main())


def test_who_waits_too_long_hears_it_in_time_though_nobody_ends() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        admission = Admission(AdaptiveLimit(1, 1, 1), wait_s=0.05, clock=loop.time)

        async def keep() -> None:
            async with admission.enter("acme"):
                await asyncio.sleep(3600)

        keeping = [
            asyncio.create_task(keep()) for _ in range(2)
        ]  # one on top, as its tenant has none
        await asyncio.sleep(0.2)
        began = loop.time()
        with pytest.raises(TooMany) as caught:
            async with admission.enter("acme"):
                raise AssertionError
        assert loop.time() - began <= 0.056
        assert caught.value.retry_after_s is not None
        with pytest.raises(DeadlinePassed):
            async with admission.enter("acme", deadline_s=0.01):
                raise AssertionError
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        async with admission.enter("acme"):
            pass
        assert admission.stats()[1:4] == (0, 0, 0)

    run_in_virtual_time(main())


def test_memory_pressure_that_ends_lets_requests_in_again() -> None:
    async def main() -> None:
        level = 4
        admission = Admission(pressure=lambda: level)
        with pytest.raises(TooMany, match="short of memory") as caught:
            async with admission.enter("acme"):
                raise AssertionError
        assert caught.value.retry_after_s == 1.0
        level = 0
        async with admission.enter("acme"):
            pass
        assert admission.stats().refused == {"pressure": 1}

    asyncio.run(main())


def test_a_request_that_is_cancelled_at_any_turn_leaves_its_place() -> None:
    async def main() -> None:
        for turn in range(8):
            admission = Admission(AdaptiveLimit(1, 1, 1), wait_s=10)

            async def one(admission: Admission = admission) -> None:
                async with admission.enter("acme"):
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)

            tasks = [asyncio.create_task(one()) for _ in range(4)]
            for _ in range(turn):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.wait(tasks)
            assert admission.stats()[1:4] == (0, 0, 0)
            assert not any(task.exception() for task in tasks if not task.cancelled())

    asyncio.run(main())


def test_guests_of_ten_times_too_many_requests_never_pass_the_limit(host: sandhost.Host) -> None:
    plugin = host.load(guest_file("add"))

    async def main() -> None:
        bags = Bags()
        admission = Admission(
            AdaptiveLimit(8, 4, 8), wait_s=0.05, pressure=lambda: host.pressure.level
        )
        answered = refused = most = 0

        async def one(number: int) -> None:
            nonlocal answered, refused, most
            try:
                async with admission.enter(f"t{number % 3}"), bags.new() as bag:
                    guest = bag.add(plugin.spawn())
                    most = max(most, host.stats().guests_live)
                    await asyncio.sleep(0.005)
                    answered += guest.call("add", number, 0) == number
            except TooMany:
                refused += 1

        tasks = []
        for number in range(1000):
            tasks.append(asyncio.create_task(one(number)))
            if number % 8 == 0:
                await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)
        assert answered + refused == 1000
        assert answered > 0
        assert refused > 0
        assert most <= 8 + 2 + 5  # the quarter on top, and what one tenant has above its share of 3
        assert admission.stats().admitted == answered
        assert admission.stats()[1:4] == (0, 0, 0)

    asyncio.run(main())


def test_what_is_made_at_once_is_refused_under_pressure_and_counted() -> None:
    async def run() -> None:
        level = 0
        admission = Admission(pressure=lambda: level)
        assert admission.at_once("acme") is None
        assert admission.at_once("acme") is None
        admission.was_long()
        stats = admission.stats()
        assert (stats.admitted, stats.at_once) == (1, 1)
        level = 3  # of which no guest can start
        problem = admission.at_once("acme")
        assert isinstance(problem, TooMany)
        assert problem.retry_after_s
        assert admission.stats().refused == {"pressure": 1}
        level = 0
        await asyncio.sleep(0)
        assert admission.at_once("acme") is None

    asyncio.run(run())
