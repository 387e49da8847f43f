"""Answers that are kept for idempotency keys, to be given again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ..problems import Conflict, Invalid, TooLarge
from ..records import Answer, Bounds
from ..store import Known
from .changing import Changing
from .tenants import Tenants

__all__ = ["Answers"]

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class Answers:
    """What is known of the answers of all tenants, the oldest first; their bodies are on the disk only."""

    def __init__(
        self,
        changing: Changing,
        tenants: Tenants,
        bounds: Bounds,
        now: Callable[[], float],
        kept: Iterable[Known],
    ) -> None:
        self._changing, self._tenants = changing, tenants
        self._bounds, self._now = bounds, now
        self._of: dict[str, dict[str, Known]] = {}
        for known in kept:
            self._of.setdefault(known.tenant, {})[known.key] = known

    def remember(
        self, tenant: str, key: str, fingerprint: str, answer: Answer, for_s: float = 86_400.0
    ) -> None:
        """Keep the answer to a request that came with an idempotency key.

        Args:
            key: the client's, 1 to 255 printable characters of ASCII.
            fingerprint: a digest of the request, that tells it from another with the same key.

        Raises:
            Invalid: the key cannot be one.
            Missing: there is no such tenant.
            Conflict: the key is kept for another request.
            TooLarge: the answer is more than a tenant may have kept in all.
        """
        _check_key(key)
        size = len(answer.body)
        if size > self._bounds.answer_bytes:
            raise TooLarge(f"an answer of {size} bytes is not kept for its idempotency key")
        with self._changing as store:
            self._tenants.find(tenant)
            now = self._now()
            if self._found(tenant, key, fingerprint) is not None:
                return
            kept = self._of.get(tenant, {})
            gone = [k for k, known in kept.items() if known.expires <= now or k == key]
            left = {k: known for k, known in kept.items() if k not in gone}
            room = self._bounds.answer_bytes - size - sum(known.size for known in left.values())
            for k in list(left):  # the oldest first
                if room >= 0 and len(left) < self._bounds.answers:
                    break
                gone.append(k)
                room += left.pop(k).size
            known = Known(tenant, key, fingerprint, size, now + for_s)
            store.remember(known, answer, gone)
            self._of[tenant] = {**left, key: known}

    def recall(self, tenant: str, key: str, fingerprint: str) -> Answer | None:
        """Return the answer that is kept for this request; None when there is none.

        Reads the disk when there is one, for as long as a query takes.

        Raises:
            Invalid: the key cannot be one.
            Conflict: the key is kept for another request.
        """
        _check_key(key)
        known = self._found(tenant, key, fingerprint)
        return None if known is None else self._changing.store.recall(tenant, key)

    def _found(self, tenant: str, key: str, fingerprint: str) -> Known | None:
        known = self._of.get(tenant, {}).get(key)
        if known is None or known.expires <= self._now():
            return None
        if known.fingerprint != fingerprint:
            raise Conflict("the idempotency key was used for another request")
        return known

    def forget(self, tenant: str) -> None:
        """Let go of what a tenant had that the store has removed."""
        self._of.pop(tenant, None)


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise Invalid("an idempotency key has 1 to 255 printable characters of ASCII, no blanks")
