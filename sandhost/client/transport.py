"""What both faces tell httpx, and what they make of its errors."""

from __future__ import annotations

import os
from typing import Any

import httpx

from ..protocol.problems import DeadlinePassed
from .attempts import Send
from .errors import Unreachable
from .settings import Settings

__all__ = [
    "bound_s",
    "failure",
    "headers_of",
    "may_be_sent",
    "passed",
    "pool",
    "request",
]

_GRACE_S = 0.25
"""For the service's own word that the time is over, which says more than silence. Arbitrary."""
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
_CONNECTIONS = 100
_IDLE_S = 3.0
"""Connections that rest longer are closed by us: a service that has many does so after 5 s, maybe as we send."""


def pool(settings: Settings) -> dict[str, Any]:
    """Return how a client of httpx is made."""
    return {
        "base_url": settings.url,
        # Nothing follows a redirect, so an address without TLS stays without, and needs no certificates.
        "verify": settings.tls or settings.url.startswith("https:"),
        "follow_redirects": False,
        "headers": {"User-Agent": "sandhost"},
        "limits": httpx.Limits(
            max_connections=_CONNECTIONS,
            max_keepalive_connections=_CONNECTIONS,
            keepalive_expiry=_IDLE_S,
        ),
    }


def headers_of(settings: Settings, send: Send) -> dict[str, str]:
    """Return a request's headers, with the token: for the connection, and nobody else."""
    ask = send.ask
    headers = {"Accept-Encoding": "identity", **ask.headers}
    if settings.token is not None:
        headers["Authorization"] = f"Bearer {settings.token.reveal()}"
    if send.left_s is not None:
        headers["Sandhost-Deadline"] = f"{max(0.0, send.left_s):.6f}"
    size = None if ask.body is None else ask.body.size()
    if size is not None:
        headers["Content-Length"] = str(size)
    return headers


def request(settings: Settings, send: Send) -> dict[str, Any]:
    """Return a request for httpx, without its body."""
    ask = send.ask
    bound = bound_s(send)
    silence_s = settings.timeout_s + ask.rests_s if bound is None else bound
    return {
        "method": ask.method,
        "url": ask.path,
        "params": ask.query,
        "headers": headers_of(settings, send),
        "timeout": httpx.Timeout(silence_s, connect=min(silence_s, settings.timeout_s)),
    }


def bound_s(send: Send) -> float | None:
    """Return the seconds that we wait for an answer; None: as long as something comes."""
    return None if send.left_s is None else max(0.0, send.left_s) + _GRACE_S


def passed(send: Send) -> DeadlinePassed:
    """Return the error for an answer that did not come in time."""
    return DeadlinePassed(f"no answer came within {send.ask.deadline_s:g} s")


def failure(
    settings: Settings, send: Send, error: Exception, *, sent: bool
) -> DeadlinePassed | Unreachable:
    """Return what it means that a request got no answer.

    Args:
        sent: whether the service may have got it.
    """
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        if send.left_s is not None and (sent or send.left_s <= settings.timeout_s):
            return passed(send)
        why = f"it was silent for {settings.timeout_s + send.ask.rests_s:g} s"
    else:
        why = _reason(error)
    if sent:
        return Unreachable(f"the connection to {settings.url} was lost: {why}", sent=True)
    return Unreachable(f"no service can be reached at {settings.url}: {why}", sent=False)


def may_be_sent(error: Exception) -> bool:
    """Tell whether a request may have gone out before this error of httpx's."""
    return not isinstance(error, _UNSENT)


def _reason(error: BaseException) -> str:
    """Return the system's words, if it has any, which lie deep."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            # asyncio writes an address there, and for names there are no numbers of errno's.
            number = inner.errno or 0
            return os.strerror(number) if number > 0 else inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__
