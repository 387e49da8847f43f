"""What plugins do: calls, commands and sessions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from ...errors import ConfigError
from ...protocol.values import Value, in_json, of_json
from ..bodies import Body, Content
from ..replies import Reply, octets, of_object
from .ask import Ask, Steps, deleting, json_of, key_of, one, path_of

__all__ = [
    "Ref",
    "call",
    "call_bytes",
    "close_session",
    "open_session",
    "opened_bytes",
    "opened_command",
    "session_call",
    "session_call_bytes",
]

_T = TypeVar("_T")

Ref = int | str | None
"""Which version: its number, an alias; None: the newest that is ready."""


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
    return one(_call(plugin, function, arguments, ref, deadline_s, once))


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
        path_of("plugins", plugin, "call", function),
        of_object(_results),
        query=_ref(ref),
        headers=key_of(once),
        body=json_of({"arguments": [_argument(value) for value in arguments]}),
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
    return one(_call_bytes(plugin, function, data, ref, deadline_s, once))


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
        path_of("plugins", plugin, "bytes", function),
        octets,
        query=_ref(ref),
        headers={"Content-Type": "application/octet-stream", **key_of(once)},
        body=Content(data),
        deadline_s=deadline_s,
        harmless=once is not False,
    )


def opened_bytes(
    plugin: str, function: str, data: Body, ref: Ref, deadline_s: float | None, once: bool | str
) -> Steps[Reply]:
    """Call a function that takes and returns bytes; return an answer whose body has to be read."""
    ask = _call_bytes(plugin, function, data, ref, deadline_s, once)
    return one(_opened(ask))


def opened_command(
    plugin: str, argv: tuple[str, ...], stdin: Body, ref: Ref, deadline_s: float | None
) -> Steps[Reply]:
    """Begin a command; return an answer whose body has to be read."""
    query = (*_ref(ref), *(("argv", word) for word in argv))
    path = path_of("plugins", plugin, "run")
    ask = Ask("POST", path, octets, query=query, body=Content(stdin), deadline_s=deadline_s)
    return one(_opened(ask))


def _opened(ask: Ask[bytes]) -> Ask[Reply]:
    return replace(ask, read=lambda reply: reply, open=True)  # type: ignore[arg-type,return-value]


# ---- sessions ----


def open_session(plugin: str, ref: Ref, deadline_s: float | None) -> Steps[str]:
    """Start a guest that stays; return the session's name."""
    path = path_of("plugins", plugin, "sessions")

    def read(record: dict[str, Any]) -> str:
        return str(record["session"])

    return one(Ask("POST", path, of_object(read), (201,), query=_ref(ref), deadline_s=deadline_s))


def close_session(session: str) -> Steps[None]:
    """End it."""
    return one(deleting(path_of("sessions", session)))


def session_call(
    plugin: str,
    session: str,
    function: str,
    *arguments: Value,
    deadline_s: float | None = None,
    once: bool | str = False,
) -> Steps[Any]:
    """Call a function of the session's guest; arguments and results as for `Client.call`."""
    return one(_in(session, _call(plugin, function, arguments, None, deadline_s, once)))


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
    return one(_in(session, _call_bytes(plugin, function, data, None, deadline_s, once)))


def _in(session: str, ask: Ask[_T]) -> Ask[_T]:
    return replace(ask, headers={**ask.headers, "Sandhost-Session": session})
