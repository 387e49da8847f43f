"""How often a request is sent, and when: decided here, without sending anything.

    run(steps) yields   Send(ask, left_s)   and is given the reply, or is thrown why there is none
                        Pause(seconds)      and is given nothing

An error that says that nothing was done (no connection, 429, 503) may be followed by another attempt; one that
leaves it open only if the request does no harm when it comes twice. And only as long as the body can be sent again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from ..protocol.problems import DeadlinePassed, Problem, TooMany, Unavailable
from .asks.ask import Ask, Steps
from .errors import Unreachable
from .replies import Reply, problem_in
from .settings import Retry

__all__ = ["Flow", "Pause", "Send", "run"]

_T = TypeVar("_T")


class Send(NamedTuple):
    """Send a request now."""

    ask: Ask[Any]
    left_s: float | None
    """Of the time that the caller gives it; None: no end."""


class Pause(NamedTuple):
    """Wait."""

    seconds: float


Flow = Generator[Send | Pause, Any, _T]


def run(
    steps: Steps[_T],
    retry: Retry | None,
    *,
    now: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = random.random,
) -> Flow[_T]:
    """Make the requests of an operation, one after another; return what it returns.

    Raises:
        Problem, Unreachable, BadAnswer: what the last attempt came to.
    """
    try:
        ask = next(steps)
        while True:
            ask = steps.send((yield from _answered(ask, retry, now, chance)))
    except StopIteration as stop:
        result: _T = stop.value
        return result
    finally:
        steps.close()


def _answered(
    ask: Ask[_T], retry: Retry | None, now: Callable[[], float], chance: Callable[[], float]
) -> Flow[_T]:
    begun_s, failed = now(), 0
    while True:
        left_s = None if ask.deadline_s is None else begun_s + ask.deadline_s - now()
        try:
            return ask.read(_wanted(ask, (yield Send(ask, left_s))))
        except (Problem, Unreachable) as error:
            failed += 1
            if retry is None or failed >= retry.attempts or not _may_again(ask, error):
                raise
            hint_s = error.retry_after_s if isinstance(error, Problem) else None
            pause_s = retry.pause_s(failed, hint_s, chance())
            within_s = retry.within_s
            if ask.deadline_s is not None:
                within_s = min(within_s, ask.deadline_s)
            if now() + pause_s > begun_s + within_s:
                raise
        yield Pause(pause_s)


def _wanted(ask: Ask[Any], reply: Reply) -> Reply:
    if reply.status in ask.statuses:
        return reply
    raise problem_in(reply)


def _may_again(ask: Ask[Any], error: Problem | Unreachable) -> bool:
    if ask.body is not None and not ask.body.again:
        return False
    if isinstance(error, Unreachable):
        return ask.harmless or not error.sent
    # What the service refuses it has not done. A deadline that has passed is over for every attempt.
    return isinstance(error, (TooMany, Unavailable)) and not isinstance(error, DeadlinePassed)
