"""What needs no token: the standard health service, and reflection.

Health follows /readyz, for the whole server ("") and for each of its services.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from ..problems import Missing
from .doors import Doors, Rpc

__all__ = ["Health", "Reflection"]

_LOOK_AGAIN_S = 0.1
_LONGEST_S = 300.0

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class Health:
    """The RPCs of grpc.health.v1.Health."""

    def __init__(self, doors: Doors, names: Sequence[str]) -> None:
        self._doors = doors
        self._names = frozenset(("", *names))
        self.handlers: dict[str, _Handler] = {
            "Check": doors.one("Check", None, HealthCheckRequest, self.check),
            "Watch": doors.many("Watch", None, self.watch),
        }

    async def check(self, _rpc: Rpc, request: HealthCheckRequest) -> HealthCheckResponse:
        """How it is now."""
        if request.service not in self._names:
            raise Missing("there is no such service")
        return self._now()

    async def watch(self, rpc: Rpc) -> None:
        """How it is now, and again whenever that changes."""
        request = await rpc.first(HealthCheckRequest)
        known, last = request.service in self._names, None
        while True:
            now = self._now() if known else _response("SERVICE_UNKNOWN")
            if now != last:
                await rpc.write(now)
                last = now
            self._doors.check_open()
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _now(self) -> HealthCheckResponse:
        return _response("SERVING" if self._doors.service.ready else "NOT_SERVING")


def _response(status: str) -> HealthCheckResponse:
    return HealthCheckResponse(status=HealthCheckResponse.ServingStatus.Value(status))


class Reflection:
    """The RPC of grpc.reflection.v1 and v1alpha, which are the same on the wire."""

    def __init__(self, doors: Doors, names: Sequence[str]) -> None:
        self._doors = doors
        self._servicer = reflection.aio.ReflectionServicer(names)
        self.handlers: dict[str, _Handler] = {
            "ServerReflectionInfo": doors.many("ServerReflectionInfo", None, self.answer)
        }

    async def answer(self, rpc: Rpc) -> None:
        """Answer questions of what there is."""

        async def questions() -> AsyncIterator[ServerReflectionRequest]:
            while (
                question := await rpc.read(ServerReflectionRequest, _LONGEST_S, resting=True)
            ) is not None:
                yield question

        async for response in self._servicer.ServerReflectionInfo(questions(), None):
            await rpc.write(response)
