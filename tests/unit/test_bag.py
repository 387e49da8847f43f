"""A bag releases what is in it once, last in, first out, whatever ended the request."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest

from sandhost.errors import ConfigError
from sandhost.serve.bag import BagClosed, Bags, ResourceBag, current_bag

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Thing:
    """Something that says when it was released, and may do so in several turns of the loop."""

    def __init__(self, log: list[object], name: object, turns: int = 0) -> None:
        self.log, self.name, self.turns = log, name, turns

    async def aclose(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.log.append(self.name)

    def close(self) -> None:
        self.log.append(("close", self.name))


async def test_the_last_in_is_the_first_out() -> None:
    log: list[object] = []
    async with ResourceBag() as bag:
        for number in range(5):
            bag.add(Thing(log, number, number))
        bag.add("plain", log.append)
    assert log == ["plain", 4, 3, 2, 1, 0]
    assert bag.closed
    assert not bag.failures


@pytest.mark.parametrize("name", ["aclose", "close", "release"])
async def test_how_something_is_released_is_found_by_name(name: str) -> None:
    log: list[str] = []
    thing = type("Named", (), {name: lambda self: log.append(name)})()
    async with ResourceBag() as bag:
        assert bag.add(thing) is thing
    assert log == [name]


def test_what_cannot_be_released_is_refused() -> None:
    with pytest.raises(ConfigError, match="a object has no aclose, close or release"):
        ResourceBag().add(object())


async def test_context_managers_are_left_and_see_the_error_but_cannot_suppress_it() -> None:
    seen: list[type[BaseException] | None] = []

    class Manager:
        def __enter__(self) -> str:
            return "entered"

        def __exit__(self, kind, error, traceback) -> bool:
            seen.append(kind)
            return True

    @contextlib.asynccontextmanager
    async def manager() -> AsyncIterator[str]:
        try:
            yield "entered too"
        except ValueError:
            seen.append(ValueError)
            raise

    with pytest.raises(ValueError, match="mine"):
        async with ResourceBag() as bag:
            assert await bag.enter(Manager()) == "entered"
            assert await bag.enter(manager()) == "entered too"
            raise ValueError("mine")
    assert seen == [ValueError, ValueError]


async def test_a_release_that_fails_hides_no_error_and_stops_no_other() -> None:
    log: list[object] = []
    bags = Bags()

    def fail(thing: object) -> None:
        raise OSError("release")

    with pytest.raises(ValueError, match="request"):
        async with bags.new() as bag:
            bag.add(Thing(log, 1))
            bag.add(object(), fail)
            bag.add(Thing(log, 2))
            raise ValueError("request")
    assert log == [2, 1]
    assert [(failure.what, str(failure.error)) for failure in bag.failures] == [
        ("object", "release")
    ]
    async with bags.new() as bag:
        bag.add(object(), fail)  # nor does the request fail for it
    stats = bags.stats()
    assert (stats.live, stats.opened, stats.added, stats.released, stats.failed) == (0, 2, 4, 4, 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_within_a_release_comes_out_after_the_others_have_run(
    error: type[BaseException],
) -> None:
    log: list[object] = []

    def interrupt(thing: object) -> None:
        raise error

    with pytest.raises(error):
        with ResourceBag() as bag:
            bag.add(1, log.append)
            bag.add(2, interrupt)
    assert log == [1]


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, BaseException])
async def test_other_base_exceptions_of_a_release_are_failures(error: type[BaseException]) -> None:
    log: list[object] = []

    def fail(thing: object) -> None:
        raise error

    async def fail_later(thing: object) -> None:
        await asyncio.sleep(0)
        raise error

    async with ResourceBag() as bag:
        bag.add(0, log.append)
        bag.add(1, fail)
        bag.add(2, fail_later)
    assert log == [0]
    assert [type(failure.error) for failure in bag.failures] == [error, error]


async def test_what_is_added_during_the_release_is_released_next() -> None:
    log: list[object] = []
    async with ResourceBag() as bag:
        bag.add(1, log.append)
        bag.add(2, lambda number: (log.append(number), bag.add(3, log.append)))
    assert log == [2, 3, 1]


async def test_what_is_added_after_the_end_is_released_at_once_and_refused() -> None:
    log: list[object] = []
    async with ResourceBag() as bag:
        pass
    with pytest.raises(BagClosed):
        bag.add(1, log.append)
    assert log == [1]
    with pytest.raises(BagClosed):
        await asyncio.to_thread(bag.add, Thing(log, 2, 3))
    while len(log) < 2:
        await asyncio.sleep(0)
    assert log == [1, 2]


async def test_a_second_close_does_nothing_also_from_within_a_release() -> None:
    log: list[object] = []
    async with ResourceBag() as bag:
        bag.add(1, log.append)
        bag.add(bag, lambda same: same.aclose())
        await bag.aclose()
        await bag.aclose()
        bag.close()
    assert log == [1]


async def test_a_release_that_hangs_has_a_time_and_one_that_resists_is_left_behind() -> None:
    log: list[object] = []
    bags = Bags(timeout_s=0.02)
    let_go = asyncio.Event()

    async def hang(thing: object) -> None:
        await asyncio.sleep(3600)

    async def resist(thing: object) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                log.append("cancelled")

    async with bags.new() as bag:
        bag.add(1, log.append)
        bag.add(2, hang)
        bag.add(3, resist)
    assert log == ["cancelled", 1]
    assert [type(failure.error) for failure in bag.failures] == [TimeoutError, TimeoutError]
    stats = bags.stats()
    assert (stats.released, stats.failed, stats.timed_out, stats.abandoned) == (3, 2, 2, 1)
    let_go.set()
    await asyncio.sleep(0.01)


async def test_a_task_that_is_cancelled_at_any_turn_leaves_nothing() -> None:
    """Cancelled once, or again while the bag is being closed; natively, or by anyio over and over."""
    finished = turn = 0

    def cancel_task(task: asyncio.Task[bool], scope: anyio.CancelScope) -> None:
        task.cancel()

    def cancel_scope(task: asyncio.Task[bool], scope: anyio.CancelScope) -> None:
        scope.cancel()

    async def request(scope: anyio.CancelScope, log: list[object], added: list[object]) -> bool:
        with scope:
            async with ResourceBag() as bag:
                for number in range(4):
                    bag.add(Thing(log, number, 2))
                    added.append(number)
                    await asyncio.sleep(0)
                async with ResourceBag() as inner:
                    inner.add(Thing(log, "inner", 2))
                    added.append("inner")
                    await asyncio.sleep(0)
            return True
        return False

    while finished < 3:
        finished = 0
        for cancels in ([cancel_task], [cancel_scope], [cancel_task, cancel_scope, cancel_task]):
            log: list[object] = []
            added: list[object] = []
            scope = anyio.CancelScope()

            task = asyncio.create_task(request(scope, log, added))
            for cancel in cancels:
                for _ in range(turn):
                    await asyncio.sleep(0)
                cancel(task, scope)
            await asyncio.wait({task})
            assert log == added[::-1]
            assert task.cancelled() or scope.cancelled_caught or task.result()
            finished += not task.cancelled() and not scope.cancelled_caught
        turn += 1
    assert turn > 15


async def test_a_cancellation_during_the_release_comes_after_it_and_behind_an_error() -> None:
    log: list[object] = []
    began = asyncio.Event()

    async def slow(thing: object) -> None:
        began.set()
        await asyncio.sleep(0.01)
        log.append(thing)

    async def request(error: Exception | None) -> None:
        async with ResourceBag() as bag:
            bag.add(1, slow)
            if error is not None:
                raise error

    task = asyncio.create_task(request(None))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    began.clear()

    async def catches() -> None:
        with pytest.raises(ValueError):
            await request(ValueError("first"))
        await asyncio.sleep(3600)  # the cancellation was not lost

    task = asyncio.create_task(catches())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == [1, 1]


async def test_bags_nest_and_the_innermost_is_current() -> None:
    with pytest.raises(ConfigError, match="no bag here"):
        current_bag()
    log: list[object] = []
    async with ResourceBag() as outer:
        current_bag().add("outer", log.append)
        async with ResourceBag() as inner:
            assert current_bag() is inner
            await asyncio.to_thread(lambda: current_bag().add("inner", log.append))
        assert log == ["inner"]
        assert current_bag() is outer
    assert log == ["inner", "outer"]
    with pytest.raises(ConfigError):
        current_bag()


async def test_a_coroutine_that_is_closed_releases_too() -> None:
    log: list[object] = []

    async def request() -> None:
        async with ResourceBag() as bag:
            bag.add(Thing(log, 1, 3))
            bag.add(Thing(log, 2, 3))
            await asyncio.sleep(3600)

    coroutine = request()
    coroutine.send(None)
    coroutine.close()
    while len(log) < 2:
        await asyncio.sleep(0)
    assert log == [2, 1]


def test_without_a_loop_what_can_be_released_is_and_the_rest_fails() -> None:
    log: list[object] = []

    async def later(thing: object) -> None:
        log.append(thing)

    async def request() -> None:
        async with ResourceBag() as bag:
            bag.add(1, log.append)
            bag.add(Thing(log, 2))
            await Forever()

    class Forever:
        def __await__(self) -> Iterator[None]:
            yield

    with ResourceBag() as bag:
        bag.add(1, log.append)
        bag.add(2, later)
        bag.add(Thing(log, 3))
        assert current_bag() is bag
    assert log == [("close", 3), 1]
    assert len(bag.failures) == 1
    log.clear()
    coroutine = request()
    coroutine.send(None)
    coroutine.close()
    assert log == [("close", 2), 1]


def test_threads_may_fill_a_bag_that_is_being_closed() -> None:
    """Each thing is released once, whether it came before, during or after."""
    released: list[int] = []
    refused: list[int] = []

    def fill(add: Callable[..., object], start: threading.Barrier, numbers: range) -> None:
        start.wait()
        for number in numbers:
            try:
                add(number, released.append)
            except BagClosed:
                refused.append(number)

    for _ in range(20):
        released.clear()
        refused.clear()
        bag = ResourceBag()
        start = threading.Barrier(4)
        threads = [
            threading.Thread(target=fill, args=(bag.add, start, range(n * 500, n * 500 + 500)))
            for n in range(3)
        ]
        for thread in threads:
            thread.start()
        start.wait()
        asyncio.run(bag.aclose())
        for thread in threads:
            thread.join()
        assert sorted(released) == list(range(1500))
        assert bag.closed


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_a_time_that_cannot_be_meant_is_refused(timeout_s: float) -> None:
    with pytest.raises(ConfigError):
        Bags(timeout_s)
