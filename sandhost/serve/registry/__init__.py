"""What is known: tenants, tokens, plugins, versions, aliases. All of it is in memory, read without a lock.

    change:   check in memory ──► store, durable ──► memory ──► acknowledged    (changing)
    read:     memory only

tenants, tokens        who there is, and who may come in (first_tokens: at the first start)
plugins, aliases       what they have
answers                what was said to a request that may come again
audit                  who changed what
words                  which texts may be names, and how others are kept

Records are immutable and a change replaces one entry of one dictionary, so a reader on any thread sees the
state before it or after it. Changes wait for the disk and are made one at a time: call them in a worker
thread. When the store fails, memory is what it was.

Every method that is about a tenant takes its name first and looks nowhere else. What another tenant has is
`Missing` in the same words as what nobody has.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..problems import Conflict
from ..records import (
    Alias,
    Answer,
    AuditEntry,
    Bounds,
    Grants,
    Plugin,
    Principal,
    Tenant,
    Token,
    Version,
    VersionSettings,
)
from ..store import Store
from ..tokens import Scope
from .aliases import Aliases
from .answers import Answers
from .audit import Audit
from .changing import Changing
from .plugins import LATEST, Plugins
from .tenants import OPERATOR, Tenants
from .tokens import Tokens

__all__ = [
    "LATEST",
    "OPERATOR",
    "Alias",
    "Answer",
    "AuditEntry",
    "Bounds",
    "Grants",
    "Plugin",
    "Principal",
    "Registry",
    "Scope",
    "Tenant",
    "Token",
    "Version",
    "VersionSettings",
]

_SWEEP_AGE_S = 3600.0  # longer than an upload rests before a version names it
_DEFAULT_BOUNDS = Bounds()


class Registry:
    """All that the service knows: its parts, and what concerns several of them.

    Args:
        store: where it is kept. Closing it stays with whoever opened it.
        now: Unix time.
    """

    def __init__(
        self, store: Store, bounds: Bounds = _DEFAULT_BOUNDS, now: Callable[[], float] = time.time
    ) -> None:
        self.blobs = store.blobs
        self._changing = changing = Changing(store)
        kept = store.load(now())
        self.tenants = Tenants(changing, kept.tenants)
        self.tokens = Tokens(changing, self.tenants, now, kept.tokens, kept.revoked)
        self.plugins = Plugins(changing, self.tenants, bounds, now, kept.plugins)
        self.aliases = Aliases(changing, self.plugins, bounds)
        self.answers = Answers(changing, self.tenants, bounds, now, kept.known)
        self.audit = Audit(changing, now, kept.last_audit_ns)
        self.blobs.sweep(self.plugins.digests())  # nobody uploads yet

    def remove_tenant(self, name: str) -> None:
        """Remove a tenant with its tokens, plugins and kept answers. Its modules go with a sweep.

        Raises:
            Missing: there is none of this name.
            Conflict: it is the operator's.
        """
        with self._changing as store:
            self.tenants.find(name)
            if name == OPERATOR:
                raise Conflict("the operator's own tenant stays")
            store.remove_tenant(name)
            self.tokens.forget(name)  # first: nobody comes in from here on
            self.tenants.forget(name)
            self.plugins.forget(name)
            self.answers.forget(name)

    def sweep(self) -> int:
        """Give back the disk space of modules that no version names any more; call it now and then.

        Spares what was written within the last hour, as a version may be about to name it.
        """
        with self._changing:
            return self.blobs.sweep(self.plugins.digests(), _SWEEP_AGE_S)
