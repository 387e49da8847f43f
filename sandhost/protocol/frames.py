"""What a command writes while it runs: lines of JSON.

{"stdout": "aGVsbG8K"}        in base64, as it is written
{"stderr": "…"}
{"exit": 0}                   the last line; or {"problem": "guest-failed", "detail": …}
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Literal, NamedTuple

from .problems import Problem, kind_of

__all__ = ["MEDIA_TYPE", "Lines", "Piece", "Stream", "end_line", "piece_line"]

MEDIA_TYPE = "application/x-ndjson"
Stream = Literal["stdout", "stderr"]

_MOST_LINE = 16 << 20
"""Bytes. The service's lines are far shorter; one without an end is no reason to run out of memory."""


class Piece(NamedTuple):
    """What a command wrote at once."""

    stream: Stream
    data: bytes


def piece_line(stream: Stream, data: bytes) -> bytes:
    """Return the line of a piece."""
    return _line({stream: base64.b64encode(data).decode()})


def end_line(result: int | Problem) -> bytes:
    """Return the last line: the command's exit status, or why it has none."""
    if isinstance(result, Problem):
        return _line({"problem": result.code, "detail": result.detail, **result.facts})
    return _line({"exit": result})


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record).encode() + b"\n"


class Lines:
    """Reads lines as they come, cut anywhere.

    Invariant: `_rest` is the beginning of one line, without its end.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self.end: int | Problem | None = None
        """What the last line says; None until it has come."""

    def feed(self, data: bytes) -> list[Piece]:
        """Return the pieces that are whole now.

        Raises:
            ValueError: these are no such lines.
        """
        self._rest += data
        *whole, rest = self._rest.split(b"\n") if b"\n" in data else [self._rest]
        self._rest = rest
        if len(rest) > _MOST_LINE:
            raise ValueError(f"a line of a command has more than {_MOST_LINE:,} bytes")
        return [piece for line in whole if (piece := self._read(line)) is not None]

    def _read(self, line: bytes | bytearray) -> Piece | None:
        record = json.loads(line)
        if not isinstance(record, dict) or self.end is not None:
            raise ValueError("a line of a command is no object, or comes after the last")
        for stream in ("stdout", "stderr"):
            if stream in record:
                return Piece(stream, _bytes(record[stream]))
        if type(record.get("exit")) is int:
            self.end = record["exit"]
            return None
        code, detail = record.pop("problem", None), record.pop("detail", "")
        if not isinstance(code, str) or not isinstance(detail, str):
            raise ValueError("a line of a command says nothing that is known")
        self.end = kind_of(code)(detail, facts=record)
        return None


def _bytes(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("a piece of a command's output is no text")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a piece of a command's output is no base64: {error}") from None
