"""What each kind of event says, and how it is read from a record of C (`sh_event`).

All begin alike: `kind`; `ns`, when it happened by `time.monotonic_ns()`; `guest`, the id of the guest,
0 if there is none; `plugin` and `tenant`, the names, None if there is none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from .._ffi import lib, trap_code_name
from ..regions import policy_name

__all__ = [
    "KINDS",
    "Cancel",
    "Close",
    "Commit",
    "CycleBegin",
    "CycleEnd",
    "Deadline",
    "Decommit",
    "Event",
    "HandleAlloc",
    "HandleFree",
    "MarkDone",
    "Quarantine",
    "Refused",
    "Reset",
    "Spawn",
    "Trap",
    "bits",
    "decoder",
    "logged",
]


class Spawn(NamedTuple):
    """A guest was spawned."""

    kind: Literal["spawn"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    committed_bytes: int
    took_ns: int
    forked: bool
    """From a snapshot."""


class Close(NamedTuple):
    """A guest ended, and its memory came back: see `Reclaim`."""

    kind: Literal["close"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    returned_bytes: int
    kept_bytes: int
    deferred_bytes: int
    took_ns: int


class Commit(NamedTuple):
    """A guest's memory grew."""

    kind: Literal["commit"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    bytes: int
    size_bytes: int
    """Of this memory, from now on."""


class Decommit(NamedTuple):
    """What a guest had left behind went back to the operating system, after its close."""

    kind: Literal["decommit"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    bytes: int


class Reset(NamedTuple):
    """One region was reset: a linear memory, or the stack of a guest whose calls could wait."""

    kind: Literal["reset"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    returned_bytes: int
    kept_bytes: int
    deferred_bytes: int
    took_ns: int
    policy: str


class Quarantine(NamedTuple):
    """A region could not be reset: its slot is never used again."""

    kind: Literal["quarantine"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    bytes: int


class Refused(NamedTuple):
    """A guest ran into a limit."""

    kind: Literal["refused"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    what: str
    """"memory", "regions", "table", "fuel", "handles", "handle_memory"; "os": the system had no more."""
    whose: str
    """"guest", "tenant" or "host"."""
    wanted: int
    limit: int


class Trap(NamedTuple):
    """A guest trapped."""

    kind: Literal["trap"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    code: str
    """As `GuestTrap.code`."""


class Deadline(NamedTuple):
    """A call ran past its deadline."""

    kind: Literal["deadline"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    limit_ns: int


class Cancel(NamedTuple):
    """A call was cancelled."""

    kind: Literal["cancel"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None


class CycleBegin(NamedTuple):
    """A collection of the handle heap began."""

    kind: Literal["cycle_begin"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    cycle: int
    live_bytes: int
    live_handles: int


class MarkDone(NamedTuple):
    """Everything that is reachable was found; sweeping begins."""

    kind: Literal["mark_done"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    cycle: int
    live_bytes: int
    live_handles: int
    took_ns: int
    """By the clock, since the cycle began."""


class CycleEnd(NamedTuple):
    """A collection of the handle heap is over."""

    kind: Literal["cycle_end"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    cycle: int
    live_bytes: int
    live_handles: int


class HandleAlloc(NamedTuple):
    """A handle was given out."""

    kind: Literal["handle_alloc"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    handle: int
    bytes: int


class HandleFree(NamedTuple):
    """A handle is gone: released, collected, or its guest ended."""

    kind: Literal["handle_free"]
    ns: int
    guest: int
    plugin: str | None
    tenant: str | None
    handle: int
    bytes: int


Event: TypeAlias = (
    Spawn
    | Close
    | Commit
    | Decommit
    | Reset
    | Quarantine
    | Refused
    | Trap
    | Deadline
    | Cancel
    | CycleBegin
    | MarkDone
    | CycleEnd
    | HandleAlloc
    | HandleFree
)

_REFUSALS = {
    lib.SH_REFUSED_MEMORY: "memory",
    lib.SH_REFUSED_REGIONS: "regions",
    lib.SH_REFUSED_TABLE: "table",
    lib.SH_REFUSED_FUEL: "fuel",
    lib.SH_REFUSED_HANDLES: "handles",
    lib.SH_REFUSED_HANDLE_MEMORY: "handle_memory",
    lib.SH_REFUSED_OS: "os",
    lib.SH_REFUSED_QUOTA: "quota",
    lib.SH_REFUSED_PRESSURE: "pressure",
}
_WHOSE = {
    lib.SH_LEVEL_GUEST: "guest",
    lib.SH_LEVEL_TENANT: "tenant",
    lib.SH_LEVEL_HOST: "host",
}


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# What comes after the five that all have, of `detail` and the four values.
_Rest = Callable[[int, int, int, int, int], tuple[Any, ...]]
_READERS: dict[str, tuple[Any, _Rest]] = {
    "spawn": (Spawn, lambda detail, a, b, _c, _d: (a, b, bool(detail))),
    "close": (Close, lambda _, a, b, c, d: (a, b, c, d)),
    "commit": (Commit, lambda _, a, b, _c, _d: (a, b)),
    "decommit": (Decommit, lambda _, a, _b, _c, _d: (a,)),
    "reset": (Reset, lambda detail, a, b, c, d: (a, b, c, d, policy_name(detail))),
    "quarantine": (Quarantine, lambda _, a, _b, _c, _d: (a,)),
    "refused": (Refused, lambda detail, a, b, c, _d: (_REFUSALS[detail], _WHOSE[c], a, b)),
    "trap": (Trap, lambda _, a, _b, _c, _d: (trap_code_name(_signed(a)),)),
    "deadline": (Deadline, lambda _, a, _b, _c, _d: (a,)),
    "cancel": (Cancel, lambda _, _a, _b, _c, _d: ()),
    "cycle_begin": (CycleBegin, lambda _, a, b, c, _d: (a, b, c)),
    "mark_done": (MarkDone, lambda _, a, b, c, d: (a, b, c, d)),
    "cycle_end": (CycleEnd, lambda _, a, b, c, _d: (a, b, c)),
    "handle_alloc": (HandleAlloc, lambda _, a, b, _c, _d: (a, b)),
    "handle_free": (HandleFree, lambda _, a, b, _c, _d: (a, b)),
}

KINDS: dict[str, int] = {kind: getattr(lib, f"SH_EVENT_{kind.upper()}") for kind in _READERS}
"""Every kind, with C's number of it."""


def bits(kinds: Iterable[str]) -> int:
    """Return a set of kinds as C has it."""
    return sum(1 << KINDS[kind] for kind in kinds)


_RECORD = struct.Struct("@IHHQQIIQQQQ")
_BY_NUMBER = {KINDS[kind]: (kind, cls, rest) for kind, (cls, rest) in _READERS.items()}
_make = tuple.__new__


def logged(records: bytes) -> memoryview:
    """Return of each record whether the log lets it through: the first word."""
    return memoryview(records).cast("I")[:: _RECORD.size // 4]


def decoder(plugins: Mapping[int, str], tenants: Mapping[int, str]) -> Callable[[Any], list[Event]]:
    """Return what reads a buffer of records, with these as the names of numbers."""

    def decode(buffer: Any) -> list[Event]:
        return [
            _make(
                (found := _BY_NUMBER[kind])[1],
                (
                    found[0],
                    ns,
                    guest,
                    plugins.get(plugin),
                    tenants.get(tenant),
                    *found[2](detail, a, b, c, d),
                ),
            )
            for _, kind, detail, ns, guest, plugin, tenant, a, b, c, d in _RECORD.iter_unpack(
                buffer
            )
        ]

    return decode
