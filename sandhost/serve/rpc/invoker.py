"""Calling what is deployed: numbers, bytes, many calls on one stream, commands, sessions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import grpc

from ..commands import run_command
from ..invocation import SOON_S, Invocation
from ..problems import Invalid, Problem
from ..records import Answer
from ..registry import LATEST
from ..service import Service
from ..tokens import Scope
from .doors import Doors, Rpc
from .messages import (
    CallBytesReply,
    CallBytesRequest,
    CallManyReply,
    CallManyRequest,
    CallReply,
    CallRequest,
    CloseSessionReply,
    OpenSessionRequest,
    RunReply,
    RunRequest,
    Session,
)
from .numbers import from_values, to_reply
from .status import as_message
from .timing import Timing

__all__ = ["Invoker"]

_AT_ONCE = 64
"""Calls of one stream. The admission has bounds of its own; this one is for replies that nobody reads."""
_QUIET_S = 300.0

_Call = TypeVar("_Call", CallRequest, CallBytesRequest)
_Reply = TypeVar("_Reply", CallReply, CallBytesReply)

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class Invoker:
    """The RPCs of the service of this name."""

    def __init__(self, doors: Doors) -> None:
        self.service: Service = doors.service
        one, many, invoke = doors.one, doors.many, Scope.INVOKE
        self.handlers: dict[str, _Handler] = {
            "Call": one("Call", invoke, CallRequest, self.call),
            "CallBytes": one("CallBytes", invoke, CallBytesRequest, self.call_bytes),
            "CallMany": many("CallMany", invoke, self.call_many),
            "Run": many("Run", invoke, self.run),
            "OpenSession": one("OpenSession", invoke, OpenSessionRequest, self.open_session),
            "CloseSession": one("CloseSession", invoke, Session, self.close_session),
        }

    async def call(self, rpc: Rpc, request: CallRequest) -> CallReply:
        """Numbers in, numbers out."""
        until_s = rpc.until_s()
        if not request.session and not request.idempotency_key and _is_patient(until_s):
            function = request.function
            reply = self.service.call_at_once(
                rpc.who,
                request.plugin,
                request.ref or LATEST,
                function,
                partial(from_values, function, request.arguments),
                to_reply,
            )
            if reply is not None:
                return reply
        return await self._call(rpc, request, until_s)

    async def call_bytes(self, rpc: Rpc, request: CallBytesRequest) -> CallBytesReply:
        """Bytes in, bytes out."""
        return await self._call_bytes(rpc, request, rpc.until_s())

    async def _call(self, rpc: Rpc, request: CallRequest, until_s: float | None) -> CallReply:
        what = _invocation(rpc, request, until_s)

        async def work() -> CallReply:
            arguments = partial(from_values, what.function, request.arguments)
            return await self.service.call_with(what, arguments, to_reply)

        return await self._once(rpc, request, CallReply, work)

    async def _call_bytes(
        self, rpc: Rpc, request: CallBytesRequest, until_s: float | None
    ) -> CallBytesReply:
        what = _invocation(rpc, request, until_s)

        async def work() -> CallBytesReply:
            return CallBytesReply(output=await self.service.call_bytes(what, request.input))

        return await self._once(rpc, request, CallBytesReply, work)

    async def _once(
        self,
        rpc: Rpc,
        request: CallRequest | CallBytesRequest,
        kind: type[_Reply],
        work: Callable[[], Awaitable[_Reply]],
    ) -> _Reply:
        if not request.idempotency_key:
            return await work()

        async def answer() -> Answer:
            return Answer(200, kind.DESCRIPTOR.full_name, (await work()).SerializeToString())

        meant = kind.DESCRIPTOR.full_name.encode() + request.SerializeToString(deterministic=True)
        found = await self.service.retries.once(rpc.who, request.idempotency_key, meant, answer)
        return kind.FromString(found.body)

    async def call_many(self, rpc: Rpc) -> None:
        """Calls as they come, replies as they are there."""
        free, end_s = asyncio.Semaphore(_AT_ONCE), rpc.until_s()

        async def answer(request: CallManyRequest) -> None:
            reply = CallManyReply(id=request.id)
            try:
                until_s = _sooner(end_s, request.timeout_s)
                if request.HasField("call"):
                    with Timing(self.service.durations, "Call"):
                        reply.call.CopyFrom(await self._call(rpc, request.call, until_s))
                elif request.HasField("call_bytes"):
                    with Timing(self.service.durations, "CallBytes"):
                        made = await self._call_bytes(rpc, request.call_bytes, until_s)
                    reply.call_bytes.CopyFrom(made)
                else:
                    raise Invalid("neither call nor call_bytes is there")
            except Exception as error:  # noqa: BLE001 - whatever it is, the reply says so
                reply.problem.CopyFrom(as_message("CallMany", error))
            await rpc.write(reply)
            free.release()

        fault: Problem | None = None  # carried out by hand: the group would make a group of it
        async with anyio.create_task_group() as calls:
            try:
                while (
                    request := await rpc.read(CallManyRequest, _QUIET_S, resting=True)
                ) is not None:
                    await free.acquire()
                    calls.start_soon(answer, request)
            except Problem as problem:
                fault = problem  # what was begun goes on to its reply
        if fault is not None:
            raise fault

    async def run(self, rpc: Rpc) -> None:
        """A command: what comes is its standard input, what it writes goes out as it is written."""
        first = await rpc.first(RunRequest)
        if not first.HasField("start"):
            raise Invalid("the first message is the start")
        start = first.start

        async def stdin() -> AsyncIterator[bytes]:
            # It may rest for as long as it waits for it: the command's own time is the bound.
            while (message := await rpc.read(RunRequest, None)) is not None:
                if not message.HasField("stdin"):
                    raise Invalid("after the start comes standard input")
                yield message.stdin

        async def begin() -> None:
            pass

        async def write(name: str, piece: bytes) -> None:
            await rpc.write(RunReply(stdout=piece) if name == "stdout" else RunReply(stderr=piece))

        what = Invocation(rpc.who, start.plugin, start.ref or LATEST, "", rpc.until_s())
        run = partial(self.service.run, what, list(start.argv))
        status = await run_command(run, stdin(), begin, write)
        await rpc.write(RunReply(exit_status=status))

    async def open_session(self, rpc: Rpc, request: OpenSessionRequest) -> Session:
        """A guest that stays."""
        what = Invocation(rpc.who, request.plugin, request.ref or LATEST, "", rpc.until_s())
        return Session(session=await self.service.open_session(what))

    async def close_session(self, rpc: Rpc, request: Session) -> CloseSessionReply:
        """It ends."""
        await self.service.close_session(rpc.who, request.session)
        return CloseSessionReply()


def _invocation(rpc: Rpc, request: _Call, until_s: float | None) -> Invocation:
    return Invocation(
        rpc.who,
        request.plugin,
        request.ref or LATEST,
        request.function,
        until_s,
        request.session or None,
    )


def _is_patient(until_s: float | None) -> bool:
    """Whether a client has time for a call that does not look at it."""
    return until_s is None or until_s - time.monotonic() > SOON_S


def _sooner(end_s: float | None, timeout_s: float) -> float | None:
    """Return when a call's time is over: its own, or its stream's."""
    if not timeout_s:
        return end_s
    if not 0 < timeout_s <= 1e6:
        raise Invalid(f"timeout_s is a number of seconds, not {timeout_s!r}")
    own_s = time.monotonic() + timeout_s
    return own_s if end_s is None else min(end_s, own_s)
