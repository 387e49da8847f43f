"""Responses of HTTP as bytes, for what is answered at the wire."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from .problems import Problem
from .requests import problem_response

__all__ = ["Reply", "refusal", "reply_to"]

_DONE = b"HTTP/1.1 200 OK\r\n"
_JSON = b"content-length: %d\r\ncontent-type: application/json\r\n\r\n%b"
_CLOSES = b"connection: close\r\n"
_HINT_STEP_S = 0.05


class Reply(NamedTuple):
    """The bytes of a response, but for the headers that all have."""

    first: bytes
    """Its first line."""
    rest: bytes
    close: bool = False
    """Whether the connection ends with it."""
    status: int = 200

    def closing(self) -> Reply:
        """Return the same, which ends the connection."""
        return self if self.close else self._replace(rest=_CLOSES + self.rest, close=True)


def reply_to(result: bytes | Problem | None) -> Reply | None:
    """Return the reply that says this: JSON, or what is wrong; None for None."""
    if isinstance(result, bytes):
        return Reply(_DONE, _JSON % (len(result), result))
    if isinstance(result, Problem):
        return refusal(result, close=False)
    return None


def refusal(problem: Problem, *, close: bool) -> Reply:
    """Return the answer to a request that may not come in."""
    if problem.facts:  # of a trap: its own
        return _refusal_of(problem, close=close)
    hint_s = problem.retry_after_s
    if hint_s is not None:  # rounded, so that few answers are ever made
        hint_s = round(math.ceil(hint_s / _HINT_STEP_S) * _HINT_STEP_S, 2)
    # A class can be hashed; mypy looks at its instances.
    return _refusal(type(problem), problem.detail, hint_s, close)  # type: ignore[arg-type]


@lru_cache(maxsize=1024)
def _refusal(kind: type[Problem], detail: str, hint_s: float | None, close: bool) -> Reply:
    return _refusal_of(kind(detail, retry_after_s=hint_s), close=close)


def _refusal_of(problem: Problem, *, close: bool) -> Reply:
    response = problem_response(problem)
    if close:
        response.headers["connection"] = "close"
    first = f"HTTP/1.1 {int(problem.status)} {problem.status.phrase}\r\n".encode()
    lines = b"".join(b"%b: %b\r\n" % pair for pair in response.raw_headers)
    closes = response.headers.get("connection") == "close"
    return Reply(first, lines + b"\r\n" + bytes(response.body), closes, int(problem.status))
