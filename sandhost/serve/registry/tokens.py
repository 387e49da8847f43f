"""Who may come in: tokens, by their digests. The tokens themselves are kept nowhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ..problems import Invalid, Missing, Unknown
from ..records import Principal, Token
from ..tokens import Scope, digest_of, new_token, token_id
from .changing import Changing
from .tenants import Tenants
from .words import MOST_WORDS

__all__ = ["Tokens"]

_LABEL = re.compile(rf"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{{0,{MOST_WORDS}}}")
_UNKNOWN = "no valid token was given"


class Tokens:
    """The tokens of all tenants, and digests of those that were revoked."""

    def __init__(
        self,
        changing: Changing,
        tenants: Tenants,
        now: Callable[[], float],
        kept: dict[bytes, Token],
        revoked: set[bytes],
    ) -> None:
        self._changing, self._tenants, self._now = changing, tenants, now
        self._by_digest = kept
        self._revoked = revoked

    def add(
        self, tenant: str, scopes: Iterable[Scope], label: str = "", expires: float | None = None
    ) -> str:
        """Make a token and return it: this is the only time that anybody sees it.

        Args:
            label: what it is for, at most 200 characters.
            expires: Unix time from which on it is not known any more.

        Raises:
            Invalid: no scope, or a label that cannot be kept.
            Missing: there is no such tenant.
        """
        text, digest = new_token()
        self.add_digest(digest, tenant, scopes, label, expires)
        return text

    def add_digest(
        self,
        digest: bytes,
        tenant: str,
        scopes: Iterable[Scope],
        label: str,
        expires: float | None = None,
    ) -> None:
        """Have a token known that somebody else has made; else like `add`."""
        wanted = frozenset(scopes)
        if not wanted:
            raise Invalid("a token without a scope is good for nothing")
        if not _LABEL.fullmatch(label):
            raise Invalid(f"a label has at most {MOST_WORDS} characters, and one line")
        with self._changing as store:
            self._tenants.find(tenant)
            token = Token(token_id(digest), tenant, wanted, label, self._now(), expires)
            store.put_token(digest, token)
            self._by_digest[digest] = token

    def revoke(self, tenant: str, id: str) -> None:  # noqa: A002
        """Forget a token of this tenant's, by its id.

        Raises:
            Missing: the tenant has none of this id.
        """
        with self._changing as store:
            for digest, token in self._by_digest.items():
                if token.id == id and token.tenant == tenant:
                    found = digest
                    break
            else:
                raise Missing(f"there is no token {id!r:.80}")
            store.revoke_token(found, self._now())
            self._revoked.add(found)
            del self._by_digest[found]

    def of(self, tenant: str) -> list[Token]:
        """List a tenant's tokens, also those that have expired."""
        return [token for token in list(self._by_digest.values()) if token.tenant == tenant]

    def valid(self) -> list[Token]:
        """List all tenants' tokens that let somebody in."""
        return [token for token in list(self._by_digest.values()) if self._is_valid(token)]

    def who(self, text: str) -> Principal:
        """Return whose token this is.

        Raises:
            Unknown: nobody's, or it was revoked or has expired; the words are the same.
        """
        token = self._by_digest.get(digest_of(text))
        if token is None or not self._is_valid(token):
            raise Unknown(_UNKNOWN)
        return Principal(token.tenant, token.scopes, token.id)

    def known_once(self, text: str) -> str:
        """Return the id of a token that was revoked or has expired; empty for what never was one."""
        digest = digest_of(text)
        return token_id(digest) if digest in self._revoked or digest in self._by_digest else ""

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._by_digest

    def is_revoked(self, digest: bytes) -> bool:
        """Tell whether the token of this digest was one."""
        return digest in self._revoked

    def _is_valid(self, token: Token) -> bool:
        return token.expires is None or token.expires > self._now()

    def forget(self, tenant: str) -> None:
        """Let go of what a tenant had that the store has removed."""
        for digest in [d for d, token in self._by_digest.items() if token.tenant == tenant]:
            del self._by_digest[digest]
