"""A bag for each RPC of a grpc.aio server, of all four kinds.

    server = grpc.aio.server(interceptors=[BagInterceptor()])
    ...
    guest = current_bag().add(plugin.spawn())     # in a handler

What grpc.aio does when a client cancels, its connection breaks, the RPC's deadline passes, or the server
stops: it cancels the task that the handler runs in. A handler that is a coroutine sees that. One that is
an asynchronous generator does not, when it is the sending of a response that was cancelled: it stays at
its `yield` until the garbage collector finds it. So a generator is iterated here, in a coroutine of ours,
which closes it before the bag. A sending may also fail first, and the cancellation come behind: while the
handler cleans up. What a handler must await at its end belongs into the bag, which is closed undisturbed.

The bag is empty before the last response is sent: a message must own its bytes.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from ..errors import ConfigError
from .bag import Bags

__all__ = ["BagInterceptor"]

_REMEMBERED = 256
"""Handlers: an application has a few, the same for each RPC. Arbitrary."""

_Behavior = Callable[[Any, Any], Any]

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class BagInterceptor(grpc.aio.ServerInterceptor):
    """Gives each RPC a bag, which is closed when its handler has ended, in whatever way.

    `server.stop()` returns when the RPCs are over for their clients; handlers and bags may still be
    closing. Wait for `bags.idle()` before you close what they use.

    Handlers are coroutines or asynchronous generators. Functions, which grpc.aio calls in a thread, do
    for RPCs with one response; with many, grpc.aio would leave the thread waiting for ever when the
    client goes, and the RPC fails here instead.

    Args:
        bags: makes the bags and counts; share it between doors of one application.
    """

    def __init__(self, bags: Bags | None = None) -> None:
        self.bags = bags or Bags()
        self._served = functools.lru_cache(_REMEMBERED)(self._serve)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Return the RPC's handler with a bag around it. Called by grpc.aio."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._served(handler, handler_call_details.method, asyncio.get_running_loop())

    def _serve(self, handler: Any, method: object, loop: asyncio.AbstractEventLoop) -> _Handler:
        if handler.response_streaming:
            behavior = handler.stream_stream or handler.unary_stream
            served = self._many(behavior, method)
        else:
            behavior = handler.stream_unary or handler.unary_unary
            served = self._one(behavior, loop)
        make = _MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
        return make(served, handler.request_deserializer, handler.response_serializer)

    def _one(self, behavior: _Behavior, loop: asyncio.AbstractEventLoop) -> _Behavior:
        async def in_task(request: Any, context: Any) -> Any:
            async with self.bags.new():
                return await behavior(request, context)

        if inspect.iscoroutinefunction(behavior):
            return in_task

        def in_thread(request: Any, context: Any) -> Any:
            with self.bags.new() as bag:
                try:
                    return behavior(request, context)
                finally:
                    # The loop is there: it waits for this thread. And a release may need it.
                    closing = bag.aclose(sys.exc_info()[1])
                    asyncio.run_coroutine_threadsafe(closing, loop).result()

        return in_thread

    def _many(self, behavior: _Behavior, method: object) -> _Behavior:
        async def written(request: Any, context: Any) -> None:
            async with self.bags.new():
                await behavior(request, context)

        async def iterated(request: Any, context: Any) -> None:
            async with self.bags.new(), aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

        if inspect.iscoroutinefunction(behavior):
            return written
        if inspect.isasyncgenfunction(behavior):
            return iterated
        raise ConfigError(
            f"the handler of {method} is neither a coroutine function nor an asynchronous generator "
            "function: grpc.aio would leave a thread behind when its client goes"
        )


_MAKERS: dict[tuple[bool, bool], Callable[..., _Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether the request streams, and whether the response does."""
