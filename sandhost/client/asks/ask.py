"""One request, how its answer is read, and what requests are made of."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from ...errors import ConfigError
from ..bodies import Content
from ..replies import Reply, of_object

__all__ = ["Ask", "Steps", "deleting", "getting", "json_of", "key_of", "one", "path_of"]

_T = TypeVar("_T")

_LONGEST_S = 1e6
"""That the service takes."""


@dataclass(frozen=True)
class Ask(Generic[_T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[Reply], _T]
    statuses: tuple[int, ...] = (200,)
    """Of answers that `read` can read."""
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Content | None = None
    deadline_s: float | None = None
    harmless: bool = False
    """Whether nothing is done twice if it comes twice: it only reads, or it has a key."""
    rests_s: float = 0.0
    """How long the service may be silent about it, beside what the client allows."""
    open: bool = False
    """Whether the answer's body is left to be read piece by piece."""

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not 0 <= self.deadline_s <= _LONGEST_S:
            raise ConfigError(
                f"deadline_s is 0 to {_LONGEST_S:,.0f} seconds, not {self.deadline_s}"
            )


Steps = Generator[Ask[Any], Any, _T]


def one(ask: Ask[_T]) -> Steps[_T]:
    """Make one request, and return what its answer held."""
    answer: _T = yield ask
    return answer


def path_of(*names: str) -> str:
    """Return the path of what has these names, one below the other; raises `ConfigError`."""
    for name in names:
        if name in ("", ".", ".."):
            raise ConfigError(f"{name!r} is no name of anything")
    return "/v1/" + "/".join(quote(name, safe="") for name in names)


def getting(path: str, read: Callable[[dict[str, Any]], _T], **more: Any) -> Ask[_T]:
    """Return the request that reads a record."""
    return Ask("GET", path, of_object(read), harmless=True, **more)


def json_of(record: Mapping[str, object]) -> Content:
    """Return a record as a body."""
    return Content(json.dumps(record, allow_nan=False).encode())


def _nothing(_reply: Reply) -> None:
    return None


def deleting(path: str) -> Ask[None]:
    """Return the request that removes something."""
    return Ask("DELETE", path, _nothing, (204,))


def key_of(once: bool | str) -> dict[str, str]:
    """Return the header that makes one of what comes twice: with a key of its own, or this one."""
    if once is False:
        return {}
    key = secrets.token_urlsafe(24) if once is True else once
    if not key.isascii() or not key.isprintable() or not 0 < len(key) <= 200 or key != key.strip():
        raise ConfigError("a key has 1 to 200 printable characters of ASCII")
    return {"Idempotency-Key": key}
