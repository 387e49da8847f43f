"""The tables, as the newest migration leaves them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

__all__ = ["aliases", "answers", "audit", "metadata", "plugins", "tenants", "tokens", "versions"]

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("quotas", JSON, nullable=False),
)

# A revoked token stays, so that it is never let in again.
tokens = Table(
    "tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name"), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("label", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
)

# A plugin stays when its versions are gone, so that no number is given twice.
plugins = Table(
    "plugins",
    metadata,
    Column("tenant", Text, ForeignKey("tenants.name"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("next_number", Integer, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("plugin", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("error", Text),
    Column("settings", JSON, nullable=False),
    Column("created", Float, nullable=False),
    ForeignKeyConstraint(["tenant", "plugin"], ["plugins.tenant", "plugins.name"]),
    CheckConstraint("state IN ('compiling', 'ready', 'failed')", name="known_state"),
)

# `previous` has no foreign key: that would take a whole row's key to NULL.
aliases = Table(
    "aliases",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("plugin", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("previous", Integer),
    ForeignKeyConstraint(
        ["tenant", "plugin", "number"], ["versions.tenant", "versions.plugin", "versions.number"]
    ),
)

audit = Table(
    "audit",
    metadata,
    Column("at_ns", Integer, primary_key=True, autoincrement=False),
    Column("tenant", Text, nullable=False),
    Column("token_id", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Index("audit_of_tenant", "tenant", "at_ns"),
)

answers = Table(
    "answers",
    metadata,
    Column("tenant", Text, ForeignKey("tenants.name"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("expires", Float, nullable=False),
    Column("status", Integer, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)
