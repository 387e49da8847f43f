"""What the service answers with, as frozen records, and how they are read out of JSON.

A field that this client does not know is left alone: a newer service may say more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

__all__ = [
    "Alias",
    "AuditEntry",
    "Completed",
    "Health",
    "NewToken",
    "Plugin",
    "Progress",
    "Tenant",
    "Token",
    "Version",
    "each",
]

_T = TypeVar("_T")
_Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Version:
    """One upload of a plugin."""

    plugin: str
    number: int
    state: Literal["compiling", "ready", "failed"]
    error: str | None
    """Why it failed."""
    digest: str
    """SHA-256 of the module, in hexadecimal."""
    size: int
    """Bytes of the module."""
    functions: Mapping[str, str]
    """What it exports, with types such as "(i32, i32) -> (i32)"; empty until it is ready, and in lists."""

    @classmethod
    def read(cls, record: _Record) -> Version:
        """Read one."""
        return cls(
            record["plugin"],
            record["version"],
            record["state"],
            record["error"],
            record["digest"],
            record["bytes"],
            MappingProxyType(dict(record.get("functions", {}))),
        )


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin: its versions and aliases."""

    name: str
    latest: int | None
    """The newest version that is ready."""
    versions: tuple[Version, ...]
    aliases: Mapping[str, int]

    @classmethod
    def read(cls, record: _Record) -> Plugin:
        """Read one."""
        versions = tuple(Version.read(version) for version in record["versions"])
        aliases = MappingProxyType(dict(record["aliases"]))
        return cls(record["plugin"], record["latest"], versions, aliases)


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a version."""

    name: str
    version: int
    previous: int | None
    """What it named before, and a rollback switches to."""

    @classmethod
    def read(cls, record: _Record) -> Alias:
        """Read one."""
        return cls(record["alias"], record["version"], record["previous"])


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload is."""

    state: Literal["sending", "compiling", "ready"]
    sent_bytes: int
    total_bytes: int | None
    """None when only the end of the module will tell."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command did."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the service takes requests."""

    ready: bool
    pressure: str
    """Of its memory: "calm", and worse."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, for the operator."""

    name: str
    quotas: Mapping[str, float]
    """Sizes in bytes."""

    @classmethod
    def read(cls, record: _Record) -> Tenant:
        """Read one."""
        return cls(record["tenant"], MappingProxyType(dict(record["quotas"])))


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; the token itself is not."""

    id: str
    tenant: str
    scopes: tuple[str, ...]
    """Of "deploy", "invoke" and "admin"."""
    label: str
    created: float
    """Unix time."""
    expires: float | None
    """Unix time; None: never."""

    @classmethod
    def read(cls, record: _Record) -> Token:
        """Read one."""
        return cls(**_token(record))


@dataclass(frozen=True, slots=True)
class NewToken(Token):
    """A token that was made just now; its text is shown this once."""

    text: str = field(repr=False)

    @classmethod
    def read(cls, record: _Record) -> NewToken:
        """Read one."""
        return cls(**_token(record), text=record["token"])


def _token(record: _Record) -> dict[str, Any]:
    names = ("id", "tenant", "label", "created", "expires")
    return {"scopes": tuple(record["scopes"]), **{name: record[name] for name in names}}


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, and whether it was done."""

    at_ns: int
    """Unix time in nanoseconds; no two entries have the same."""
    tenant: str
    token_id: str
    action: str
    subject: str
    outcome: str

    @classmethod
    def read(cls, record: _Record) -> AuditEntry:
        """Read one."""
        return cls(*(record[name] for name in cls.__slots__))


def each(name: str, read: Callable[[_Record], _T]) -> Callable[[_Record], tuple[_T, ...]]:
    """Return a function that reads a list of records out of an object's field."""
    return lambda record: tuple(read(one) for one in record[name])
