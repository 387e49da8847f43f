"""The open load of overload.c, from Python: what to ask for, and what became of it."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from common import HERE, percentile

__all__ = ["Arrival", "Load", "Stream", "Times", "call"]

_RECORD = struct.Struct("=IIQQQ")
_WORDS = {0: "unanswered", 1: "broken", 2: "not sent"}
_SMALL = b'{"arguments": [2, 3]}'


class Stream(NamedTuple):
    """Requests that are all the same, `rate` a second by chance, over so many connections."""

    rate: float
    connections: int
    request: bytes


class Arrival(NamedTuple):
    """One request. Seconds since the load began."""

    stream: int
    status: int
    """Of HTTP; 0: no answer came, 1: the connection broke, 2: no connection was free, so it was not sent."""
    due_s: float
    sent_s: float
    done_s: float

    @property
    def ms(self) -> float:
        """From when it should have been sent, which is how long somebody waited."""
        return (self.done_s - self.due_s) * 1e3


@dataclass
class Times:
    """Percentiles of some arrivals, in ms."""

    count: int
    p50: float
    p99: float
    most: float

    @classmethod
    def of(cls, arrivals: Sequence[Arrival]) -> Times:
        """Summarize; all 0 without any."""
        ms = sorted(one.ms for one in arrivals) or [0.0]
        return cls(len(arrivals), percentile(ms, 50), percentile(ms, 99), ms[-1])


def call(token: str, path: str = "/v1/plugins/sum/call/add", body: bytes = _SMALL) -> bytes:
    """Return a request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@cache
def _program() -> Path:
    out = Path(tempfile.mkdtemp(prefix="overload")) / "overload"
    subprocess.run(["cc", "-O2", "-o", out, HERE / "overload.c", "-lm"], check=True)
    return out


class Load:
    """A load in a process of its own, from now on for `seconds`; `surge` times as much within `surge_s`.

    Args:
        first: it measures, and goes before all else, where that is allowed: else its times would tell how long it
            waited for a processor itself. A niceness of -10 is not enough: half of the slowest requests' time was that.
            False: it is somebody's with a machine of his own, and gets what nobody else wants of this one.
    """

    def __init__(
        self,
        port: int,
        streams: Sequence[Stream],
        seconds: float,
        *,
        seed: int = 1,
        first: bool = True,
        surge: float = 1.0,
        surge_s: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        words = [port, seconds, seed, surge, *surge_s]
        self._times = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the load lasts
        self._process = subprocess.Popen(
            [_program(), *map(str, words)], stdin=subprocess.PIPE, stdout=self._times
        )
        policy, priority = (os.SCHED_FIFO, 1) if first else (os.SCHED_IDLE, 0)
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(self._process.pid, policy, os.sched_param(priority))
        assert self._process.stdin is not None
        for one in streams:
            line = f"{one.rate} {one.connections} {len(one.request)}\n"
            self._process.stdin.write(line.encode() + one.request)
        self._process.stdin.close()

    def arrivals(self) -> list[Arrival]:
        """Wait until it is over, and return all of it."""
        if self._process.wait():
            raise SystemExit("the load ended early")
        self._times.seek(8)
        data = self._times.read()
        self._times.close()
        return [
            Arrival(stream, status, due / 1e9, sent / 1e9, done / 1e9)
            for stream, status, due, sent, done in _RECORD.iter_unpack(data)
        ]


def statuses(arrivals: Sequence[Arrival]) -> dict[str, int]:
    """Count what became of arrivals."""
    counted = Counter(one.status for one in arrivals)
    return {_WORDS.get(status, str(status)): count for status, count in sorted(counted.items())}
