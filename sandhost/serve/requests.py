"""What requests over HTTP are read with, and how problems are answered: shared by all routes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..limits import Limits
from .problems import Invalid, Problem, TooLarge
from .records import VersionSettings
from .time_limit import TimeLimit

__all__ = [
    "Endpoint",
    "arguments_of",
    "bearer",
    "body",
    "bounded",
    "chunks",
    "header",
    "number",
    "peer_of",
    "problem_response",
    "route",
    "seconds",
    "token_of",
    "version_settings",
]

_HEADERS = "sandhost.headers"
"""In a request's scope: its headers by their names."""

Endpoint = Callable[[Request], Awaitable[Response]]

_REST_S = 30.0
"""Longest time between two pieces of a body. Arbitrary."""
_BODY_S = 120.0
"""Longest time for one that is not a module."""


def route(method: str, path: str, endpoint: Endpoint) -> Route:
    """Return a route for one method."""
    return Route(path, endpoint, methods=[method])


def problem_response(problem: Problem) -> Response:
    """Return a problem as RFC 9457 has it."""
    headers = {"Content-Type": "application/problem+json"}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s)))
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if problem.status == 503:
        headers["Connection"] = "close"  # that no request comes by it when the process ends
    body = {
        "type": f"urn:sandhost:{problem.code}",
        "title": problem.code,
        "status": int(problem.status),
        "detail": problem.detail,
        **problem.facts,
    }
    if problem.retry_after_s is not None:
        body["retry_after_s"] = problem.retry_after_s
    return Response(json.dumps(body), problem.status, headers)


def header(request: Request, name: bytes) -> str | None:
    """Return a header by its name in small letters, the first of several; None when there is none."""
    found: dict[bytes, bytes] | None = request.scope.get(_HEADERS)
    if found is None:
        found = request.scope[_HEADERS] = dict(reversed(request.scope["headers"]))
    value = found.get(name)
    return None if value is None else value.decode("latin-1")


def token_of(request: Request) -> str | None:
    """Return the bearer token; None when there is none."""
    return bearer(header(request, b"authorization") or "")


def bearer(authorization: str) -> str | None:
    """Return the token in a header's value; None when there is none."""
    kind, _, token = authorization.partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def peer_of(request: Request) -> str:
    """Return the client's address; empty when there is none."""
    client = request.scope.get("client")
    return client[0][:64] if client else ""


async def _piece(request: Request, rest_s: float | None) -> tuple[bytes, bool]:
    """Return the next piece of the body, which may be empty, and whether others follow."""
    try:
        with TimeLimit(rest_s):
            message = await request.receive()
    except TimeoutError:
        raise Invalid(f"nothing came of the request's body for {rest_s} s") from None
    if message["type"] == "http.disconnect":
        raise Invalid("the request ended before its body did")
    return message.get("body", b""), message.get("more_body", False)


async def chunks(request: Request, rest_s: float | None = _REST_S) -> AsyncIterator[bytes]:
    """Yield the body as it comes.

    Args:
        rest_s: the longest time between two pieces of it; None: as long as it takes.
    """
    more = True
    while more:
        piece, more = await _piece(request, rest_s)
        if piece:
            yield piece


def _check_announced(request: Request, most: int) -> None:
    length = header(request, b"content-length") or ""
    if length.isdigit() and (len(length) > 18 or int(length) > most):
        raise _too_large(most)


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"a body has at most {most:,} bytes here", facts={"limit": most})


async def bounded(request: Request, most: int) -> AsyncIterator[bytes]:
    """Yield the body as it comes, when it has `most` bytes or less, and comes in time."""
    _check_announced(request, most)
    size, until_s, more = 0, time.monotonic() + _BODY_S, True
    while more:
        piece, more = await _piece(request, _REST_S)
        size += len(piece)
        if size > most:
            raise _too_large(most)
        if time.monotonic() > until_s:
            raise Invalid(f"the request's body took more than {_BODY_S:g} s")
        yield piece


async def body(request: Request, most: int) -> bytes:
    """Return the body, when it has `most` bytes or less."""
    return b"".join([piece async for piece in bounded(request, most)])


def _no_number(word: str) -> NoReturn:
    raise ValueError(word)


_decode = json.JSONDecoder(parse_constant=_no_number).decode


def _json_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is; an empty one is {}."""
    try:
        value = _decode(text.decode()) if text else {}
    except (ValueError, RecursionError):
        raise Invalid("the body is no JSON") from None
    if not isinstance(value, dict):
        raise Invalid("the body is a JSON object")
    return value


def arguments_of(text: bytes) -> object:
    """Return what a call's body gives as its arguments."""
    record = _json_object(text)
    arguments = record.pop("arguments", [])
    _nothing_else(record)
    return arguments


def _nothing_else(record: dict[str, Any]) -> None:
    """Refuse what is left in an object of which all fields that are known were taken."""
    for name in record:
        raise Invalid(f"there is no field {name[:40]!r}")


def seconds(text: str | None, what: str) -> float | None:
    """Return a number of seconds; None for None."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e6:
        raise Invalid(f"{what} is a number of seconds, not {text[:40]!r}")
    return value


def number(text: str, what: str) -> int:
    """Return a whole number, 0 or more."""
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise Invalid(f"{what} is a number, not {text[:40]!r}")
    return int(text)


def version_settings(query: list[tuple[str, str]], default: Limits) -> VersionSettings:
    """Return what an upload's query asks for.

    Args:
        query: `memory=16 MiB`, `deadline=2 s`, `fuel=1000000`, `warm=FUNCTION`, and any number of
            `argv=WORD` and `env=NAME=VALUE`.
        default: what holds where nothing is asked for.
    """
    limits: dict[str, Any] = {}
    argv, env, warm = [], {}, None
    for name, value in query:
        if name in ("memory", "deadline"):
            limits[name] = value
        elif name in ("fuel", "table_elements"):
            limits[name] = number(value, name)
        elif name == "warm":
            warm = value
        elif name == "argv":
            argv.append(value)
        elif name == "env":
            key, equals, env[key] = value.partition("=")
            if not key or not equals:
                raise Invalid(f"env is NAME=VALUE, not {value[:40]!r}")
        else:
            raise Invalid(f"a version has no setting {name[:40]!r}")
    return VersionSettings.wanted(default, limits, argv, env, warm)
