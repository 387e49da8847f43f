"""How the first one comes in: tokens of the start, made or given."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..records import Principal
from ..tokens import Scope, digest_of, is_token, new_token, token_id
from .tenants import OPERATOR

if TYPE_CHECKING:
    from . import Registry

__all__ = ["ensure_admin", "ensure_only"]

_ITS_OWN = (Scope.DEPLOY, Scope.INVOKE)


def ensure_admin(registry: Registry, text: str | None = None) -> str | None:
    """See to it that there is an admin token, the given one if one is given.

    Returns:
        A token that was made, to be shown once; None when there is one, or one was given.
        Whoever has lost it comes in again by giving one.

    Raises:
        ConfigError: the given one is no token, or was revoked.
    """
    tokens = registry.tokens
    if text is None:
        if any(Scope.ADMIN in token.scopes for token in tokens.valid()):
            return None
        made, digest = new_token()
    elif not is_token(text):
        raise ConfigError(
            "the admin token cannot be one: give sh_ and 43 letters, digits, - or _, as in "
            '"sh_" + secrets.token_urlsafe(32)'
        )
    else:
        made, digest = None, digest_of(text)
        if tokens.is_revoked(digest):
            raise ConfigError("the admin token that was given is revoked: give another")
        if digest in tokens:
            return None
    _ensure_tenant(registry, OPERATOR)
    _add(registry, digest, OPERATOR, tuple(Scope), "first admin token")
    return made


def ensure_only(registry: Registry, tenant: str, text: str | None = None) -> str | None:
    """See to it that there is this tenant and no other, with a token to deploy and invoke.

    Args:
        text: its token, from now on its only one; None: whichever it has, or a new one.

    Returns:
        A token that was made, to be shown once.

    Raises:
        ConfigError: there are other tenants, or the token is none, or was revoked.
        Invalid: the name cannot be one.
    """
    tokens = registry.tokens
    others = [other.name for other in registry.tenants if other.name != tenant]
    if others:
        raise ConfigError(
            f"the data folder knows other tenants ({', '.join(others):.80}): use one of its own "
            f"for {tenant!r}"
        )
    _ensure_tenant(registry, tenant)
    made = None
    if text is None:
        if tokens.valid():
            return None
        made, digest = new_token()
    elif not is_token(text):
        raise ConfigError("what the token's file holds is no token: sh_ and 43 characters")
    else:
        digest = digest_of(text)
        if tokens.is_revoked(digest):
            raise ConfigError("the token that was given is revoked: give another")
    if digest not in tokens:
        _add(registry, digest, tenant, _ITS_OWN, "of the start")
    for old in tokens.of(tenant):
        if old.id != token_id(digest):
            revoke = partial(tokens.revoke, tenant, old.id)
            registry.audit.change(_start(tenant), "token.revoke", tenant, revoke)
    return made


def _start(tenant: str) -> Principal:
    """Who the audit log says it was: nobody's token."""
    return Principal(tenant, frozenset(), "")


def _ensure_tenant(registry: Registry, name: str) -> None:
    if name not in registry.tenants:
        add = partial(registry.tenants.add, name)
        registry.audit.change(_start(name), "tenant.put", name, add)


def _add(
    registry: Registry, digest: bytes, tenant: str, scopes: tuple[Scope, ...], label: str
) -> None:
    add = partial(registry.tokens.add_digest, digest, tenant, scopes, label)
    registry.audit.change(_start(tenant), "token.add", tenant, add)
