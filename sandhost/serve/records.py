"""What the registry knows: immutable records, as the store writes them and requests read them.

Tenant ── Token *
   └── Plugin * ── Version *      number: 1, 2, 3 … never used twice
             └──── Alias *        names a version that is ready, and the one it named before
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ..errors import ConfigError
from ..limits import Limits
from ..tenants import Quotas
from .problems import Invalid
from .tokens import Scope

__all__ = [
    "Alias",
    "Answer",
    "AuditEntry",
    "Bounds",
    "Grants",
    "Plugin",
    "Principal",
    "State",
    "Tenant",
    "Token",
    "Version",
    "VersionSettings",
]

State = Literal["compiling", "ready", "failed"]

_NO_QUOTAS = Quotas()
_DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose plugins and tokens are apart from all others'."""

    name: str
    quotas: Quotas = _NO_QUOTAS


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; the token itself is not."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    label: str
    """What it is for, in the words of whoever made it."""
    created: float
    """Unix time."""
    expires: float | None
    """Unix time from which on it is not known any more; None: never."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request."""

    tenant: str
    scopes: frozenset[Scope]
    token_id: str


@dataclass(frozen=True, slots=True)
class Grants:
    """What a version's guests get of WASI, beside clocks and random numbers."""

    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class VersionSettings:
    """How a version's guests run."""

    limits: Limits = _DEFAULT_LIMITS
    grants: Grants = Grants()
    warm: str | None = None
    """An export that prepares a guest; calls then start from its snapshot."""

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return {
            "limits": self.limits._asdict(),
            "grants": {"argv": list(self.grants.argv), "env": dict(self.grants.env)},
            "warm": self.warm,
        }

    @classmethod
    def wanted(
        cls,
        default: Limits,
        limits: Mapping[str, Any],
        argv: Sequence[str],
        env: Mapping[str, str],
        warm: str | None,
    ) -> VersionSettings:
        """Return the settings that an upload asks for.

        Args:
            default: what holds where `limits` says nothing.

        Raises:
            Invalid: something cannot be meant.
        """
        if any("\0" in text for text in (*argv, *env, *env.values())):
            raise Invalid("WASI arguments and names have no NUL")
        try:
            own = Limits(**{**default._asdict(), **limits})
        except ConfigError as error:
            raise Invalid(str(error)) from None
        return cls(own, Grants(tuple(argv), tuple(env.items())), warm)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VersionSettings:
        """Return the settings that were written."""
        grants = data["grants"]
        return cls(
            Limits(**data["limits"]),
            Grants(tuple(grants["argv"]), tuple(grants["env"].items())),
            data["warm"],
        )


@dataclass(frozen=True, slots=True)
class Version:
    """One upload of a plugin."""

    tenant: str
    plugin: str
    number: int
    digest: str
    """SHA-256 of the module, in hexadecimal: where `Blobs` has it."""
    size: int
    """Bytes of the module."""
    state: State
    error: str | None
    """Why it failed."""
    settings: VersionSettings
    created: float
    """Unix time."""

    @property
    def id(self) -> tuple[str, str, int, float]:
        """Return what no other version has, also not of a plugin that was removed and came again."""
        return self.tenant, self.plugin, self.number, self.created


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for a version that can be switched to another."""

    name: str
    number: int
    previous: int | None
    """What it named before, and a roll back switches to; None once that is removed."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A tenant's plugin with all its versions.

    Invariant: every alias's `number` is of a version that is "ready", its `previous` of one or None;
    `latest` is the highest number of those, None without any; all numbers are below `next_number`.
    """

    tenant: str
    name: str
    next_number: int = 1
    versions: Mapping[int, Version] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, Alias] = field(default_factory=lambda: MappingProxyType({}))
    latest: int | None = field(init=False)

    def __post_init__(self) -> None:
        ready = (number for number, version in self.versions.items() if version.state == "ready")
        object.__setattr__(self, "latest", max(ready, default=None))

    def with_version(self, version: Version) -> Plugin:
        """Return it with this version, new or changed."""
        next_number = max(self.next_number, version.number + 1)
        versions = MappingProxyType({**self.versions, version.number: version})
        return replace(self, next_number=next_number, versions=versions)

    def without_version(self, number: int) -> Plugin:
        """Return it without this version, which no alias names."""
        versions = {n: version for n, version in self.versions.items() if n != number}
        aliases = {
            name: replace(alias, previous=None) if alias.previous == number else alias
            for name, alias in self.aliases.items()
        }
        return replace(self, versions=MappingProxyType(versions), aliases=MappingProxyType(aliases))

    def with_alias(self, alias: Alias) -> Plugin:
        """Return it with this alias, new or switched."""
        return replace(self, aliases=MappingProxyType({**self.aliases, alias.name: alias}))

    def without_alias(self, name: str) -> Plugin:
        """Return it without this alias."""
        aliases = {n: alias for n, alias in self.aliases.items() if n != name}
        return replace(self, aliases=MappingProxyType(aliases))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is kept for a request with an idempotency key, and given again."""

    status: int
    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when, and whether it was done."""

    at_ns: int
    """Unix time; no two entries have the same."""
    tenant: str
    token_id: str
    action: str
    subject: str
    outcome: str


class Bounds(NamedTuple):
    """How much one tenant may have the service keep."""

    plugins: int = 1000
    versions: int = 1000
    """Of one plugin."""
    aliases: int = 100
    """Of one plugin."""
    storage_bytes: int = 4 << 30
    """Sum of the versions' sizes."""
    answers: int = 1000
    """Kept for idempotency keys; older ones make room."""
    answer_bytes: int = 64 << 20
    """Sum of those answers' bodies; older ones make room."""
