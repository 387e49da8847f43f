"""A gRPC server on one port: what it takes of clients, and its end.

start ──► serving ──► stop(grace_s): nobody comes any more, what only waits is ended,
            │                        the others end, or are cancelled when the time is over
            └───────► stop(None): at once
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from ...errors import ConfigError
from ..bag_grpc import BagInterceptor
from ..service import Service
from .doors import Doors
from .health import Health, Reflection
from .invoker import Invoker
from .plugins import Plugins

__all__ = ["RpcServer"]

_AROUND_BODY_BYTES = 64 << 10
"""What a message has beside the bytes that the plugin gets."""
_MOST_RPCS = 4096
"""At once, over all connections; more are refused. Arbitrary."""
_MOST_STREAMS = 256
"""At once, on one connection; more wait on the client's side. Arbitrary."""
_OPTIONS = {
    "grpc.so_reuseport": 0,  # two services on one port would share what comes
    "grpc.max_concurrent_streams": _MOST_STREAMS,
    "grpc.max_metadata_size": 8 << 10,
    "grpc.absolute_max_metadata_size": 16 << 10,
    "grpc.server_handshake_timeout_ms": 10_000,  # who connects and says nothing
    "grpc.max_connection_idle_ms": 300_000,
    "grpc.keepalive_time_ms": 60_000,  # a client that has gone without a word is noticed
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.http2.min_ping_interval_without_data_ms": 20_000,  # who asks more often is sent away
    "grpc.http2.max_ping_strikes": 2,
}


class RpcServer:
    """Serves what sandhost.proto says. Made and used on one event loop.

    Args:
        most_connections: further ones are closed at once.
    """

    def __init__(self, service: Service, most_connections: int) -> None:
        most = service.settings.body_limit + _AROUND_BODY_BYTES
        options = {
            **_OPTIONS,
            "grpc.max_allowed_incoming_connections": most_connections,
            "grpc.max_receive_message_length": most,
        }
        self._server = grpc.aio.server(
            interceptors=[BagInterceptor(service.bags)],
            options=list(options.items()),
            maximum_concurrent_rpcs=_MOST_RPCS,
        )
        self._doors = doors = Doors(service)
        invoker, plugins = Invoker(doors), Plugins(doors)
        names = ["sandhost.v1.Invoker", "sandhost.v1.Plugins"]
        health = Health(doors, names)
        reflection = Reflection(doors, [*names, "grpc.health.v1.Health"])
        services: dict[str, Invoker | Plugins | Health | Reflection] = {
            names[0]: invoker,
            names[1]: plugins,
            "grpc.health.v1.Health": health,
            "grpc.reflection.v1.ServerReflection": reflection,
            "grpc.reflection.v1alpha.ServerReflection": reflection,
        }
        for name, one in services.items():
            self.add(name, one.handlers)

    def add(self, name: str, handlers: dict[str, Any]) -> None:
        """Serve one more service, before the start."""
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, handlers)]
        )

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; 0 takes a free one.

        Raises:
            ConfigError: somebody else has the address.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            found = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address} for gRPC") from error
        await self._server.start()
        return found

    async def stop(self, grace_s: float | None) -> None:
        """Take nothing new; return when every RPC is over for its client.

        Args:
            grace_s: how long they may go on; None: they are cancelled. May be called again to cut a time short.
        """
        self._doors.close()
        await self._server.stop(grace_s)
