"""The database's file: opened as the store needs it, of the newest revision, and by one process only."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine.interfaces import DBAPIConnection

from ..errors import ConfigError
from .blobs import Step, no_step

__all__ = ["migrate", "open_engine", "take_folder"]

_MIGRATIONS = Path(__file__).with_name("migrations")
# FULL: a commit is on the disk when it returns, also when the power fails. SQLite's default of one second's
# patience is for readers that meet the end of a log.
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=1000")


def take_folder(folder: Path) -> int:
    """Keep other processes out of a folder until the descriptor that is returned is closed.

    Raises:
        ConfigError: another one has it.
    """
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace") or "unknown"
        os.close(file)
        raise ConfigError(
            f"the data folder {folder} is in use by process {holder}: stop that, or use another folder"
        ) from None
    except BaseException:
        os.close(file)
        raise
    return file


def open_engine(path: Path, step: Step = no_step) -> sa.Engine:
    """Return an engine on the file, which is made if there is none."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its logs the same mode
    engine = sa.create_engine(f"sqlite:///{path}")

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _record: object) -> None:
        # Python's module would begin transactions at its own discretion, and none for DDL.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    if step is not no_step:

        @sa.event.listens_for(engine, "after_cursor_execute")
        def executed(*_: object) -> None:
            step("store.statement")

    return engine


def migrate(connection: sa.Connection, path: Path) -> None:
    """Bring the database to the newest revision, in the transaction that the connection is in.

    Raises:
        ConfigError: a newer sandhost has written it.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision == newest:
        return
    known = {script.revision for script in scripts.walk_revisions()}
    if revision is not None and revision not in known:
        raise ConfigError(
            f"{path} was written by a newer sandhost: its revision is {revision!r:.40}, this one knows up to "
            f"{newest!r}; run that version, or use another data folder"
        )
    command.upgrade(config, "head")
