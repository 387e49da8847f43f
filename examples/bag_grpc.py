"""A gRPC service whose RPCs each have a guest of their own, which ends with them, however they end.

pip install sandhost[serve]
"""

import asyncio
from collections.abc import AsyncIterator

import grpc

import sandhost
from sandhost.serve.bag import Bags, current_bag
from sandhost.serve.bag_grpc import BagInterceptor

COUNTER = b"""(module
  (global $n (mut i32) (i32.const 0))
  (func (export "next") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n)))"""


class Counter:
    """One method of each kind. Requests and responses are bytes, so that no .proto is needed."""

    def __init__(self, plugin: sandhost.Plugin) -> None:
        self.plugin = plugin

    def guest(self) -> sandhost.Guest:
        return current_bag().add(self.plugin.spawn())

    async def one(self, _request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return b"%d" % self.guest().call("next")

    async def all_of(
        self, requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext
    ) -> bytes:
        guest = self.guest()
        return b"%d" % max([guest.call("next") async for _ in requests])

    async def for_ever(
        self, _request: bytes, _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        guest = self.guest()
        while True:
            yield b"%d" % guest.call("next")

    async def each(
        self, requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        guest = self.guest()
        async for _ in requests:
            yield b"%d" % guest.call("next")

    def handlers(self) -> grpc.GenericRpcHandler:
        methods = {
            "One": grpc.unary_unary_rpc_method_handler(self.one),
            "All": grpc.stream_unary_rpc_method_handler(self.all_of),
            "ForEver": grpc.unary_stream_rpc_method_handler(self.for_ever),
            "Each": grpc.stream_stream_rpc_method_handler(self.each),
        }
        return grpc.method_handlers_generic_handler("example.Counter", methods)


async def numbers(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield b"%d" % number


async def main() -> None:
    bags = Bags()
    with sandhost.Host() as host:
        server = grpc.aio.server(interceptors=[BagInterceptor(bags)])
        server.add_generic_rpc_handlers((Counter(host.load(COUNTER)).handlers(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            print("one:", await channel.unary_unary("/example.Counter/One")(b""))
            print("all:", await channel.stream_unary("/example.Counter/All")(numbers(5)))
            each = channel.stream_stream("/example.Counter/Each")(numbers(3))
            print("each:", [answer async for answer in each])
            endless = channel.unary_stream("/example.Counter/ForEver")(b"")
            print("for ever:", [await endless.read() for _ in range(3)])
            endless.cancel()  # the handler hears of it at its next response
        await server.stop(1.0)
        await bags.idle()  # then no guest is left, and the host may be closed
        print(f"{bags.stats().opened} requests, {host.stats().guests_live} guests left")


asyncio.run(main())
