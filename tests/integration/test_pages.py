"""The page pool: whose a buffer is, who waits, and what is left of a request in it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator

import anyio
import pytest
from helpers import PAGE, rss_bytes, run_cleanly
from helpers.waiting import turns, until

import sandhost
from sandhost import PagePool

MEMORY = b'(module (memory (export "memory") 2))'


@pytest.fixture
def pool() -> Iterator[PagePool]:
    with PagePool("8 KiB", 2) as pool:
        yield pool


def emptied(pool: PagePool) -> list[sandhost.Buffer]:
    """Acquire all there are."""
    return [pool.acquire() for _ in range(pool.count)]


# ---- whose a buffer is ----


def test_a_buffer_is_clean_and_writable_and_comes_back(pool: PagePool) -> None:
    for _ in range(5):
        with pool.acquire() as buffer:
            assert buffer.size == 8192
            with buffer.view() as view:
                assert bytes(view) == bytes(8192)
                view[:] = b"x" * 8192
        assert buffer.released
    stats = pool.stats()
    assert (stats.in_use, stats.free, stats.peak, stats.acquired) == (0, 2, 1, 5)


def test_a_size_is_rounded_up_to_os_pages() -> None:
    with PagePool(1, 3) as pool:
        assert pool.buffer_bytes == PAGE
        assert pool.stats().buffer_bytes == PAGE


def test_poison_shows_what_was_never_written() -> None:
    with PagePool("4 KiB", 1, clean="poison") as pool:
        for _ in range(3):
            with pool.acquire() as buffer:
                assert bytes(buffer.view()) == b"\xdb" * 4096
                buffer.view(10, 5)[:] = b"hello"
            pool.trim()


def test_a_second_release_is_refused(pool: PagePool) -> None:
    buffer = pool.acquire()
    pool.release(buffer)
    with pytest.raises(sandhost.InvalidBuffer, match="was released"):
        pool.release(buffer)
    others = emptied(pool)  # one of them is the same memory
    with pytest.raises(sandhost.InvalidBuffer, match="was released"):
        pool.release(buffer)
    assert pool.stats().in_use == 2
    for other in others:
        pool.release(other)


def test_a_released_buffer_cannot_be_used(pool: PagePool) -> None:
    buffer = pool.acquire()
    pool.release(buffer)
    with pytest.raises(sandhost.InvalidBuffer, match="was released"):
        buffer.view()


def test_another_pools_buffer_is_refused(pool: PagePool) -> None:
    with PagePool("8 KiB", 2) as other, other.acquire() as foreign:
        with pytest.raises(sandhost.InvalidBuffer, match="another pool"):
            pool.release(foreign)
        assert not foreign.released


def test_a_release_under_a_view_is_refused(pool: PagePool) -> None:
    buffer = pool.acquire()
    view = buffer.view()
    part = view[10:20]
    with pytest.raises(sandhost.BufferBusy):
        pool.release(buffer)
    view.release()
    with pytest.raises(BufferError):
        pool.release(buffer)
    part[:] = b"still mine"
    part.release()
    pool.release(buffer)


def test_an_array_over_a_view_holds_the_buffer(pool: PagePool) -> None:
    numpy = pytest.importorskip("numpy")
    buffer = pool.acquire()
    array = numpy.frombuffer(buffer.view(), dtype="u4")
    with pytest.raises(sandhost.BufferBusy):
        pool.release(buffer)
    array[:] = 7
    del array
    pool.release(buffer)


def test_a_view_lies_within_the_buffer(pool: PagePool) -> None:
    with pool.acquire() as buffer:
        assert len(buffer.view(8192)) == 0
        assert len(buffer.view(100, 50)) == 50
        for start, length in ((0, 8193), (8193, None), (-1, 2), (0, -1), (2**64, 1)):
            with pytest.raises(sandhost.ConfigError):
                buffer.view(start, length)


def test_an_error_goes_past_the_views_that_its_traceback_holds(pool: PagePool) -> None:
    def fail() -> None:
        with pool.acquire() as buffer:
            view = buffer.view()
            view[0] = 1
            raise KeyError("the error that counts")

    with pytest.raises(KeyError, match="the error that counts") as caught:
        fail()
    assert pool.stats().in_use == 1  # the traceback holds the view, and so the buffer
    del caught
    gc.collect()
    assert pool.stats().in_use == 0


def test_a_block_that_leaves_a_view_is_told(pool: PagePool) -> None:
    with pytest.raises(sandhost.BufferBusy):
        with pool.acquire() as buffer:
            view = buffer.view()
    view.release()
    pool.release(buffer)


def test_a_lost_buffer_warns_and_comes_back(pool: PagePool) -> None:
    with pytest.warns(ResourceWarning, match="never released"):
        pool.acquire()
        gc.collect()
    assert pool.stats().in_use == 0


# ---- back-pressure ----


def test_an_empty_pool_gives_none_or_waits_or_times_out(pool: PagePool) -> None:
    buffers = emptied(pool)
    assert pool.try_acquire() is None
    with pytest.raises(sandhost.PoolEmpty, match="all 2 are in use"):
        pool.acquire(timeout=0.01)
    with pytest.raises(TimeoutError):
        pool.acquire(timeout=0)
    assert pool.stats()._replace(resident_bytes=0) == (2, 8192, 2, 0, 2, 0, 2, 2, 3, 0)
    pool.release(buffers[0])
    again = pool.try_acquire()
    assert again is not None
    for buffer in (again, buffers[1]):
        pool.release(buffer)


def test_who_waits_gets_what_comes_back_in_order(pool: PagePool) -> None:
    buffers = emptied(pool)
    order: list[int] = []

    def wait(number: int) -> None:
        with pool.acquire():
            order.append(number)
            time.sleep(0.001)

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while len(pool._line) != number + 1:
            time.sleep(0.001)
    assert pool.try_acquire() is None  # nobody overtakes the line
    pool.release(buffers[0])
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    pool.release(buffers[1])
    assert pool.stats().waits == 5


def test_ctrl_c_ends_a_wait(pool: PagePool) -> None:
    buffers = emptied(pool)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        while not pool._line:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pool.acquire()
    thread.join()
    assert not pool._line
    for buffer in buffers:
        pool.release(buffer)
    assert pool.stats().in_use == 0


def test_many_threads_share_few_buffers_and_see_only_their_own_bytes() -> None:
    wrong: list[object] = []

    def work(mark: int) -> None:
        for turn in range(150):
            with pool.acquire(timeout=60) as buffer, buffer.view() as view:
                if bytes(view) != bytes(len(view)):
                    wrong.append("not clean")
                view[:] = bytes([mark]) * len(view)
                if turn % 10 == 0:
                    time.sleep(0.0001)
                if bytes(view) != bytes([mark]) * len(view):
                    wrong.append("shared")

    with PagePool("4 KiB", 3, idle="1 ms") as pool:
        threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 9)]
        for thread in threads:
            thread.start()
        while any([thread.is_alive() for thread in threads]):
            pool.trim()
            time.sleep(0.001)
        for thread in threads:
            thread.join()
        stats = pool.stats()
        assert stats.in_use == 0
        assert stats.peak <= 3
    assert wrong == []


@pytest.mark.anyio
async def test_tasks_wait_without_keeping_the_loop(pool: PagePool) -> None:
    buffers = emptied(pool)
    got: list[int] = []

    async def wait(number: int) -> None:
        with await pool.acquire_async():
            got.append(number)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(wait, number)
            await until(lambda: len(pool._line) == number + 1)  # noqa: B023
        await turns(10)
        assert got == []
        threading.Thread(target=pool.release, args=(buffers[0],)).start()
    assert got == [0, 1, 2]
    pool.release(buffers[1])


@pytest.mark.anyio
async def test_a_cancelled_wait_loses_no_buffer(pool: PagePool) -> None:
    buffers = emptied(pool)
    with anyio.move_on_after(0.01):
        await pool.acquire_async()
    assert not pool._line
    async with anyio.create_task_group() as group:
        group.start_soon(pool.acquire_async)
        await until(lambda: len(pool._line) == 1)
        pool.release(buffers[0])  # it is given the buffer, and cancelled before it runs
        group.cancel_scope.cancel()
    gc.collect()
    assert pool.stats().in_use == 1
    pool.release(buffers[1])
    assert pool.stats().refused == 2


def test_who_waited_on_a_loop_that_is_gone_loses_no_buffer(pool: PagePool) -> None:
    buffers = emptied(pool)
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(pool.acquire_async())
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert len(pool._line) == 1
    loop.close()
    pool.release(buffers[0])
    assert pool.stats().in_use == 1
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    del waiting, loop
    gc.collect()
    pool.release(buffers[1])


# ---- with guests ----


def test_bytes_go_to_a_guest_and_back_without_a_copy_between(
    pool: PagePool, host: sandhost.Host
) -> None:
    with host.load(MEMORY).spawn() as guest, pool.acquire() as buffer:
        with buffer.view(0, 5) as view:
            view[:] = b"hello"
            guest.memory.write(100, view)
        with buffer.view(1000, 7) as view:
            assert guest.memory.read_into(99, view) == 7
            assert bytes(view) == b"\0hello\0"
        assert guest.memory.read_into(-1 & 0xFFFF, room := bytearray(2)) == 2
        assert room == b"\0\0"
        with pytest.raises(sandhost.OutOfBounds):
            guest.memory.read_into(2 * 65536 - 3, bytearray(4))
        with pytest.raises(TypeError):
            guest.memory.read_into(0, b"cannot be written")  # type: ignore[arg-type]


# ---- pages, and the end ----


def test_a_trim_gives_pages_back(pool: PagePool) -> None:
    with PagePool("4 MiB", 4) as large:
        with large.acquire() as buffer:
            buffer.view()[:] = b"x" * buffer.size
        before = rss_bytes()
        assert large.stats().resident_bytes == 4 << 20
        assert large.trim() == 4 << 20
        assert before - rss_bytes() > 3 << 20
        assert large.stats().resident_bytes == 0
        assert large.stats().trimmed_bytes == 4 << 20


def test_only_what_was_viewed_is_touched() -> None:
    with PagePool("4 MiB", 1) as pool:
        with pool.acquire() as buffer:
            buffer.view(0, 10)[:] = b"0123456789"
        assert pool.stats().resident_bytes == PAGE


def test_an_idle_pool_gives_its_pages_back() -> None:
    with PagePool("64 KiB", 2, idle="5 ms") as pool:
        with pool.acquire() as buffer:
            buffer.view()[0] = 1
        while pool.stats().resident_bytes:
            time.sleep(0.001)
        assert pool.stats().trimmed_bytes == 65536


def test_a_pool_closes_when_nobody_has_a_buffer(pool: PagePool) -> None:
    buffer = pool.acquire()
    with pytest.raises(sandhost.BufferBusy, match="1 buffers are in use"):
        pool.close()
    pool.release(buffer)
    pool.close()
    pool.close()
    with pytest.raises(sandhost.PoolClosed):
        pool.acquire()
    with pytest.raises(sandhost.PoolClosed):
        pool.try_acquire()
    with pytest.raises(sandhost.PoolClosed):
        asyncio.run(pool.acquire_async())
    assert pool.trim() == 0
    assert pool.stats().buffers == 0


def test_what_cannot_be_meant_is_refused() -> None:
    for wrong in (
        {"size": 0},
        {"count": 0},
        {"count": 2**20 + 1},
        {"count": 1.5},
        {"size": "16 TiB", "count": 2},
        {"clean": "no"},
        {"idle": -1},
    ):
        with pytest.raises(sandhost.ConfigError):
            PagePool(**wrong)  # type: ignore[arg-type]


def test_a_forked_child_has_no_buffers_and_can_make_a_pool(pool: PagePool) -> None:
    buffer = pool.acquire()
    view = buffer.view()
    view[:5] = b"mine!"
    child = os.fork()
    if child == 0:
        try:
            assert bytes(view[:5]) == bytes(5)
            for use in (pool.acquire, pool.try_acquire, buffer.view, lambda: pool.release(buffer)):
                with pytest.raises(sandhost.SandhostError, match="forked"):
                    use()
            pool.close()
            with PagePool("4 KiB", 1) as own, own.acquire() as mine:
                mine.view()[0] = 1
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(view[:5]) == b"mine!"
    view.release()
    pool.release(buffer)


def test_an_interpreter_ends_quietly_whatever_is_left() -> None:
    code = """
import sandhost, threading
pool = sandhost.PagePool("4 KiB", 2)
buffer = pool.acquire()
view = buffer.view()
held = [view, buffer, pool]
held.append(held)
lost = sandhost.PagePool("4 KiB", 1)
lent = lost.acquire()
threading.Thread(target=lost.acquire, daemon=True).start()
"""
    assert run_cleanly(code) == ""


def test_the_pool_is_not_imported_before_it_is_named() -> None:
    code = "import sys, sandhost; assert 'sandhost.pages' not in sys.modules; sandhost.PagePool"
    run_cleanly(code)
