"""What is known: tenants, tokens, plugins, versions, aliases. All of it is in memory, read without a lock.

    change:   check in memory ──► store, durable ──► memory ──► acknowledged
    read:     memory only

Records are immutable and a change replaces one entry of one dictionary, so a reader on any thread sees the
state before it or after it. Changes wait for the disk and are made one at a time: call them in a worker
thread. When the store fails, memory is what it was.

Every method that is about a tenant takes its name first and looks nowhere else. What another tenant has is
`Missing` in the same words as what nobody has.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ..errors import ConfigError
from ..tenants import Quotas
from .problems import Conflict, Invalid, Missing, NotReady, Problem, TooLarge, TooMany, Unknown
from .records import (
    Alias,
    Answer,
    AuditEntry,
    Bounds,
    Grants,
    Plugin,
    Principal,
    State,
    Tenant,
    Token,
    Version,
    VersionSettings,
)
from .refusals import Refusal
from .store import Known, Store
from .tokens import Scope, digest_of, is_token, new_token, token_id

__all__ = [
    "LATEST",
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

_T = TypeVar("_T")

LATEST = "latest"
OPERATOR = "operator"
"""The tenant that the first admin token belongs to; one like any other."""

_ITS_OWN = (Scope.DEPLOY, Scope.INVOKE)

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_MOST_WORDS = 200
_LABEL = re.compile(rf"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]{{0,{_MOST_WORDS}}}")
_MOST_ERROR = 4000
_SWEEP_AGE_S = 3600.0  # longer than an upload rests before a version names it
_UNKNOWN = "no valid token was given"
_NO_QUOTAS = Quotas()
_DEFAULT_SETTINGS = VersionSettings()
_DEFAULT_BOUNDS = Bounds()


class Registry:
    """All that the service knows.

    Args:
        store: where it is kept. Closing it stays with whoever opened it.
        now: Unix time.
    """

    def __init__(
        self, store: Store, bounds: Bounds = _DEFAULT_BOUNDS, now: Callable[[], float] = time.time
    ) -> None:
        self.blobs = store.blobs
        self.bounds = bounds
        self._store, self._now = store, now
        self._changing = threading.RLock()
        """Held for each change, from its check to its end in memory."""
        kept = store.load(now())
        self._tenants = {tenant.name: tenant for tenant in kept.tenants}
        self._tokens = kept.tokens
        self._revoked = kept.revoked
        self._plugins: dict[str, dict[str, Plugin]] = {name: {} for name in self._tenants}
        for plugin in kept.plugins:
            self._plugins[plugin.tenant][plugin.name] = plugin
        self._known: dict[str, dict[str, Known]] = {name: {} for name in self._tenants}
        for known in kept.known:
            self._known[known.tenant][known.key] = known
        self._last_audit_ns = kept.last_audit_ns
        self.blobs.sweep(self._named())  # nobody uploads yet

    # ---- tenants ----

    def add_tenant(self, name: str, quotas: Quotas = _NO_QUOTAS) -> Tenant:
        """Add a tenant.

        Raises:
            Invalid: the name cannot be one.
            Conflict: there is one of this name.
        """
        _check_name("tenant", name)
        with self._changing:
            if name in self._tenants:
                raise Conflict(f"there is a tenant {name!r} already")
            tenant = Tenant(name, quotas)
            self._store.put_tenant(tenant)
            self._plugins[name], self._known[name] = {}, {}
            self._tenants[name] = tenant
            return tenant

    def update_tenant(self, name: str, quotas: Quotas) -> Tenant:
        """Give a tenant these quotas in place of those it had.

        Raises:
            Missing: there is none of this name.
        """
        with self._changing:
            self.tenant(name)
            tenant = Tenant(name, quotas)
            self._store.put_tenant(tenant)
            self._tenants[name] = tenant
            return tenant

    def remove_tenant(self, name: str) -> None:
        """Remove a tenant with its tokens, plugins and kept answers. Its modules go with a sweep.

        Raises:
            Missing: there is none of this name.
            Conflict: it is the operator's.
        """
        with self._changing:
            self.tenant(name)
            if name == OPERATOR:
                raise Conflict("the operator's own tenant stays")
            self._store.remove_tenant(name)
            for digest in [d for d, token in self._tokens.items() if token.tenant == name]:
                del self._tokens[digest]  # first: nobody comes in from here on
            del self._tenants[name], self._plugins[name], self._known[name]

    def tenant(self, name: str) -> Tenant:
        """Return a tenant; raises `Missing`."""
        tenant = self._tenants.get(name)
        if tenant is None:
            raise Missing(f"there is no tenant {name!r:.80}")
        return tenant

    def has_tenant(self, name: str) -> bool:
        """Tell whether there is one."""
        return name in self._tenants

    def tenants(self) -> list[Tenant]:
        """List all tenants: for the operator only."""
        return list(self._tenants.values())

    # ---- tokens ----

    def add_token(
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
        self._add_token(digest, tenant, scopes, label, expires)
        return text

    def ensure_admin(self, text: str | None = None) -> str | None:
        """See to it that there is an admin token, the given one if one is given.

        Returns:
            A token that was made, to be shown once; None when there is one, or one was given.
            Whoever has lost it comes in again by giving one.

        Raises:
            ConfigError: the given one is no token, or was revoked.
        """
        if text is None:
            if any(Scope.ADMIN in t.scopes and self._is_valid(t) for t in self._tokens.values()):
                return None
            made, digest = new_token()
        elif not is_token(text):
            raise ConfigError(
                "the admin token cannot be one: give sh_ and 43 letters, digits, - or _, as in "
                '"sh_" + secrets.token_urlsafe(32)'
            )
        else:
            made, digest = None, digest_of(text)
            if digest in self._revoked:
                raise ConfigError("the admin token that was given is revoked: give another")
            if digest in self._tokens:
                return None
        start = Principal(OPERATOR, frozenset(), "")
        if OPERATOR not in self._tenants:
            self.change(start, "tenant.put", OPERATOR, lambda: self.add_tenant(OPERATOR))
        self.change(
            start,
            "token.add",
            OPERATOR,
            lambda: self._add_token(digest, OPERATOR, list(Scope), "first admin token", None),
        )
        return made

    def ensure_only(self, tenant: str, text: str | None = None) -> str | None:
        """See to it that there is this tenant and no other, with a token to deploy and invoke.

        Args:
            text: its token, from now on its only one; None: whichever it has, or a new one.

        Returns:
            A token that was made, to be shown once.

        Raises:
            ConfigError: there are other tenants, or the token is none, or was revoked.
            Invalid: the name cannot be one.
        """
        others = [name for name in self._tenants if name != tenant]
        if others:
            raise ConfigError(
                f"the data folder knows other tenants ({', '.join(others):.80}): use one of its own "
                f"for {tenant!r}"
            )
        start = Principal(tenant, frozenset(), "")
        if tenant not in self._tenants:
            self.change(start, "tenant.put", tenant, lambda: self.add_tenant(tenant))
        made = None
        valid = [digest for digest, token in self._tokens.items() if self._is_valid(token)]
        if text is None:
            if valid:
                return None
            made, digest = new_token()
        elif not is_token(text):
            raise ConfigError("what the token's file holds is no token: sh_ and 43 characters")
        else:
            digest = digest_of(text)
            if digest in self._revoked:
                raise ConfigError("the token that was given is revoked: give another")
        if digest not in self._tokens:
            self.change(
                start,
                "token.add",
                tenant,
                lambda: self._add_token(digest, tenant, _ITS_OWN, "of the start", None),
            )
        for old in [token.id for known, token in self._tokens.items() if known != digest]:
            self.change(start, "token.revoke", tenant, partial(self.revoke_token, tenant, old))
        return made

    def _add_token(
        self,
        digest: bytes,
        tenant: str,
        scopes: Iterable[Scope],
        label: str,
        expires: float | None,
    ) -> None:
        wanted = frozenset(scopes)
        if not wanted:
            raise Invalid("a token without a scope is good for nothing")
        if not _LABEL.fullmatch(label):
            raise Invalid(f"a label has at most {_MOST_WORDS} characters, and one line")
        with self._changing:
            self.tenant(tenant)
            token = Token(token_id(digest), tenant, wanted, label, self._now(), expires)
            self._store.put_token(digest, token)
            self._tokens[digest] = token

    def revoke_token(self, tenant: str, id: str) -> None:  # noqa: A002
        """Forget a token of this tenant's, by its id.

        Raises:
            Missing: the tenant has none of this id.
        """
        with self._changing:
            for digest, token in self._tokens.items():
                if token.id == id and token.tenant == tenant:
                    found = digest
                    break
            else:
                raise Missing(f"there is no token {id!r:.80}")
            self._store.revoke_token(found, self._now())
            self._revoked.add(found)
            del self._tokens[found]

    def tokens(self, tenant: str) -> list[Token]:
        """List a tenant's tokens, also those that have expired."""
        return [token for token in list(self._tokens.values()) if token.tenant == tenant]

    def who(self, text: str) -> Principal:
        """Return whose token this is.

        Raises:
            Unknown: nobody's, or it was revoked or has expired; the words are the same.
        """
        token = self._tokens.get(digest_of(text))
        if token is None or not self._is_valid(token):
            raise Unknown(_UNKNOWN)
        return Principal(token.tenant, token.scopes, token.id)

    def known_once(self, text: str) -> str:
        """Return the id of a token that was revoked or has expired; empty for what never was one."""
        digest = digest_of(text)
        return token_id(digest) if digest in self._revoked or digest in self._tokens else ""

    def _is_valid(self, token: Token) -> bool:
        return token.expires is None or token.expires > self._now()

    # ---- plugins, versions ----

    def add_version(
        self,
        tenant: str,
        plugin: str,
        digest: str,
        size: int,
        settings: VersionSettings = _DEFAULT_SETTINGS,
    ) -> Version:
        """Add a version, "compiling", of a module that `blobs` has; its plugin too if it is the first.

        Raises:
            Invalid: the plugin's name cannot be one.
            Missing: there is no such tenant.
            TooMany: the tenant has as many, or as much, as it may.
            Conflict: the module is not there any more.
        """
        _check_name("plugin", plugin)
        with self._changing:
            self.tenant(tenant)
            found = self._plugins[tenant].get(plugin)
            before = found or Plugin(tenant, plugin)
            self._check_bounds(before, is_new=found is None, size=size)
            if digest not in self.blobs:
                raise Conflict("the module is not there any more: upload it again")
            version = Version(
                tenant,
                plugin,
                before.next_number,
                digest,
                size,
                "compiling",
                None,
                settings,
                self._now(),
            )
            self._store.add_version(version)
            self._plugins[tenant][plugin] = before.with_version(version)
            return version

    def _check_bounds(self, plugin: Plugin, *, is_new: bool, size: int) -> None:
        plugins = self._plugins[plugin.tenant]
        if is_new and len(plugins) >= self.bounds.plugins:
            raise TooMany(f"there are {len(plugins)} plugins, which is the most there may be")
        if len(plugin.versions) >= self.bounds.versions:
            raise TooMany(
                f"{plugin.name} has {len(plugin.versions)} versions, the most it may have: "
                "remove one"
            )
        stored = sum(v.size for p in plugins.values() for v in p.versions.values())
        if stored + size > self.bounds.storage_bytes:
            raise TooMany(
                f"{size} bytes and the {stored} that are stored are above the limit of "
                f"{self.bounds.storage_bytes}: remove versions"
            )

    def mark_ready(self, version: Version) -> Version:
        """Say that a version is compiled; harmless when that is known.

        Raises:
            Missing: it is not there, or not any more.
            Conflict: it has failed.
        """
        return self._mark(version, "ready", None)

    def mark_failed(self, version: Version, error: str) -> Version:
        """Say that a version cannot be compiled, and why.

        Raises:
            Missing: it is not there, or not any more.
            Conflict: it is ready.
        """
        return self._mark(version, "failed", _storable(error, _MOST_ERROR))

    def _mark(self, of: Version, state: State, error: str | None) -> Version:
        tenant, plugin, number = of.tenant, of.plugin, of.number
        with self._changing:
            version = self.same(of)
            if version.state == state:
                return version
            if version.state != "compiling":
                raise Conflict(f"{plugin} {number} is {version.state} already")
            version = replace(version, state=state, error=error)
            self._store.set_state(version)
            plugins = self._plugins[tenant]
            plugins[plugin] = plugins[plugin].with_version(version)
            return version

    def remove_version(self, tenant: str, plugin: str, number: int) -> None:
        """Remove a version. Its number is not given again; its module goes with a sweep.

        Raises:
            Missing: it is not there.
            Conflict: an alias names it.
        """
        with self._changing:
            version = self.version(tenant, plugin, number)
            before = self._plugins[tenant][plugin]
            names = [alias.name for alias in before.aliases.values() if alias.number == number]
            if names:
                raise Conflict(f"{plugin} {number} is what {names[0]!r} names: switch that first")
            self._store.remove_version(version)
            self._plugins[tenant][plugin] = before.without_version(number)

    def remove_plugin(self, tenant: str, plugin: str) -> None:
        """Remove a plugin with its versions and aliases. Numbers begin at 1 if it comes again.

        Raises:
            Missing: the tenant has none of this name.
        """
        with self._changing:
            self.plugin(tenant, plugin)
            self._store.remove_plugin(tenant, plugin)
            del self._plugins[tenant][plugin]

    def plugins(self, tenant: str) -> list[Plugin]:
        """List a tenant's plugins, also those whose versions were all removed."""
        return list(self._plugins.get(tenant, {}).values())

    def plugin(self, tenant: str, plugin: str) -> Plugin:
        """Return a plugin with its versions and aliases; raises `Missing`."""
        found = self._plugins.get(tenant, {}).get(plugin)
        if found is None:
            raise Missing(f"there is no plugin {plugin!r:.80}")
        return found

    def has_plugin(self, tenant: str, plugin: str) -> bool:
        """Tell whether the tenant has one."""
        return plugin in self._plugins.get(tenant, {})

    def version(self, tenant: str, plugin: str, number: int) -> Version:
        """Return a version in whatever state it is; raises `Missing`."""
        version = self.plugin(tenant, plugin).versions.get(number)
        if version is None:
            raise Missing(f"{plugin} has no version {number}")
        return version

    def same(self, version: Version) -> Version:
        """Return that very version as it is now.

        Raises:
            Missing: it was removed; there may be another with its number, of a plugin that came again.
        """
        found = self.version(version.tenant, version.plugin, version.number)
        if found.id != version.id:
            raise Missing(f"{version.plugin} has no such version {version.number} any more")
        return found

    def unfinished(self) -> list[Version]:
        """List the versions of all tenants that are still to be compiled, after a restart too."""
        return [
            version
            for plugins in list(self._plugins.values())
            for plugin in list(plugins.values())
            for version in plugin.versions.values()
            if version.state == "compiling"
        ]

    def resolve(self, tenant: str, plugin: str, ref: str | int = LATEST) -> Version:
        """Return the version that a request means.

        Args:
            ref: "latest", the highest number that is ready; an alias; or a number.

        Raises:
            Missing: the tenant has no such plugin or version.
            NotReady: it is being compiled, or has failed.
        """
        found = self.plugin(tenant, plugin)
        text = str(ref)
        if text == LATEST:
            if found.latest is None:
                if not found.versions:
                    raise Missing(f"{plugin} has no version")
                raise NotReady(f"no version of {plugin} is ready")
            return found.versions[found.latest]
        alias = found.aliases.get(text)
        if alias is not None:
            return found.versions[alias.number]
        if not _NUMBER.fullmatch(text):
            raise Missing(f"{plugin} has no version or alias {text!r:.80}")
        version = self.version(tenant, plugin, int(text))
        if version.state == "compiling":
            raise NotReady(f"{plugin} {text} is being compiled")
        if version.state == "failed":
            raise NotReady(f"{plugin} {text} could not be compiled: {version.error}")
        return version

    def sweep(self) -> int:
        """Give back the disk space of modules that no version names any more; call it now and then.

        Spares what was written within the last hour, as a version may be about to name it.
        """
        with self._changing:
            return self.blobs.sweep(self._named(), _SWEEP_AGE_S)

    def _named(self) -> set[str]:
        return {
            version.digest
            for plugins in self._plugins.values()
            for plugin in plugins.values()
            for version in plugin.versions.values()
        }

    # ---- aliases ----

    def set_alias(self, tenant: str, plugin: str, alias: str, number: int) -> Alias:
        """Have an alias name a version, at once for all requests; harmless when it does.

        Raises:
            Invalid: the alias's name cannot be one.
            Missing: the tenant has no such version.
            NotReady: the version is being compiled, or has failed.
            TooMany: the plugin has as many aliases as it may.
        """
        _check_name("alias", alias)
        if alias == LATEST or alias.isdigit():
            raise Invalid(f"{alias!r} cannot be an alias: it means a version already")
        with self._changing:
            version = self.version(tenant, plugin, number)
            if version.state != "ready":
                raise NotReady(
                    f"{plugin} {number} is {version.state}: an alias names what is ready"
                )
            aliases = self._plugins[tenant][plugin].aliases
            before = aliases.get(alias)
            if before is None and len(aliases) >= self.bounds.aliases:
                raise TooMany(f"{plugin} has {len(aliases)} aliases, the most it may have")
            if before is not None and before.number == number:
                return before
            return self._switch(
                tenant, plugin, Alias(alias, number, None if before is None else before.number)
            )

    def roll_back(self, tenant: str, plugin: str, alias: str) -> Alias:
        """Have an alias name what it named before; once more, and it is as it was.

        Raises:
            Missing: the plugin has no such alias.
            Conflict: it named nothing before, or that was removed.
        """
        with self._changing:
            before = self._alias(tenant, plugin, alias)
            if before.previous is None:
                raise Conflict(f"there is no version that {alias!r} named before")
            return self._switch(tenant, plugin, Alias(alias, before.previous, before.number))

    def remove_alias(self, tenant: str, plugin: str, alias: str) -> None:
        """Remove an alias; raises `Missing`."""
        with self._changing:
            self._alias(tenant, plugin, alias)
            self._store.remove_alias(tenant, plugin, alias)
            plugins = self._plugins[tenant]
            plugins[plugin] = plugins[plugin].without_alias(alias)

    def _alias(self, tenant: str, plugin: str, alias: str) -> Alias:
        found = self.plugin(tenant, plugin).aliases.get(alias)
        if found is None:
            raise Missing(f"{plugin} has no alias {alias!r:.80}")
        return found

    def _switch(self, tenant: str, plugin: str, alias: Alias) -> Alias:
        self._store.put_alias(tenant, plugin, alias)
        plugins = self._plugins[tenant]
        plugins[plugin] = plugins[plugin].with_alias(alias)
        return alias

    # ---- answers given again ----

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
        if size > self.bounds.answer_bytes:
            raise TooLarge(f"an answer of {size} bytes is not kept for its idempotency key")
        with self._changing:
            self.tenant(tenant)
            now = self._now()
            if self._found(tenant, key, fingerprint) is not None:
                return
            kept = self._known[tenant]
            gone = [k for k, known in kept.items() if known.expires <= now or k == key]
            left = {k: known for k, known in kept.items() if k not in gone}
            room = self.bounds.answer_bytes - size - sum(known.size for known in left.values())
            for k in list(left):  # the oldest first
                if room >= 0 and len(left) < self.bounds.answers:
                    break
                gone.append(k)
                room += left.pop(k).size
            known = Known(tenant, key, fingerprint, size, now + for_s)
            self._store.remember(known, answer, gone)
            self._known[tenant] = {**left, key: known}

    def recall(self, tenant: str, key: str, fingerprint: str) -> Answer | None:
        """Return the answer that is kept for this request; None when there is none.

        Reads the disk when there is one, for as long as a query takes.

        Raises:
            Invalid: the key cannot be one.
            Conflict: the key is kept for another request.
        """
        _check_key(key)
        known = self._found(tenant, key, fingerprint)
        return None if known is None else self._store.recall(tenant, key)

    def _found(self, tenant: str, key: str, fingerprint: str) -> Known | None:
        known = self._known.get(tenant, {}).get(key)
        if known is None or known.expires <= self._now():
            return None
        if known.fingerprint != fingerprint:
            raise Conflict("the idempotency key was used for another request")
        return known

    # ---- audit ----

    def change(self, who: Principal, action: str, subject: str, work: Callable[[], _T]) -> _T:
        """Make a change, one of the above; what the audit log says of it is durable with it, or neither is.

        Args:
            action: what is asked for, "alias.set" for example.
            subject: what it is about, "wordcount/live" for example.
            work: makes the change. A problem that it raises is the entry's outcome.
        """
        with self._changing:
            try:
                with self._store.noting(self._entry(who.tenant, who.token_id, action, subject)):
                    return work()
            except Problem as problem:
                refused = self._entry(who.tenant, who.token_id, action, subject, problem.code)
                self._store.audit([refused])
                raise

    def audit_refusals(self, refusals: Iterable[tuple[Refusal, int]]) -> None:
        """Write how many requests were refused for their tokens."""
        with self._changing:
            entries = [
                self._entry(
                    one.tenant, one.token_id, "token.refuse", f"{one.peer} x{count}", one.code
                )
                for one, count in refusals
            ]
            if entries:
                self._store.audit(entries)

    def _entry(
        self, tenant: str, token: str, action: str, subject: str, outcome: str = "done"
    ) -> AuditEntry:
        self._last_audit_ns = max(self._last_audit_ns + 1, int(self._now() * 1e9))
        words = (_storable(text, _MOST_WORDS) for text in (action, subject, outcome))
        return AuditEntry(self._last_audit_ns, tenant, token, *words)

    def audit_log(
        self, tenant: str | None = None, limit: int = 100, before_ns: int | None = None
    ) -> list[AuditEntry]:
        """Return entries, the newest first. Reads the disk.

        Args:
            tenant: whose; None: everybody's, for the operator only.
            before_ns: only those before; the `at_ns` of the last one leads to the next page.
        """
        return self._store.audit_log(tenant, limit, before_ns)


def _storable(text: str, most: int) -> str:
    """Return the beginning of a text, without what UTF-8 has no bytes for."""
    return text[:most].encode("utf-8", "replace").decode()


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{name!r:.80} cannot be the name of {'an' if what == 'alias' else 'a'} {what}: it has 1 to "
            "63 lower-case letters, digits, '.', '_' or '-', the first and last a letter or digit"
        )


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise Invalid("an idempotency key has 1 to 255 printable characters of ASCII, no blanks")
