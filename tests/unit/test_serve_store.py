"""The store: its folder, its revisions, and that a change is whole or not at all."""

from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from sandhost import ConfigError, Limits
from sandhost.serve import database, store
from sandhost.serve.records import (
    Alias,
    AuditEntry,
    Grants,
    Plugin,
    Tenant,
    Token,
    Version,
    VersionSettings,
)
from sandhost.serve.schema import metadata
from sandhost.serve.store import Store
from sandhost.serve.tokens import Scope, new_token, token_id
from sandhost.tenants import Quotas

NEWEST = "r2"
SETTINGS = VersionSettings(
    Limits(memory="16 MiB", deadline=0.25), Grants(("wc", "-l"), (("A", "1"),)), "init"
)


class Stop(BaseException):
    """The machine stops here."""


def version(number: int = 1, **changes) -> Version:
    fields = {
        "tenant": "acme",
        "plugin": "wc",
        "number": number,
        "digest": "0" * 64,
        "size": 3,
        "state": "ready",
        "error": None,
        "settings": SETTINGS,
        "created": 5.5,
    }
    return Version(**{**fields, **changes})


def fill(into: Store) -> tuple[bytes, Token]:
    _, digest = new_token()
    token = Token(token_id(digest), "acme", frozenset([Scope.DEPLOY, Scope.INVOKE]), "ci", 1.0, 2.5)
    into.put_tenant(Tenant("acme", Quotas(memory_limit=5, cpus=0.5)))
    into.put_token(digest, token)
    into.add_version(version())
    into.add_version(version(2))
    into.put_alias("acme", "wc", Alias("live", 2, 1))
    return digest, token


def test_what_was_written_is_read(tmp_path):
    with Store(tmp_path) as first:
        digest, token = fill(first)
    with Store(tmp_path) as second:
        kept = second.load(0.0)
    assert kept.tenants == [Tenant("acme", Quotas(memory_limit=5, cpus=0.5))]
    assert kept.tokens == {digest: token}
    versions = {1: version(1), 2: version(2)}
    assert kept.plugins == [Plugin("acme", "wc", 3, versions, {"live": Alias("live", 2, 1)})]
    assert kept.plugins[0].latest == 2
    assert kept.plugins[0].versions[1].settings == SETTINGS


def test_only_their_owner_can_read_the_files(tmp_path):
    before = os.umask(0)
    try:
        with Store(tmp_path / "data") as kept:
            fill(kept)
            modes = {path.name: path.stat().st_mode & 0o777 for path in kept.folder.iterdir()}
    finally:
        os.umask(before)
    assert modes == {
        "lock": 0o600,
        "registry.db": 0o600,
        "registry.db-wal": 0o600,
        "registry.db-shm": 0o600,
        "blobs": 0o700,
    }
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_no_token_is_on_the_disk(tmp_path):
    with Store(tmp_path) as kept:
        kept.put_tenant(Tenant("acme"))
        text, digest = new_token()
        kept.put_token(digest, Token("i", "acme", frozenset([Scope.ADMIN]), "", 1.0, None))
        everything = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert digest in everything
    assert text.encode() not in everything
    assert text[3:].encode() not in everything


def test_each_commit_is_synced(tmp_path):
    with Store(tmp_path) as kept, kept._read() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


# ---- one process at a time ----


def open_elsewhere(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from sandhost.serve.store import Store; Store(sys.argv[1]).close()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,  # not where the sources are: Python 3.10 imports from there
        check=False,
    )


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path):
    with Store(tmp_path):
        second = open_elsewhere(tmp_path)
        assert second.returncode == 1
        assert second.stderr.splitlines()[-1] == (
            f"sandhost.errors.ConfigError: the data folder {tmp_path} is in use by process {os.getpid()}: "
            "stop that, or use another folder"
        )
    assert open_elsewhere(tmp_path).stderr == ""


def test_a_second_store_of_this_process_is_refused_too(tmp_path):
    first = Store(tmp_path)
    with pytest.raises(ConfigError, match="is in use by process"):
        Store(tmp_path)
    first.close()
    first.close()
    Store(tmp_path).close()


def test_a_child_of_the_process_does_not_keep_the_folder(tmp_path):
    first = Store(tmp_path)
    child = subprocess.Popen(["sleep", "60"])
    try:
        first.close()
        Store(tmp_path).close()
    finally:
        child.kill()
        child.wait()


# ---- revisions ----


def upgrade(path: Path, revision: str) -> None:
    """Bring a database to an older revision than the store would."""
    engine = database.open_engine(path)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(database._MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def revision_of(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


def test_the_newest_revision_is_what_the_store_uses(tmp_path):
    Store(tmp_path).close()
    engine = database.open_engine(tmp_path / "registry.db")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        checks = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'versions'")
        assert "CONSTRAINT known_state CHECK" in checks.scalar_one()
    engine.dispose()
    assert revision_of(tmp_path / "registry.db") == NEWEST


def test_the_first_revision_is_upgraded_with_what_is_in_it(tmp_path):
    path = tmp_path / "registry.db"
    upgrade(path, "r1")
    with closing(sqlite3.connect(path)) as old:
        tables = {
            row[0] for row in old.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        assert "audit" not in tables
        old.execute("INSERT INTO tenants VALUES ('acme', '{\"guests\": 5}')")
        old.execute("INSERT INTO plugins VALUES ('acme', 'wc', 8)")
        old.commit()
    with Store(tmp_path) as kept:
        found = kept.load(0.0)
        assert found.tenants == [Tenant("acme", Quotas(guests=5))]
        assert found.plugins == [Plugin("acme", "wc", 8)]
        kept.audit([AuditEntry(1, "acme", "t", "a", "s", "done")])
    assert revision_of(path) == NEWEST


def test_an_empty_file_is_a_database_that_is_still_to_be_made(tmp_path):
    (tmp_path / "registry.db").touch()
    with Store(tmp_path) as kept:
        assert kept.load(0.0).tenants == []


def test_a_newer_database_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "registry.db"
    Store(tmp_path).close()
    with closing(sqlite3.connect(path)) as newer:
        newer.execute("UPDATE alembic_version SET version_num = 'r99'")
        newer.commit()
    with pytest.raises(ConfigError) as caught:
        Store(tmp_path)
    assert str(caught.value) == (
        f"{path} was written by a newer sandhost: its revision is 'r99', this one knows up to '{NEWEST}'; "
        "run that version, or use another data folder"
    )
    assert revision_of(path) == "r99"
    with pytest.raises(ConfigError, match="newer sandhost"):  # and not that it is in use
        Store(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "registry.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(ConfigError, match="registry.db cannot be used as a database: file is not"):
        Store(tmp_path)
    Path(tmp_path / "registry.db").unlink()
    Store(tmp_path).close()


@pytest.mark.parametrize("first", ["", "r1"])
def test_a_migration_that_is_stopped_anywhere_is_not_begun_at_all(tmp_path, first):
    """Every statement of it, one after the other, is the last that this process makes."""
    at = 0
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        if first:
            upgrade(folder / "registry.db", first)
        left = at

        def step(name):
            nonlocal left
            if name in ("store.statement", "store.commit"):
                left -= 1
                if left < 0:
                    raise Stop

        try:
            Store(folder, step).close()
            break
        except Stop:
            pass
        gc.collect()  # a traceback may keep a cursor, and that its connection; a real stop keeps none
        with closing(sqlite3.connect(folder / "registry.db")) as found:
            tables = {row[0] for row in found.execute("SELECT name FROM sqlite_master")}
        if first:
            assert revision_of(folder / "registry.db") == first
            assert "audit" not in tables
        else:
            assert tables == set()
        with Store(folder) as kept:
            fill(kept)
        at += 1
    assert at > (3 if first else 10)


# ---- transactions ----


def test_a_version_whose_second_statement_fails_leaves_no_plugin(tmp_path):
    with Store(tmp_path) as kept:
        kept.put_tenant(Tenant("acme"))
        with pytest.raises(sa.exc.IntegrityError):
            kept.add_version(version(state="strange"))
        assert kept.load(0.0).plugins == []
        kept.add_version(version())


def test_what_is_named_cannot_be_removed_and_what_is_not_there_not_be_named(tmp_path):
    """The database refuses it too, whatever the registry thinks."""
    with Store(tmp_path) as kept:
        fill(kept)
        with pytest.raises(sa.exc.IntegrityError):
            kept.remove_version(version(2))
        with pytest.raises(sa.exc.IntegrityError):
            kept.put_alias("acme", "wc", Alias("live", 3, 2))
        with pytest.raises(sa.exc.IntegrityError):
            kept.put_alias("other", "wc", Alias("live", 1, None))
        assert kept.load(0.0).plugins[0].aliases == {"live": Alias("live", 2, 1)}


def test_each_tenant_keeps_its_newest_entries_of_the_audit_log(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_AUDIT_ENTRIES", 10)
    monkeypatch.setattr(store, "_AUDIT_TRIM", 5)
    with Store(tmp_path) as kept:
        kept.audit([AuditEntry(1, "quiet", "t", "a", "s", "done")])
        for at in range(2, 52):
            kept.audit([AuditEntry(at, "loud", "t", "a", "s", "done")])
        assert [entry.at_ns for entry in kept.audit_log("quiet", 100, None)] == [1]
        loud = [entry.at_ns for entry in kept.audit_log("loud", 100, None)]
        assert loud == list(range(51, 51 - len(loud), -1))
        assert 10 <= len(loud) < 15
        assert [entry.at_ns for entry in kept.audit_log("loud", 3, 50)] == [49, 48, 47]
