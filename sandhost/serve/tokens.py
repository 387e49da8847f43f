"""Tokens: what a client shows, and the digest that is all the service keeps of it.

A token is 256 random bits. Nobody finds those by guessing, however fast the hash is, so SHA-256 without a
salt is enough: a slow hash protects passwords, which are few and guessable, and would cost every request
its time. Since the digest is what is looked up, how much of a token is right changes nothing of how long
the answer takes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from enum import Enum

__all__ = ["Scope", "digest_of", "is_token", "new_token", "token_id"]

_TOKEN = re.compile(r"sh_[A-Za-z0-9_-]{43}")


class Scope(str, Enum):
    """What a token is good for. None includes another."""

    DEPLOY = "deploy"
    """Upload, remove and switch versions of the tenant's own plugins."""
    INVOKE = "invoke"
    """Call the tenant's own plugins."""
    ADMIN = "admin"
    """Tenants, quotas, tokens and audit log of the whole service: for its operator."""


def new_token() -> tuple[str, bytes]:
    """Return a new token, "sh_" and 43 characters, and its digest."""
    text = f"sh_{secrets.token_urlsafe(32)}"
    return text, digest_of(text)


def is_token(text: str) -> bool:
    """Tell whether it is written like a token."""
    return _TOKEN.fullmatch(text) is not None


def digest_of(text: str) -> bytes:
    """Return the 32 bytes under which a token is known."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def token_id(digest: bytes) -> str:
    """Return what people call a token by: 16 hexadecimal digits, of no use as a token."""
    return digest[:8].hex()
