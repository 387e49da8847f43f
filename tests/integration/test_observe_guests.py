"""Guests as a profile: what each does, and where in its code it is."""

from __future__ import annotations

import time

import anyio
import pytest
from helpers import Background, wait_until
from helpers.waiting import load_waiting, until

import sandhost
from sandhost.observe import capture, guests_profile

PLUGIN = b"""(module
  (import "env" "slow" (func $slow (param i32)))
  (memory 3)
  (func $leaf (loop (br 0)))
  (func $middle (param i32) (if (local.get 0) (then (call $middle (i32.sub (local.get 0) (i32.const 1)))))
    (call $leaf))
  (func $through (param i32) (call $slow (local.get 0)) (call $leaf))
  (export "spin" (func $middle))
  (export "ask" (func $through)))"""


@pytest.fixture
def over() -> list[bool]:
    return []


@pytest.fixture
def plugin(host, over):
    @host.function("env", "slow")
    def slow(_number: int) -> None:
        while not over:
            time.sleep(0.001)

    return host.load(PLUGIN, name="worker")


def stacks(host) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {sample.stack: sample.values for sample in guests_profile(host).samples}


def running(guest, name: str) -> Background:
    def call() -> str:
        try:
            guest.call(name, 2)
        except sandhost.GuestCancelled:
            return "cancelled"
        return "returned"

    thread = Background(call)
    wait_until(lambda: guest.stats().running)
    return thread


def test_guests_that_compute_tell_their_stacks(plugin, host):
    with plugin.spawn(tenant="acme") as one, plugin.spawn(tenant="acme") as two, plugin.spawn():
        threads = [running(one, "spin"), running(two, "spin")]
        deep = ("tenant acme", "plugin worker", "running", "middle", "middle", "middle", "leaf")
        found = {}

        def both_told() -> bool:
            found.clear()
            found.update(stacks(host))
            return deep in found and found[deep][0] == 2

        wait_until(both_told)
        assert found[deep] == (2, 2 * 3 * 65536, 0, 0)
        assert found["plugin worker", "idle"][0] == 1
        one.cancel(), two.cancel()
        assert [thread.result() for thread in threads] == ["cancelled", "cancelled"]


def test_a_guest_in_a_host_function_is_said_to_be_there(plugin, host, over):
    with plugin.spawn() as guest:
        thread = running(guest, "ask")
        wait_until(lambda: ("plugin worker", "running", "env.slow") in stacks(host))
        over.append(True)
        leaf = ("plugin worker", "running", "through", "leaf")
        wait_until(lambda: leaf in stacks(host))
        guest.cancel()
        assert thread.result() == "cancelled"
        assert list(stacks(host)) == [("plugin worker", "idle")]


@pytest.mark.anyio
async def test_a_guest_that_waits_says_for_what(host):
    answer = anyio.Event()

    async def later(x: int) -> int:
        await answer.wait()
        return x

    plugin = load_waiting(host, later)
    async with plugin.spawn_async() as guest, anyio.create_task_group() as group:
        group.start_soon(guest.call_async, "deep", 2)
        await until(lambda: host.guests()[0].doing == "waiting")
        where = [("plugin waits", "waiting", "deep", "deep", "deep", "env.later")]
        assert list(stacks(host)) == where
        assert list(stacks(host)) == where
        answer.set()


@pytest.mark.anyio
async def test_a_guest_on_a_worker_tells_its_stack(plugin, host):
    async with plugin.spawn_async() as guest, anyio.create_task_group() as group:
        group.start_soon(guest.call_async, "spin", 0)
        leaf = ("plugin worker", "running", "middle", "leaf")
        await until(lambda: leaf in stacks(host))
        group.cancel_scope.cancel()


def test_guests_are_asked_again_and_again_while_they_come_and_go(plugin, host):
    over = []

    def spawn() -> int:
        count = 0
        while not over:
            with plugin.spawn(limits=sandhost.Limits(deadline=0.003)) as guest:
                with pytest.raises(sandhost.DeadlineExceeded):
                    guest.call("spin", 3)
            count += 1
        return count

    threads = [Background(spawn) for _ in range(2)]
    seen = 0
    for _ in range(100):
        for stack, values in stacks(host).items():
            assert stack[:1] == ("plugin worker",)
            seen += values[0] * (stack[-1] == "leaf")
    over.append(True)
    assert all(thread.result() for thread in threads)
    assert seen > 0


def test_names_in_a_module_do_no_harm(host):
    text = b'(module (func $"\\1b[31m\\0a\\u{202e}" (export "spin") (param i32) (loop (br 0))))'
    plugin = host.load(text, name="evil")
    with plugin.spawn() as guest:
        thread = running(guest, "spin")
        wait_until(lambda: any(len(stack) > 2 for stack in stacks(host)))
        assert all(name.isprintable() for stack in stacks(host) for name in stack)
        guest.cancel()
        thread.result()


def test_a_host_without_guests_has_an_empty_profile(host):
    profile = guests_profile(host)
    assert profile.samples == ()
    assert capture(host).guests == []
