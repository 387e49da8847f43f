"""Ask a service of plugins: `sandhost[client]`, which needs neither C nor wasmtime.

    Client, AsyncClient        the two faces; what they take and return is the same

    aio, sync                  the faces: they send, wait and read
    duplex, driving            a command's connection; waiting on an event loop
    operations, transport      methods for both faces; what both tell httpx
    attempts                   how often a request is made
    asks                       all that can be asked for
    records, replies           what the service says, what is made of it
    bodies, settings, errors   what is sent; where, and who asks; what goes wrong without an answer

Errors, all of them SandhostError:

    Problem                the service says no                        .status, .code, .detail, .facts, .retry_after_s
    ├── Unknown, Denied    whose token is it; it has not the scope
    ├── Missing            there is nothing of that name
    ├── Invalid, TooLarge  the request cannot be meant; has too many bytes
    ├── BadPlugin          no module that can be loaded
    ├── NotReady, Conflict still compiled; in use, or somebody was first
    ├── GuestFailed        it trapped, exited or reached a limit      .facts["trap"], ["exit"], ["limit"]
    ├── DeadlinePassed     the time was over, there or here
    ├── TooMany            a quota, or too much to do                 .retry_after_s
    └── Unavailable, Internal   it is stopping; its own fault
    Unreachable            there is no connection, or it was lost     .sent
    BadAnswer              what answers is no service of sandhost's
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, SandhostError
from ..protocol.frames import Piece
from ..protocol.problems import (
    BadPlugin,
    Conflict,
    DeadlinePassed,
    Denied,
    GuestFailed,
    Internal,
    Invalid,
    Missing,
    NotReady,
    Problem,
    TooLarge,
    TooMany,
    Unavailable,
    Unknown,
)
from ..quotas import Quotas
from .errors import BadAnswer, Unreachable
from .records import (
    Alias,
    AuditEntry,
    Completed,
    Health,
    NewToken,
    Plugin,
    Progress,
    Tenant,
    Token,
    Version,
)
from .settings import Retry

if TYPE_CHECKING:
    from .aio import AsyncClient, AsyncCommand, AsyncSession
    from .sync import Client, Command, Session

__all__ = [
    "Alias",
    "AsyncClient",
    "AsyncCommand",
    "AsyncSession",
    "AuditEntry",
    "BadAnswer",
    "BadPlugin",
    "Client",
    "Command",
    "Completed",
    "ConfigError",
    "Conflict",
    "DeadlinePassed",
    "Denied",
    "GuestFailed",
    "Health",
    "Internal",
    "Invalid",
    "Missing",
    "NewToken",
    "NotReady",
    "Piece",
    "Plugin",
    "Problem",
    "Progress",
    "Quotas",
    "Retry",
    "SandhostError",
    "Session",
    "Tenant",
    "Token",
    "TooLarge",
    "TooMany",
    "Unavailable",
    "Unknown",
    "Unreachable",
    "Version",
]

_LATE = {
    "AsyncClient": ".aio",
    "AsyncCommand": ".aio",
    "AsyncSession": ".aio",
    "Client": ".sync",
    "Command": ".sync",
    "Session": ".sync",
}


def __getattr__(name: str) -> Any:
    """Import a face, and httpx with it, when it is first named (PEP 562): errors alone are cheap."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATE[name], __name__), name)
    return value
