"""Everything that can be asked for: one function each, which sends nothing.

Each is a generator of requests (`Ask`): it is given what an answer held, and returns what the caller wants.
Most make one request. Both faces of the client run them, and their documentation is that of the methods.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

from ..errors import ConfigError
from ..protocol.problems import BadPlugin, DeadlinePassed
from ..protocol.values import Value, in_json, of_json
from ..quotas import Quotas
from .bodies import Body, Content
from .records import (
    Alias,
    AuditEntry,
    Health,
    NewToken,
    Plugin,
    Progress,
    Tenant,
    Token,
    Version,
    each,
)
from .replies import Reply, octets, of_object

__all__ = ["Ask", "Ref", "Scope", "Steps"]

_T = TypeVar("_T")

Ref = int | str | None
"""Which version: its number, an alias; None: the newest that is ready."""
Scope = Literal["deploy", "invoke", "admin"]

_LOOK_S = 20.0
"""How long one request waits for a version to be ready. The service takes up to 60 s."""


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


def _one(ask: Ask[_T]) -> Steps[_T]:
    answer: _T = yield ask
    return answer


def _path(*names: str) -> str:
    for name in names:
        if name in ("", ".", ".."):
            raise ConfigError(f"{name!r} is no name of anything")
    return "/v1/" + "/".join(quote(name, safe="") for name in names)


def _get(path: str, read: Callable[[dict[str, Any]], _T], **more: Any) -> Ask[_T]:
    return Ask("GET", path, of_object(read), harmless=True, **more)


def _json(record: Mapping[str, object]) -> Content:
    return Content(json.dumps(record, allow_nan=False).encode())


def _nothing(_reply: Reply) -> None:
    return None


def _deleting(path: str) -> Ask[None]:
    return Ask("DELETE", path, _nothing, (204,))


# ---- plugins ----


def plugins() -> Steps[tuple[Plugin, ...]]:
    """Return the tenant's plugins."""
    return _one(_get(_path("plugins"), each("plugins", Plugin.read)))


def plugin(plugin: str) -> Steps[Plugin]:
    """Return one plugin: its versions and aliases."""
    return _one(_get(_path("plugins", plugin), Plugin.read))


def version(plugin: str, number: int, *, wait_s: float = 0.0) -> Steps[Version]:
    """Return how far a version is.

    Args:
        wait_s: how long to wait until it is ready or has failed; 0: not at all.
    """
    until_s = time.monotonic() + wait_s
    while True:
        look_s = max(0.0, min(_LOOK_S, until_s - time.monotonic()))
        path = _path("plugins", plugin, "versions", str(number))
        query = (("wait", f"{look_s:.3f}"),) if look_s else ()
        found = yield from _one(_get(path, Version.read, query=query, rests_s=look_s))
        if found.state != "compiling" or time.monotonic() >= until_s:
            return found


def upload(
    plugin: str,
    module: Body | str,
    *,
    memory: int | str | None = None,
    deadline: float | str | None = None,
    fuel: int | None = None,
    table_elements: int | None = None,
    warm: str | None = None,
    argv: Iterable[str] = (),
    env: Mapping[str, str] | None = None,
    wait: bool = True,
    deadline_s: float | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Steps[Version]:
    """Make a module the plugin's next version, and return it, by default as soon as it is ready.

    Args:
        module: a path, bytes, or pieces of bytes. It may be sent again if the connection is lost, with a key
            that keeps it from becoming two versions, unless it comes in pieces.
        memory: bytes (or "16 MiB") that a guest may have; this and the following limits: None is the service's own.
        deadline: seconds (or "250 ms") that a call may take.
        fuel: instructions, roughly, that a call may execute.
        table_elements: elements that each table may have.
        warm: a function that prepares a guest; calls then start from its snapshot.
        argv: arguments that commands get before those of a run.
        env: the environment of commands.
        wait: whether to wait until it is ready, for which the token needs the scope "invoke" too.
        deadline_s: how long all of it may take.
        progress: is told how far it is.

    Raises:
        BadPlugin: the service cannot load it; only when it waits.
    """
    until_s = None if deadline_s is None else time.monotonic() + deadline_s
    settings = {
        "memory": memory,
        "deadline": deadline,
        "fuel": fuel,
        "table_elements": table_elements,
        "warm": warm,
    }
    query = [(name, str(value)) for name, value in settings.items() if value is not None]
    query += [("argv", word) for word in argv]
    query += [("env", f"{name}={value}") for name, value in (env or {}).items()]

    def tell(state: Literal["sending", "compiling", "ready"], sent: int) -> None:
        if progress is not None:
            progress(Progress(state, sent, size))

    content = Content(
        Path(module) if isinstance(module, str) else module,
        None if progress is None else lambda sent: tell("sending", sent),
    )
    size = content.size()
    tell("sending", 0)
    made = yield from _one(
        Ask(
            "PUT",
            _path("plugins", plugin),
            of_object(Version.read),
            (202,),
            tuple(query),
            _key(True),
            content,
            deadline_s,
            harmless=True,
        )
    )
    if not wait:
        return made
    while made.state == "compiling":
        tell("compiling", made.size)
        left_s = _LOOK_S if until_s is None else until_s - time.monotonic()
        if left_s <= 0:
            raise DeadlinePassed(f"version {made.number} was not ready within {deadline_s:g} s")
        made = yield from version(plugin, made.number, wait_s=min(left_s, _LOOK_S))
    if made.state == "failed":
        raise BadPlugin(made.error or "it cannot be loaded", facts={"version": made.number})
    tell("ready", made.size)
    return made


def remove_version(plugin: str, number: int) -> Steps[None]:
    """Remove a version that no alias names."""
    return _one(_deleting(_path("plugins", plugin, "versions", str(number))))


def set_alias(plugin: str, alias: str, version: int) -> Steps[Alias]:
    """Let an alias, new or not, mean this version: requests that come from now on see it."""
    path = _path("plugins", plugin, "aliases", alias)
    return _one(Ask("PUT", path, of_object(Alias.read), body=_json({"version": version})))


def roll_back(plugin: str, alias: str) -> Steps[Alias]:
    """Let an alias mean again what it meant before."""
    path = _path("plugins", plugin, "aliases", alias, "rollback")
    return _one(Ask("POST", path, of_object(Alias.read)))


def remove_alias(plugin: str, alias: str) -> Steps[None]:
    """Let an alias mean nothing any more."""
    return _one(_deleting(_path("plugins", plugin, "aliases", alias)))


# ---- invoking ----


def call(
    plugin: str,
    function: str,
    *arguments: Value,
    ref: Ref = None,
    deadline_s: float | None = None,
    once: bool | str = False,
) -> Steps[Any]:
    """Call a function in a fresh guest, and return what `Guest.call` would: a value, a tuple of them, or None.

    Args:
        arguments: numbers, and 16 bytes for a vector.
        ref: which version; see `Ref`.
        deadline_s: how long it may take, there and here.
        once: send a key with it, which costs the service a write to its disk: then it may be sent again
            when the connection is lost, and is done once. A text is the key, for a caller that may come again itself.

    Raises:
        GuestFailed: the plugin trapped, exited or reached a limit; `facts` says which.
        Problem: what else can be wrong; see `sandhost.client`.
    """
    return _one(_call(plugin, function, arguments, ref, deadline_s, once))


def _call(
    plugin: str,
    function: str,
    arguments: tuple[Value, ...],
    ref: Ref,
    deadline_s: float | None,
    once: bool | str,
) -> Ask[Any]:
    return Ask(
        "POST",
        _path("plugins", plugin, "call", function),
        of_object(_results),
        query=_ref(ref),
        headers=_key(once),
        body=_json({"arguments": [_argument(value) for value in arguments]}),
        deadline_s=deadline_s,
        harmless=once is not False,
    )


def _argument(value: Value) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float, bytes)):
        raise ConfigError(f"{value!r:.40} is no value of wasm: give numbers, and bytes for a v128")
    if isinstance(value, bytes) and len(value) != 16:
        raise ConfigError(f"a v128 has 16 bytes, not {len(value)}")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ConfigError(f"a whole number of {value.bit_length()} bits fits no type of wasm")
    return in_json(value)


def _results(record: dict[str, Any]) -> Any:
    values = tuple(of_json(held) for held in record["results"])
    return values if len(values) > 1 else values[0] if values else None


def _ref(ref: Ref) -> tuple[tuple[str, str], ...]:
    return () if ref is None else (("ref", str(ref)),)


def _key(once: bool | str) -> dict[str, str]:
    if once is False:
        return {}
    key = secrets.token_urlsafe(24) if once is True else once
    if not key.isascii() or not key.isprintable() or not 0 < len(key) <= 200 or key != key.strip():
        raise ConfigError("a key has 1 to 200 printable characters of ASCII")
    return {"Idempotency-Key": key}


def call_bytes(
    plugin: str,
    function: str,
    data: Body = b"",
    *,
    ref: Ref = None,
    deadline_s: float | None = None,
    once: bool | str = False,
) -> Steps[bytes]:
    """Call a function that takes bytes and returns bytes, in a fresh guest.

    Args:
        data: bytes, a path, or pieces of bytes.
        ref, deadline_s, once: as for `call`.
    """
    return _one(_call_bytes(plugin, function, data, ref, deadline_s, once))


def _call_bytes(
    plugin: str,
    function: str,
    data: Body,
    ref: Ref,
    deadline_s: float | None,
    once: bool | str,
) -> Ask[bytes]:
    return Ask(
        "POST",
        _path("plugins", plugin, "bytes", function),
        octets,
        query=_ref(ref),
        headers={"Content-Type": "application/octet-stream", **_key(once)},
        body=Content(data),
        deadline_s=deadline_s,
        harmless=once is not False,
    )


def opened_bytes(
    plugin: str, function: str, data: Body, ref: Ref, deadline_s: float | None, once: bool | str
) -> Steps[Reply]:
    """Call a function that takes and returns bytes; return an answer whose body has to be read."""
    ask = _call_bytes(plugin, function, data, ref, deadline_s, once)
    return _one(_opened(ask))


def opened_command(
    plugin: str, argv: tuple[str, ...], stdin: Body, ref: Ref, deadline_s: float | None
) -> Steps[Reply]:
    """Begin a command; return an answer whose body has to be read."""
    query = (*_ref(ref), *(("argv", word) for word in argv))
    path = _path("plugins", plugin, "run")
    ask = Ask("POST", path, octets, query=query, body=Content(stdin), deadline_s=deadline_s)
    return _one(_opened(ask))


def _opened(ask: Ask[bytes]) -> Ask[Reply]:
    return replace(ask, read=lambda reply: reply, open=True)  # type: ignore[arg-type,return-value]


# ---- sessions ----


def open_session(plugin: str, ref: Ref, deadline_s: float | None) -> Steps[str]:
    """Start a guest that stays; return the session's name."""
    path = _path("plugins", plugin, "sessions")

    def read(record: dict[str, Any]) -> str:
        return str(record["session"])

    return _one(Ask("POST", path, of_object(read), (201,), query=_ref(ref), deadline_s=deadline_s))


def close_session(session: str) -> Steps[None]:
    """End it."""
    return _one(_deleting(_path("sessions", session)))


def session_call(
    plugin: str,
    session: str,
    function: str,
    *arguments: Value,
    deadline_s: float | None = None,
    once: bool | str = False,
) -> Steps[Any]:
    """Call a function of the session's guest; arguments and results as for `Client.call`."""
    return _one(_in(session, _call(plugin, function, arguments, None, deadline_s, once)))


def session_call_bytes(
    plugin: str,
    session: str,
    function: str,
    data: Body = b"",
    *,
    deadline_s: float | None = None,
    once: bool | str = False,
) -> Steps[bytes]:
    """Call a function of the session's guest that takes bytes and returns bytes."""
    return _one(_in(session, _call_bytes(plugin, function, data, None, deadline_s, once)))


def _in(session: str, ask: Ask[_T]) -> Ask[_T]:
    return replace(ask, headers={**ask.headers, "Sandhost-Session": session})


# ---- the operator's ----


def tenants() -> Steps[tuple[Tenant, ...]]:
    """Return all tenants."""
    return _one(_get(_path("admin", "tenants"), each("tenants", Tenant.read)))


def tenant(tenant: str) -> Steps[Tenant]:
    """Return one tenant."""
    return _one(_get(_path("admin", "tenants", tenant), Tenant.read))


def put_tenant(tenant: str, quotas: Quotas | None = None) -> Steps[Tenant]:
    """Add a tenant, or give it these quotas in place of those it had."""
    given = {} if quotas is None else quotas._asdict()
    record = {"quotas": {name: value for name, value in given.items() if value is not None}}
    path = _path("admin", "tenants", tenant)
    return _one(Ask("PUT", path, of_object(Tenant.read), (200, 201), body=_json(record)))


def tokens(tenant: str) -> Steps[tuple[Token, ...]]:
    """Return what is known of a tenant's tokens."""
    return _one(_get(_path("admin", "tenants", tenant, "tokens"), each("tokens", Token.read)))


def add_token(
    tenant: str,
    scopes: Iterable[Scope] = ("deploy", "invoke"),
    *,
    label: str = "",
    expires_in_s: float | None = None,
) -> Steps[NewToken]:
    """Make a token for a tenant. Its text is in the answer, and nowhere else.

    Args:
        scopes: what it is good for.
        label: what it is for, in your words.
        expires_in_s: after how many seconds it is nobody's any more; None: never.
    """
    record: dict[str, object] = {"scopes": list(scopes), "label": label}
    if expires_in_s is not None:
        record["expires_in_s"] = expires_in_s
    path = _path("admin", "tenants", tenant, "tokens")
    return _one(Ask("POST", path, of_object(NewToken.read), (201,), body=_json(record)))


def revoke_token(tenant: str, id: str) -> Steps[None]:  # noqa: A002 - it is called that everywhere
    """Let a token be nobody's from now on."""
    return _one(_deleting(_path("admin", "tenants", tenant, "tokens", id)))


def audit(
    tenant: str | None = None, *, limit: int = 100, before: int | None = None
) -> Steps[tuple[AuditEntry, ...]]:
    """Return who did what, the newest first.

    Args:
        tenant: of whom; None: of all.
        limit: how many at most; the service gives up to 1000.
        before: older ones than the one with this `at_ns`.
    """
    query = [("limit", str(limit))]
    query += [(n, str(v)) for n, v in (("tenant", tenant), ("before", before)) if v is not None]
    return _one(_get(_path("admin", "audit"), each("entries", AuditEntry.read), query=tuple(query)))


# ---- is it there ----


def health() -> Steps[Health]:
    """Return whether the service takes requests. Needs no token."""

    def read(record: dict[str, Any]) -> Health:
        return Health(bool(record["ready"]), str(record["pressure"]))

    return _one(_get("/readyz", read, statuses=(200, 503)))
