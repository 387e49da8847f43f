"""Where the service is, who asks, and how patiently: frozen, and checked when it is made."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..units import parse_bytes, parse_seconds

__all__ = ["Retry", "Secret", "Settings"]

_TOKEN = re.compile(r"[\x21-\x7e]{1,500}")


class Secret:
    """A token that is shown only to who asks for it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not _TOKEN.fullmatch(text):
            raise ConfigError("the token is empty, or has characters that no token has")
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and for how long, a request is made again that may be made again.

    Args:
        attempts: of one request, the first included.
        within_s: seconds from the first one's begin in which the last one has to begin.
        first_s: the pause before the second; each further one is twice as long, up to `most_s`. Half of
            each is left to chance. What the service asks for with Retry-After comes on top.
    """

    attempts: int = 5
    within_s: float = 30.0
    first_s: float = 0.1
    most_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 < self.first_s <= self.most_s or not self.within_s >= 0:
            raise ConfigError(f"{self} cannot be meant: give times above 0 and 1 attempt or more")

    def pause_s(self, failed: int, hint_s: float | None, chance: float) -> float:
        """Return the seconds to wait after so many failed attempts.

        Args:
            hint_s: what the service asked for.
            chance: 0 to 1.
        """
        longest_s = min(self.most_s, self.first_s * 2.0 ** min(failed - 1, 60))
        return (hint_s or 0.0) + longest_s * (1 + chance) / 2


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client is made with; see `Client`."""

    url: str
    """Without a "/" at its end."""
    token: Secret | None
    timeout_s: float
    answer_limit: int
    """Bytes."""
    retry: Retry | None
    tls: ssl.SSLContext | None

    @classmethod
    def make(
        cls,
        url: str | None,
        token: str | None,
        timeout_s: float | str,
        answer_limit: int | str,
        retry: Retry | None,
        tls: ssl.SSLContext | None,
    ) -> Settings:
        """Check the values; what is not given comes from SANDHOST_URL and SANDHOST_TOKEN.

        Raises:
            ConfigError: there is no address, or one of them cannot be meant.
        """
        where = url or os.environ.get("SANDHOST_URL")
        if not where:
            raise ConfigError("where is the service? Give its url, or set SANDHOST_URL")
        who = os.environ.get("SANDHOST_TOKEN") if token is None else token
        patience_s = parse_seconds(timeout_s)
        if not patience_s:
            raise ConfigError("timeout_s is more than 0 seconds")
        return cls(
            _checked(where),
            Secret(who.strip()) if who is not None else None,
            patience_s,
            parse_bytes(answer_limit),
            retry,
            tls,
        )


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(f"{url!r:.100} is no address of a service: write http://HOST:PORT")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("an address holds no name and no password: the token says who asks")
    return url.rstrip("/")
