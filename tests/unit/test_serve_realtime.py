"""A priority before all other programs, for a thread that sleeps often enough."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from sandhost.serve.realtime import PRIORITY, Realtime, may_be_realtime

_T = TypeVar("_T")


def _on_a_thread(work: Callable[[], _T]) -> _T:
    """Return what it returns, done on a thread whose policy nobody else has."""
    out: list[_T] = []
    thread = threading.Thread(target=lambda: out.append(work()))
    thread.start()
    thread.join()
    return out[0]


def test_who_is_busy_gets_back_in_line_until_there_is_time_again() -> None:
    time = {"now": 100.0, "worked": 5.0}
    told: list[bool] = []
    realtime = Realtime(lambda: time["now"], lambda: time["worked"], told.append)
    found = []
    for busy in (0.3, 0.85, 0.89, 0.95, 1.0, 0.85, 0.81, 0.7, 0.85):
        time["now"] += 0.1
        time["worked"] += 0.1 * busy
        realtime.look()
        found.append(told[-1])
    assert found == [True, True, True, False, False, False, False, True, True]
    assert told == [True, False, True], "told only what changes"


def test_no_time_between_two_looks_is_no_error() -> None:
    told: list[bool] = []
    realtime = Realtime(lambda: 100.0, lambda: 5.0, told.append)
    realtime.look()
    assert told == [True]


def test_it_ends_as_it_was() -> None:
    told: list[bool] = []

    async def run() -> None:
        realtime = Realtime(worked=lambda: 5.0, go_first=told.append)
        keeping = asyncio.ensure_future(realtime.keep())
        await asyncio.sleep(0.01)
        keeping.cancel()
        await asyncio.wait([keeping])

    asyncio.run(run())
    assert told == [True, False]


def test_a_thread_has_it_and_what_it_starts_does_not() -> None:
    def policies() -> tuple[bool, list[int]]:
        may, found = may_be_realtime(), []
        if may:
            told = iter([100.0, 100.1, 100.2, 100.3])
            worked = iter([0.0, 0.0, 0.1, 0.2])
            realtime = Realtime(lambda: next(told), lambda: next(worked))
            for _ in range(2):
                realtime.look()
                found += [os.sched_getscheduler(0), _on_a_thread(lambda: os.sched_getscheduler(0))]
        return may, [policy & ~os.SCHED_RESET_ON_FORK for policy in found]

    may, found = _on_a_thread(policies)
    if not may:
        pytest.skip("this process may not have a real-time priority")
    assert found == [os.SCHED_FIFO, os.SCHED_OTHER, os.SCHED_OTHER, os.SCHED_OTHER]


@pytest.mark.parametrize("why", ["refused", "one processor"])
def test_where_it_cannot_be_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    def refuse(*_given: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if why == "refused":
        monkeypatch.setattr(os, "sched_setscheduler", refuse)
    processors = {0} if why == "one processor" else {0, 1}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: processors)
    with caplog.at_level(logging.WARNING, "sandhost.serve"):
        assert not may_be_realtime()
    (record,) = caplog.records
    expected = "RLIMIT_RTPRIO of 2" if why == "refused" else "one processor"
    assert expected in record.getMessage()


def test_its_priority_is_the_least() -> None:
    assert os.sched_get_priority_min(os.SCHED_FIFO) == PRIORITY
