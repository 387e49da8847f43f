"""How an RPC comes in: whose it is, its messages, the time it has, and what it gets if it fails.

token ──► messages ──► work, in its tenant's turns ──► messages, status
  │          │ not one, too late, too many
  └──────────┴──────────────────► status (status.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from ..problems import Invalid, Unavailable
from ..records import Principal
from ..service import Service
from ..shares import NOBODY
from ..steps import Steps
from ..time_limit import TimeLimit
from ..tokens import Scope
from .status import refuse
from .timing import Timing

__all__ = ["REST_S", "Doors", "Rpc"]

REST_S = 30.0
"""Longest time between two messages of a request that is on its way. Arbitrary."""
_STOPPED_RETRY_S = 1.0

_M = TypeVar("_M", bound=Message)
_T = TypeVar("_T")

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class Rpc:
    """One RPC: who makes it, what comes, what goes."""

    __slots__ = ("_context", "_doors", "_who", "_writing")

    def __init__(
        self, doors: Doors, who: Principal | None, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        self._doors, self._who, self._context = doors, who, context
        self._writing = asyncio.Lock()  # gRPC takes one message at a time

    @property
    def who(self) -> Principal:
        """Whose it is."""
        assert self._who is not None, "the door asks for no token"
        return self._who

    @property
    def tenant(self) -> str:
        """Whose share of the loop's turns it uses."""
        return NOBODY if self._who is None else self._who.tenant

    def until_s(self) -> float | None:
        """Return until when its client waits, by time.monotonic(); None: there is no end."""
        left_s = self._context.time_remaining()
        return None if left_s is None else time.monotonic() + left_s

    async def read(
        self, kind: type[_M], rest_s: float | None = REST_S, *, resting: bool = False
    ) -> _M | None:
        """Return the next message; None: the client has closed its side, or has gone.

        Args:
            rest_s: how long to wait for it; None: as long as it takes.
            resting: nothing is at work meanwhile, so that the end of the service need not wait for it.

        Raises:
            Invalid: it is none, or did not come.
            Unavailable: the service ends.
        """
        limit = TimeLimit(rest_s)
        try:
            with limit:
                if resting:
                    with self._doors.resting(limit):
                        data = await self._context.read()
                else:
                    data = await self._context.read()
        except TimeoutError:
            self._doors.check_open()
            raise Invalid(f"no message came for {rest_s:g} s") from None
        if data is grpc.aio.EOF:
            return None
        try:
            return kind.FromString(data)
        except DecodeError:
            raise Invalid(f"the message is no {kind.DESCRIPTOR.full_name}") from None

    async def first(self, kind: type[_M]) -> _M:
        """Return the first message, or the only one."""
        message = await self.read(kind)
        if message is None:
            raise Invalid("no message came")
        return message

    async def write(self, message: Message) -> None:
        """Send a message, when there is room for it.

        No task group of ours cuts that off: gRPC could send no status behind half a message, and the
        client would wait for it.
        """
        async with self._writing:
            try:
                with anyio.CancelScope(shield=True):
                    await self._context.write(message.SerializeToString())
            except grpc.aio.BaseError as gone:  # the cancellation by its client is on the way
                raise asyncio.CancelledError from gone


class Doors:
    """Makes handlers for grpc.aio. Everything of one server, which ends once."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.closing = False
        self._resting: set[TimeLimit] = set()

    def close(self) -> None:
        """End what only waits: the server is about to stop."""
        self.closing = True
        for limit in self._resting:
            limit.end()

    def check_open(self) -> None:
        """Raise Unavailable if the server is about to stop."""
        if self.closing:
            raise Unavailable("the service is stopping", retry_after_s=_STOPPED_RETRY_S)

    @contextlib.contextmanager
    def resting(self, limit: TimeLimit) -> Iterator[None]:
        """Have the limit end when the server is about to stop."""
        self.check_open()
        self._resting.add(limit)
        try:
            yield
        finally:
            self._resting.discard(limit)

    def one(
        self,
        method: str,
        scope: Scope | None,
        kind: type[_M],
        work: Callable[[Rpc, _M], Awaitable[Message]],
    ) -> _Handler:
        """Return the handler of an RPC with one message in and one out.

        Args:
            scope: what the token has to be for; None: none is asked for.
        """

        async def behavior(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            try:
                with Timing(self.service.durations, method):
                    rpc = self._enter(scope, context)
                    return await self._steps(rpc, _answer(rpc, kind, work))
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status
                await refuse(context, method, error)

        return grpc.stream_unary_rpc_method_handler(behavior)

    def gathered(
        self, method: str, scope: Scope, work: Callable[[Rpc], Coroutine[Any, Any, Message]]
    ) -> _Handler:
        """Return the handler of an RPC that reads its messages itself, and answers with one."""

        async def behavior(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            try:
                with Timing(self.service.durations, method):
                    rpc = self._enter(scope, context)
                    return (await self._steps(rpc, work(rpc))).SerializeToString()
            except Exception as error:  # noqa: BLE001 - see above
                await refuse(context, method, error)

        return grpc.stream_unary_rpc_method_handler(behavior)

    def many(
        self, method: str, scope: Scope | None, work: Callable[[Rpc], Coroutine[Any, Any, None]]
    ) -> _Handler:
        """Return the handler of an RPC that reads and writes its messages itself."""

        async def behavior(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                with Timing(self.service.durations, method):
                    rpc = self._enter(scope, context)
                    await self._steps(rpc, work(rpc))
            except Exception as error:  # noqa: BLE001 - see above
                await refuse(context, method, error)

        return grpc.stream_stream_rpc_method_handler(behavior)

    def _enter(self, scope: Scope | None, context: grpc.aio.ServicerContext[Any, Any]) -> Rpc:
        who = (
            None
            if scope is None
            else self.service.who(_token_of(context), scope, _peer_of(context))
        )
        return Rpc(self, who, context)

    def _steps(self, rpc: Rpc, work: Coroutine[Any, Any, _T]) -> Steps[_T]:
        return Steps(work, self.service.admission.shares, rpc.tenant)


async def _answer(rpc: Rpc, kind: type[_M], work: Callable[[Rpc, _M], Awaitable[Message]]) -> bytes:
    return (await work(rpc, await rpc.first(kind))).SerializeToString()


def _peer_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Return the client's address, without kind and port: "ipv4:127.0.0.1:50214"."""
    return str(context.peer()).partition(":")[2].rpartition(":")[0][:64]


def _token_of(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            kind, _, token = str(value).partition(" ")
            return token.strip() if kind.lower() == "bearer" else None
    return None
