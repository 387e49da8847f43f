"""Answers as they come, and what they mean: what was asked for, or a problem."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

from ..protocol.problems import DeadlinePassed, Problem, TooMany, Unavailable, kind_of
from .errors import BadAnswer

__all__ = ["Gathering", "Reply", "octets", "of_object", "problem_in"]

_T = TypeVar("_T")
_PROBLEM = "application/problem+json"
_LONGEST_HINT_S = 1e6
_OF_PROXIES = {429: TooMany, 502: Unavailable, 503: Unavailable, 504: DeadlinePassed}
"""What those between us and the service say in its place, in words of their own."""


class Reply(NamedTuple):
    """One answer."""

    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes
    rest: Any = None
    """What gives the body, where it is to be read piece by piece."""

    @property
    def media_type(self) -> str:
        """What the body is."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Gathering:
    """A body while it comes, no more of it than is taken."""

    def __init__(self, headers: Mapping[str, str], most: int) -> None:
        # Nothing is asked for but bytes as they are: nobody can send little that becomes much.
        coding = headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            raise BadAnswer(f"the answer is compressed ({coding:.40}), which was not asked for")
        self._pieces: list[bytes] = []
        self._size, self._most = 0, most

    def add(self, piece: bytes) -> None:
        """Take the next piece."""
        self._size += len(piece)
        if self._size > self._most:
            raise BadAnswer(f"the answer has more than {self._most:,} bytes; see answer_limit")
        self._pieces.append(piece)

    def body(self) -> bytes:
        """Return all of it."""
        return b"".join(self._pieces)


def octets(reply: Reply) -> bytes:
    """Return the body as it is."""
    return reply.body


def of_object(read: Callable[[dict[str, Any]], _T]) -> Callable[[Reply], _T]:
    """Return a function that reads an answer which is an object of JSON."""

    def read_reply(reply: Reply) -> _T:
        try:
            record = json.loads(reply.body)
            if not isinstance(record, dict):
                raise TypeError("it is no object")
            return read(record)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadAnswer(
                f"what answered is no service of sandhost's, or one of another release: "
                f"{type(error).__name__}: {error}"
            ) from error

    return read_reply


def problem_in(reply: Reply) -> Problem | BadAnswer:
    """Return what an answer complains about."""
    record: Any = None
    if reply.media_type == _PROBLEM:
        try:
            record = json.loads(reply.body)
        except (ValueError, RecursionError):
            pass
    if isinstance(record, dict):
        return _problem(reply, record)
    if reply.status in _OF_PROXIES:
        said = f"{reply.status} {_phrase(reply.status)}".strip()
        return _OF_PROXIES[reply.status](
            f"{said}, from what lies before the service", retry_after_s=_hint(reply, None)
        )
    to = reply.headers.get("location")
    more = f", to go to {to!r:.200}" if to else ""
    return BadAnswer(
        f"what answered {reply.status} {_phrase(reply.status)}{more} is no service of sandhost's"
    )


def _problem(reply: Reply, record: dict[str, Any]) -> Problem:
    code, detail = str(record.pop("title", "")), str(record.pop("detail", ""))
    hint_s = _hint(reply, record.pop("retry_after_s", None))
    for known in ("type", "status"):
        record.pop(known, None)
    problem = kind_of(code)(detail, retry_after_s=hint_s, facts=record)
    problem.code = code or problem.code
    try:
        problem.status = HTTPStatus(reply.status)
    except ValueError:
        pass  # a status without a name; the class has one
    return problem


def _hint(reply: Reply, said: object) -> float | None:
    """Return the seconds after which to come again: to the fraction, where the body has them."""
    if isinstance(said, bool) or not isinstance(said, (int, float)):
        text = reply.headers.get("retry-after", "")
        if not text.isascii() or not text.isdigit() or len(text) > 9:
            return None  # a date: clocks differ, and this service writes none
        said = int(text)
    return said if 0 <= said <= _LONGEST_HINT_S else None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
