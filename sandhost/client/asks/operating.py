"""What the operator asks for: tenants, their tokens, who did what; and what anybody may ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ...quotas import Quotas
from ..records import AuditEntry, Health, NewToken, Tenant, Token, each
from ..replies import of_object
from .ask import Ask, Steps, deleting, getting, json_of, one, path_of

__all__ = [
    "Scope",
    "add_token",
    "audit",
    "health",
    "put_tenant",
    "revoke_token",
    "tenant",
    "tenants",
    "tokens",
]

Scope = Literal["deploy", "invoke", "admin"]


def tenants() -> Steps[tuple[Tenant, ...]]:
    """Return all tenants."""
    return one(getting(path_of("admin", "tenants"), each("tenants", Tenant.read)))


def tenant(tenant: str) -> Steps[Tenant]:
    """Return one tenant."""
    return one(getting(path_of("admin", "tenants", tenant), Tenant.read))


def put_tenant(tenant: str, quotas: Quotas | None = None) -> Steps[Tenant]:
    """Add a tenant, or give it these quotas in place of those it had."""
    given = {} if quotas is None else quotas._asdict()
    record = {"quotas": {name: value for name, value in given.items() if value is not None}}
    path = path_of("admin", "tenants", tenant)
    return one(Ask("PUT", path, of_object(Tenant.read), (200, 201), body=json_of(record)))


def tokens(tenant: str) -> Steps[tuple[Token, ...]]:
    """Return what is known of a tenant's tokens."""
    return one(getting(path_of("admin", "tenants", tenant, "tokens"), each("tokens", Token.read)))


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
    path = path_of("admin", "tenants", tenant, "tokens")
    return one(Ask("POST", path, of_object(NewToken.read), (201,), body=json_of(record)))


def revoke_token(tenant: str, id: str) -> Steps[None]:  # noqa: A002 - it is called that everywhere
    """Let a token be nobody's from now on."""
    return one(deleting(path_of("admin", "tenants", tenant, "tokens", id)))


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
    return one(
        getting(path_of("admin", "audit"), each("entries", AuditEntry.read), query=tuple(query))
    )


def health() -> Steps[Health]:
    """Return whether the service takes requests. Needs no token."""

    def read(record: dict[str, Any]) -> Health:
        return Health(bool(record["ready"]), str(record["pressure"]))

    return one(getting("/readyz", read, statuses=(200, 503)))
