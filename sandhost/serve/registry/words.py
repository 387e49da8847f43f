"""Texts from outside: which may be names, and how the others are kept."""

from __future__ import annotations

import re

from ..problems import Invalid

__all__ = ["MOST_WORDS", "check_name", "storable"]

MOST_WORDS = 200
"""Characters of a text that is kept for a person to read."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


def check_name(what: str, name: str) -> None:
    """Refuse what cannot be the name of a tenant, a plugin or an alias; raises `Invalid`."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{name!r:.80} cannot be the name of {'an' if what == 'alias' else 'a'} {what}: it has 1 to "
            "63 lower-case letters, digits, '.', '_' or '-', the first and last a letter or digit"
        )


def storable(text: str, most: int) -> str:
    """Return the beginning of a text, without what UTF-8 has no bytes for."""
    return text[:most].encode("utf-8", "replace").decode()
