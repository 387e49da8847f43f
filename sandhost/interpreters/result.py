"""What came of running code in a guest."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import LimitExceeded
from ..units import format_bytes

__all__ = ["Answer", "CodeError", "Repr", "Result", "ValueTooLarge", "check_size"]


class ValueTooLarge(LimitExceeded):
    """A value or an exception takes more bytes than the box's `value_limit`. A session goes on."""


def check_size(length: int, most: int) -> None:
    """Hold the length of an answer against the box's limit.

    Raises:
        ValueTooLarge: it is above.
    """
    if length > most:
        raise ValueTooLarge(
            f"the value takes {format_bytes(length)} as JSON; the box allows {format_bytes(most)}: "
            "return less, or make the box with another value_limit"
        )


class CodeError(NamedTuple):
    """The exception that ended the code."""

    type: str
    """Its name, with the module unless it is a builtin: "ZeroDivisionError", "json.JSONDecodeError"."""
    message: str
    traceback: str
    """As the interpreter shows it, with the source lines it knows."""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Repr(str):
    """What `repr()` said, in the guest, of a value that is no plain data. Not the value itself."""

    __slots__ = ()


class Answer(NamedTuple):
    """What an interpreter says of one run; its output comes apart."""

    value: Any = None
    error: CodeError | None = None
    exit_status: int = 0


class Result(NamedTuple):
    """What came of one run. All of it is what the guest says: treat it as input from a stranger."""

    value: Any
    """Of the last statement, if that is an expression; else None."""
    stdout: str
    """What was written to standard output, as UTF-8; other bytes are replaced by U+FFFD."""
    stderr: str
    error: CodeError | None
    """The exception that ended the code, None when it ended by itself or by an exit."""
    exit_status: int
    """0; what the code gave to `sys.exit`; 1 after an exception."""
    output_dropped: int
    """Bytes of output beyond the limit, both streams together."""

    @property
    def ok(self) -> bool:
        """Whether it ended without exception, and with status 0."""
        return self.error is None and self.exit_status == 0
