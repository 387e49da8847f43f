"""What can go wrong before the service has said anything. What it says are problems: protocol/problems.py."""

from __future__ import annotations

from ..errors import SandhostError

__all__ = ["BadAnswer", "Unreachable"]


class Unreachable(SandhostError):
    """There is no connection to the service, or it was lost."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent
        """Whether the service may have got the request, and done it."""


class BadAnswer(SandhostError):
    """What answered is no service of sandhost's, or says more than is taken."""
