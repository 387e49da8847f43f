"""The audit log: who changed what, and who was refused. It is on the disk only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ..problems import Problem
from ..records import AuditEntry, Principal
from ..refusals import Refusal
from .changing import Changing
from .words import MOST_WORDS, storable

__all__ = ["Audit"]

_T = TypeVar("_T")


class Audit:
    """The log. No two of its entries have the same time, whatever the clock does."""

    def __init__(self, changing: Changing, now: Callable[[], float], last_ns: int) -> None:
        self._changing, self._now = changing, now
        self._last_ns = last_ns

    def change(self, who: Principal, action: str, subject: str, work: Callable[[], _T]) -> _T:
        """Make a change of the registry; what the log says of it is durable with it, or neither is.

        Args:
            action: what is asked for, "alias.set" for example.
            subject: what it is about, "wordcount/live" for example.
            work: makes the change. A problem that it raises is the entry's outcome.
        """
        with self._changing as store:
            try:
                with store.noting(self._entry(who.tenant, who.token_id, action, subject)):
                    return work()
            except Problem as problem:
                store.audit([self._entry(who.tenant, who.token_id, action, subject, problem.code)])
                raise

    def refuse(self, refusals: Iterable[tuple[Refusal, int]]) -> None:
        """Write how many requests were refused for their tokens."""
        with self._changing as store:
            entries = [
                self._entry(
                    one.tenant, one.token_id, "token.refuse", f"{one.peer} x{count}", one.code
                )
                for one, count in refusals
            ]
            if entries:
                store.audit(entries)

    def _entry(
        self, tenant: str, token: str, action: str, subject: str, outcome: str = "done"
    ) -> AuditEntry:
        self._last_ns = max(self._last_ns + 1, int(self._now() * 1e9))
        words = (storable(text, MOST_WORDS) for text in (action, subject, outcome))
        return AuditEntry(self._last_ns, tenant, token, *words)

    def log(
        self, tenant: str | None = None, limit: int = 100, before_ns: int | None = None
    ) -> list[AuditEntry]:
        """Return entries, the newest first. Reads the disk.

        Args:
            tenant: whose; None: everybody's, for the operator only.
            before_ns: only those before; the `at_ns` of the last one leads to the next page.
        """
        return self._changing.store.audit_log(tenant, limit, before_ns)
