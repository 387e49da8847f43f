"""What survives a restart: SQLite and the modules, in one folder that one process at a time uses.

    FOLDER/lock          held as long as the store is open
    FOLDER/registry.db   records, in SQLite; write-ahead log, each commit synced
    FOLDER/blobs/        modules, by digest

Every method that changes something is one transaction: when it has returned, the change is durable, and
when it has not, the change is wholly there or not at all. Whoever calls makes changes one at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from ..errors import ConfigError
from ..tenants import Quotas
from .blobs import Blobs, Step, no_step
from .database import migrate, open_engine, take_folder
from .records import (
    Alias,
    Answer,
    AuditEntry,
    Plugin,
    Tenant,
    Token,
    Version,
    VersionSettings,
)
from .schema import aliases, answers, audit, plugins, tenants, tokens, versions
from .tokens import Scope, token_id

__all__ = ["Kept", "Known", "Store", "StoreError"]

StoreError = sa.exc.SQLAlchemyError
"""What every method of the store raises, beside OSError, when the database cannot be used."""

_AUDIT_ENTRIES = 100_000
"""Kept of each tenant, some 20 MB; the oldest go. One tenant's do not push out another's."""
_AUDIT_TRIM = 1000  # writes of a tenant's to one that removes what is too much


class Known(NamedTuple):
    """What is known of an answer without reading it."""

    tenant: str
    key: str
    fingerprint: str
    size: int
    expires: float


@dataclass(frozen=True, slots=True)
class Kept:
    """All that a registry keeps in memory."""

    tenants: list[Tenant]
    tokens: dict[bytes, Token]
    """By digest, without those that were revoked."""
    revoked: set[bytes]
    plugins: list[Plugin]
    known: list[Known]
    """The oldest first."""
    last_audit_ns: int


class Store:
    """The folder, open. Close it, or use it in a `with` block.

    Raises:
        ConfigError: another process uses the folder, a newer sandhost has written it, or its
            database is none.
        OSError: the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str], step: Step = no_step) -> None:
        self.folder = Path(folder)
        self._step = step
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock: int | None = take_folder(self.folder)
        self._engine: sa.Engine | None = None
        self._audited: Counter[str] = Counter()
        self._note: AuditEntry | None = None
        """Goes into the next transaction; see `noting`."""
        database = self.folder / "registry.db"
        try:
            self.blobs = Blobs(self.folder / "blobs", step)
            self._engine = open_engine(database, step)
            with self._write() as connection:
                migrate(connection, database)
        except sa.exc.DatabaseError as error:
            self.close()
            raise ConfigError(f"{database} cannot be used as a database: {error.orig}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the folder free for another process; closing twice is harmless."""
        if self._engine is not None:
            self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """One transaction, durable at the end of the block."""
        assert self._engine is not None
        self._step("store.begin")
        with self._engine.begin() as connection:
            yield connection
            if self._note is not None:
                self._add_audit(connection, self._note)
            self._step("store.commit")
        self._note = None
        self._step("store.done")

    @contextmanager
    def noting(self, entry: AuditEntry) -> Iterator[None]:
        """Have the audit log say it in the same transaction as the block's change, or alone if it makes none."""
        self._note = entry
        try:
            yield
            if self._note is not None:
                with self._write():
                    pass
        finally:
            self._note = None

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        assert self._engine is not None
        with self._engine.connect() as connection:
            yield connection

    # ---- reading ----

    def load(self, now: float) -> Kept:
        """Return all but audit log and answers' bodies; answers that expired before are removed."""
        with self._write() as connection:
            connection.execute(sa.delete(answers).where(answers.c.expires <= now))
            rows = connection.execute(sa.select(tokens)).all()
            known = connection.execute(
                sa.select(
                    answers.c.tenant,
                    answers.c.key,
                    answers.c.fingerprint,
                    sa.func.length(answers.c.body),
                    answers.c.expires,
                ).order_by(answers.c.expires)
            )
            return Kept(
                [
                    Tenant(row.name, Quotas(**row.quotas))
                    for row in connection.execute(sa.select(tenants))
                ],
                {row.digest: _token(row) for row in rows if row.revoked is None},
                {row.digest for row in rows if row.revoked is not None},
                _plugins(connection),
                [Known._make(row) for row in known],
                connection.scalar(sa.select(sa.func.max(audit.c.at_ns))) or 0,
            )

    def recall(self, tenant: str, key: str) -> Answer | None:
        """Return an answer; None when it is not kept any more."""
        query = sa.select(answers.c.status, answers.c.media_type, answers.c.body)
        with self._read() as connection:
            row = connection.execute(
                query.where(answers.c.tenant == tenant, answers.c.key == key)
            ).one_or_none()
        return None if row is None else Answer(row.status, row.media_type, row.body)

    def audit_log(self, tenant: str | None, limit: int, before_ns: int | None) -> list[AuditEntry]:
        """Return entries of one tenant or of all, the newest first."""
        query = sa.select(audit).order_by(audit.c.at_ns.desc()).limit(limit)
        if tenant is not None:
            query = query.where(audit.c.tenant == tenant)
        if before_ns is not None:
            query = query.where(audit.c.at_ns < before_ns)
        with self._read() as connection:
            return [AuditEntry(*row) for row in connection.execute(query)]

    # ---- changing ----

    def put_tenant(self, tenant: Tenant) -> None:
        """Write a tenant, new or changed."""
        quotas = {k: v for k, v in tenant.quotas._asdict().items() if v is not None}
        with self._write() as connection:
            connection.execute(
                insert(tenants)
                .values(name=tenant.name, quotas=quotas)
                .on_conflict_do_update(index_elements=["name"], set_={"quotas": quotas})
            )

    def put_token(self, digest: bytes, token: Token) -> None:
        """Write a new token."""
        with self._write() as connection:
            connection.execute(
                sa.insert(tokens).values(
                    digest=digest,
                    tenant=token.tenant,
                    scopes=sorted(scope.value for scope in token.scopes),
                    label=token.label,
                    created=token.created,
                    expires=token.expires,
                )
            )

    def revoke_token(self, digest: bytes, at: float) -> None:
        """Write that a token is not to be let in any more."""
        with self._write() as connection:
            connection.execute(
                sa.update(tokens).where(tokens.c.digest == digest).values(revoked=at)
            )

    def add_version(self, version: Version) -> None:
        """Write a new version, its plugin too if need be, and that its number is taken."""
        taken = {"next_number": version.number + 1}
        with self._write() as connection:
            connection.execute(
                insert(plugins)
                .values(tenant=version.tenant, name=version.plugin, **taken)
                .on_conflict_do_update(index_elements=["tenant", "name"], set_=taken)
            )
            connection.execute(
                sa.insert(versions).values(
                    tenant=version.tenant,
                    plugin=version.plugin,
                    number=version.number,
                    digest=version.digest,
                    size=version.size,
                    state=version.state,
                    error=version.error,
                    settings=version.settings.as_json(),
                    created=version.created,
                )
            )

    def set_state(self, version: Version) -> None:
        """Write a version's new state."""
        with self._write() as connection:
            connection.execute(
                sa.update(versions)
                .where(*_is(version))
                .values(state=version.state, error=version.error)
            )

    def remove_version(self, version: Version) -> None:
        """Remove a version that no alias names; aliases that named it before do so no more."""
        with self._write() as connection:
            connection.execute(
                sa.update(aliases)
                .where(
                    aliases.c.tenant == version.tenant,
                    aliases.c.plugin == version.plugin,
                    aliases.c.previous == version.number,
                )
                .values(previous=None)
            )
            connection.execute(sa.delete(versions).where(*_is(version)))

    def remove_plugin(self, tenant: str, plugin: str) -> None:
        """Remove a plugin with its versions and aliases."""
        with self._write() as connection:
            for table in (aliases, versions):
                connection.execute(
                    sa.delete(table).where(table.c.tenant == tenant, table.c.plugin == plugin)
                )
            connection.execute(
                sa.delete(plugins).where(plugins.c.tenant == tenant, plugins.c.name == plugin)
            )

    def remove_tenant(self, tenant: str) -> None:
        """Remove a tenant with all that is its own but the audit log."""
        with self._write() as connection:
            for table in (answers, aliases, versions, plugins, tokens):
                connection.execute(sa.delete(table).where(table.c.tenant == tenant))
            connection.execute(sa.delete(tenants).where(tenants.c.name == tenant))

    def put_alias(self, tenant: str, plugin: str, alias: Alias) -> None:
        """Write an alias, new or switched."""
        to = {"number": alias.number, "previous": alias.previous}
        with self._write() as connection:
            connection.execute(
                insert(aliases)
                .values(tenant=tenant, plugin=plugin, name=alias.name, **to)
                .on_conflict_do_update(index_elements=["tenant", "plugin", "name"], set_=to)
            )

    def remove_alias(self, tenant: str, plugin: str, name: str) -> None:
        """Remove an alias."""
        with self._write() as connection:
            connection.execute(
                sa.delete(aliases).where(
                    aliases.c.tenant == tenant, aliases.c.plugin == plugin, aliases.c.name == name
                )
            )

    def remember(self, known: Known, answer: Answer, gone: Collection[str]) -> None:
        """Write an answer, and remove those of the same tenant with these keys."""
        with self._write() as connection:
            for key in gone:
                connection.execute(
                    sa.delete(answers).where(answers.c.tenant == known.tenant, answers.c.key == key)
                )
            connection.execute(
                sa.insert(answers).values(
                    tenant=known.tenant,
                    key=known.key,
                    fingerprint=known.fingerprint,
                    expires=known.expires,
                    status=answer.status,
                    media_type=answer.media_type,
                    body=answer.body,
                )
            )

    def audit(self, entries: Collection[AuditEntry]) -> None:
        """Write entries, all or none; the oldest make room."""
        with self._write() as connection:
            for entry in entries:
                self._add_audit(connection, entry)

    def _add_audit(self, connection: sa.Connection, entry: AuditEntry) -> None:
        connection.execute(
            sa.insert(audit).values(
                at_ns=entry.at_ns,
                tenant=entry.tenant,
                token_id=entry.token_id,
                action=entry.action,
                subject=entry.subject,
                outcome=entry.outcome,
            )
        )
        if self._audited[entry.tenant] % _AUDIT_TRIM == 0:
            mine = audit.c.tenant == entry.tenant
            newest_gone = (
                sa.select(audit.c.at_ns)
                .where(mine)
                .order_by(audit.c.at_ns.desc())
                .limit(1)
                .offset(_AUDIT_ENTRIES)
                .scalar_subquery()
            )
            connection.execute(sa.delete(audit).where(mine, audit.c.at_ns <= newest_gone))
        self._audited[entry.tenant] += 1


def _is(version: Version) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        versions.c.tenant == version.tenant,
        versions.c.plugin == version.plugin,
        versions.c.number == version.number,
    )


def _token(row: sa.Row[Any]) -> Token:
    scopes = frozenset(map(Scope, row.scopes))
    return Token(token_id(row.digest), row.tenant, scopes, row.label, row.created, row.expires)


def _plugins(connection: sa.Connection) -> list[Plugin]:
    of: dict[tuple[str, str], tuple[dict[int, Version], dict[str, Alias]]] = {}
    numbers: dict[tuple[str, str], int] = {}
    for row in connection.execute(sa.select(plugins)):
        of[row.tenant, row.name] = {}, {}
        numbers[row.tenant, row.name] = row.next_number
    for row in connection.execute(sa.select(versions)):
        settings = VersionSettings.from_json(row.settings)
        fields = {**row._mapping, "settings": settings}
        of[row.tenant, row.plugin][0][row.number] = Version(**fields)
    for row in connection.execute(sa.select(aliases)):
        alias = Alias(row.name, row.number, row.previous)
        of[row.tenant, row.plugin][1][row.name] = alias
    return [
        Plugin(*names, numbers[names], MappingProxyType(its), MappingProxyType(named))
        for names, (its, named) in of.items()
    ]
