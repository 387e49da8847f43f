"""Sessions keep a guest between calls, for its tenant alone, one call at a time, until nobody uses it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import guest_file
from helpers.virtual_time import VirtualTimeLoop, run_in_virtual_time

import sandhost
from sandhost.errors import ConfigError
from sandhost.serve.problems import Conflict, Missing, TooMany, Unavailable
from sandhost.serve.sessions import Sessions


def in_sessions(host: sandhost.Host, test: Any, **options: Any) -> None:
    """Run a test with sessions of real guests, whose time is the loop's, which is virtual."""
    plugin = host.load(guest_file("stateful"))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        sessions = Sessions(clock=loop.time, **{"idle_s": 60, **options})
        await test(sessions, plugin.spawn)
        await sessions.drain()
        assert sessions.stats()[:3] == (0, 0, 0)
        assert host.stats().guests_live == 0

    run_in_virtual_time(main())


def test_a_session_keeps_its_guest_between_calls(host: sandhost.Host) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        first = await sessions.open("acme", spawn)

        async def later() -> sandhost.Guest:
            await asyncio.sleep(1)
            return spawn()

        second = await sessions.open("acme", later)
        async with sessions.use(first, "acme") as guest:
            guest.call("store", 8, 42)
        async with sessions.use(second, "acme") as other:
            assert other.call("load", 8) != 42
        async with sessions.use(first, "acme") as again:
            assert again is guest
            assert again.call("load", 8) == 42
        assert sessions.stats()[:4] == (2, 0, 0, 2)
        assert host.stats().guests_live == 2

    in_sessions(host, test)


def test_ids_are_128_bits_and_another_tenants_session_is_missing(host: sandhost.Host) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        names = {await sessions.open("acme", spawn) for _ in range(50)}
        assert len(names) == 50
        assert all(len(bytes.fromhex(name)) == 16 for name in names)
        name = names.pop()
        texts = set()
        for wrong, tenant in ((name, "other"), ("0" * 32, "acme"), ("", "acme")):
            with pytest.raises(Missing) as caught:
                async with sessions.use(wrong, tenant):
                    raise AssertionError
            texts.add(str(caught.value))
            with pytest.raises(Missing):
                await sessions.close(wrong, tenant)
        assert len(texts) == 1
        async with sessions.use(name, "acme") as guest:
            assert not guest.closed

    in_sessions(host, test)


def test_calls_of_one_session_come_one_after_the_other_and_do_not_wait_for_ever(
    host: sandhost.Host,
) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        name = await sessions.open("acme", spawn)
        order: list[int] = []

        async def call(number: int, takes_s: float) -> None:
            async with sessions.use(name, "acme"):
                order.append(number)
                await asyncio.sleep(takes_s)

        await asyncio.gather(*(call(number, 0.5) for number in range(5)))
        assert order == [0, 1, 2, 3, 4]
        long = asyncio.create_task(call(5, 100))
        await asyncio.sleep(0)
        began = asyncio.get_running_loop().time()
        with pytest.raises(Conflict):
            await call(6, 0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(3)
        await long
        await call(7, 0)
        assert order == [0, 1, 2, 3, 4, 5, 7]

    in_sessions(host, test, wait_s=3)


def test_who_is_cancelled_in_any_turn_leaves_the_session_usable(host: sandhost.Host) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        name = await sessions.open("acme", spawn)

        async def call() -> None:
            async with sessions.use(name, "acme"):
                await asyncio.sleep(0)

        for turn in range(12):
            tasks = [asyncio.create_task(call()) for _ in range(3)]
            for _ in range(turn):
                await asyncio.sleep(0)
            tasks[turn % 3].cancel()
            await asyncio.wait(tasks)
            assert sessions.stats()[1:3] == (0, 0)
        await asyncio.wait_for(call(), 1)

    in_sessions(host, test)


def test_idle_sessions_are_closed_and_used_ones_stay(host: sandhost.Host) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        idle, used, busy = [await sessions.open("acme", spawn) for _ in range(3)]
        sweeping = asyncio.create_task(sessions.run())

        async def work() -> None:
            async with sessions.use(busy, "acme"):
                await asyncio.sleep(200)

        working = asyncio.create_task(work())
        for _ in range(4):
            await asyncio.sleep(30)
            async with sessions.use(used, "acme"):
                pass
        assert sessions.stats().live == host.stats().guests_live == 2
        with pytest.raises(Missing):
            async with sessions.use(idle, "acme"):
                raise AssertionError
        await working
        await asyncio.sleep(50)
        assert sessions.stats().live == 1  # the busy one was used until just now
        await asyncio.sleep(20)
        assert sessions.stats().live == host.stats().guests_live == 0
        assert sessions.stats().idled == 3
        sweeping.cancel()

    in_sessions(host, test)


def test_there_are_no_more_than_may_be(host: sandhost.Host) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        async def slow() -> sandhost.Guest:
            await asyncio.sleep(1)
            return spawn()

        opened = await asyncio.gather(
            *(sessions.open("acme", slow) for _ in range(5)), return_exceptions=True
        )
        assert [type(one) for one in opened] == [str, str, TooMany, TooMany, TooMany]
        await sessions.open("other", spawn)
        with pytest.raises(TooMany, match="no room") as caught:
            await sessions.open("third", spawn)
        assert caught.value.retry_after_s is not None
        await sessions.close(str(opened[0]), "acme")
        await sessions.open("third", spawn)

    in_sessions(host, test, most=3, most_of_tenant=2)


def test_a_session_that_cannot_be_opened_takes_no_room(host: sandhost.Host) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        def fail() -> Any:
            raise ValueError("no guest")

        async def never() -> Any:
            await asyncio.sleep(3600)

        for _ in range(3):
            with pytest.raises(ValueError, match="no guest"):
                await sessions.open("acme", fail)
            opening = asyncio.create_task(sessions.open("acme", never))
            await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait({opening})
        await sessions.open("acme", spawn)

    in_sessions(host, test, most=1)


def test_a_guest_that_has_ended_ends_its_session(host: sandhost.Host) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        name = await sessions.open("acme", spawn)
        async with sessions.use(name, "acme") as guest:
            guest.close()
        with pytest.raises(Missing):
            async with sessions.use(name, "acme"):
                raise AssertionError

    in_sessions(host, test)


def test_who_waits_for_a_session_that_is_closed_hears_that_it_is_missing(
    host: sandhost.Host,
) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        name = await sessions.open("acme", spawn)

        async def call(takes_s: float) -> None:
            async with sessions.use(name, "acme"):
                await asyncio.sleep(takes_s)

        first = asyncio.create_task(call(1))
        second = asyncio.create_task(call(1))
        await asyncio.sleep(0.1)
        await sessions.close(name, "acme")
        await first
        with pytest.raises(Missing):
            await second

    in_sessions(host, test)


def test_a_session_that_is_closed_ends_the_call_that_a_thread_is_in(host: sandhost.Host) -> None:
    plugin = host.load(guest_file("spin"))

    async def main() -> None:
        sessions = Sessions()
        name = await sessions.open("acme", plugin.spawn)

        async def call() -> None:
            async with sessions.use(name, "acme") as guest:
                await asyncio.to_thread(guest.call, "spin")

        calling = asyncio.create_task(call())
        while not any(row.doing == "running" for row in host.guests()):
            await asyncio.sleep(0.001)
        await sessions.close(name, "acme")
        with pytest.raises((sandhost.GuestCancelled, sandhost.GuestClosed)):
            await calling
        assert sessions.stats().failures == 0
        assert host.stats().guests_live == 0

    asyncio.run(main())


def test_a_drain_closes_all_and_opens_no_more(host: sandhost.Host) -> None:
    async def test(sessions: Sessions, spawn: Any) -> None:
        for tenant in ("acme", "other"):
            for _ in range(3):
                await sessions.open(tenant, spawn)

        async def slow() -> sandhost.Guest:
            await asyncio.sleep(1)
            return spawn()

        opening = asyncio.create_task(sessions.open("acme", slow))
        await asyncio.sleep(0.5)
        await sessions.drain()
        with pytest.raises(Unavailable):
            await opening
        with pytest.raises(Unavailable):
            await sessions.open("acme", spawn)
        assert host.stats().guests_live == 0

    in_sessions(host, test)


@pytest.mark.parametrize("options", [{"idle_s": 0}, {"wait_s": -1}, {"most": 0}])
def test_settings_that_cannot_be_meant_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Sessions(**options)
