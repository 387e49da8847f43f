"""How long RPCs took: among the requests of HTTP, under the same names and classes of status."""

from __future__ import annotations

import time
from types import TracebackType

import grpc.aio

from ..durations import GONE, Durations
from ..problems import problem_of

__all__ = ["Timing"]

_OPERATIONS = {
    "Call": "call",
    "CallBytes": "bytes",
    "Run": "run",
    "OpenSession": "session",
    "CloseSession": "session",
    "Upload": "upload",
    "GetVersion": "version",
    "WatchVersion": "version",
    "Check": "other",
    # These last for as long as their clients want; of the first, each call counts by itself.
    "CallMany": None,
    "Watch": None,
    "ServerReflectionInfo": None,
}


class Timing:
    """Counts what is done within its block, when it ends."""

    __slots__ = ("_durations", "_operation", "_since_s")

    def __init__(self, durations: Durations, method: str) -> None:
        self._durations, self._operation = durations, _OPERATIONS.get(method, "plugin")
        self._since_s = time.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._operation is not None:
            status = 200 if error is None else _status_of(error)
            self._durations.add("grpc", self._operation, status, self._since_s)


def _status_of(error: BaseException) -> int:
    if isinstance(error, grpc.aio.BaseError) or not isinstance(error, Exception):
        return GONE  # of reading or writing, or a cancellation
    return problem_of(error).status
