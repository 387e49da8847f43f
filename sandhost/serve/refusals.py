"""Requests that are refused for their token: counted, and told to the audit log once a minute.

Nobody is throttled for guessing. A token is 256 random bits: at a million guesses a second the sun goes out first.
A wrong one costs its hash and a look into a dictionary, whatever is right of it. And a throttle by address would let
one client behind a proxy keep out all others behind it. What guessing must not do is fill the disk or the memory, so
refusals that are alike are one entry with a number, and there are only so many different ones.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

__all__ = ["Refusal", "Refusals"]

_MOST = 64
"""Kinds that are told apart in a minute; the rest is one more. Arbitrary: 100,000 entries then last a day."""
_OTHERS = "others"


class Refusal(NamedTuple):
    """What is told apart."""

    code: str
    """Of the problem: "unknown", "denied"."""
    tenant: str
    """Empty where the token is nobody's."""
    token_id: str
    """Of a token with another scope, or one that was valid once; else empty, never a part of what was guessed."""
    peer: str
    """Address of the client; "others" where there were too many."""


class Refusals:
    """Those since the last `take`, and how many there were since the start. For one event loop."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        """By code."""
        self._since: Counter[Refusal] = Counter()

    def note(self, refusal: Refusal) -> None:
        """Count one."""
        self.total[refusal.code] += 1
        if refusal not in self._since and len(self._since) >= _MOST:
            refusal = Refusal(refusal.code, "", "", _OTHERS)
        self._since[refusal] += 1

    def take(self) -> list[tuple[Refusal, int]]:
        """Return those since the last time, with how many of each."""
        since, self._since = self._since, Counter()
        return list(since.items())
