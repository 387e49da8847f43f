"""The process of `sandhost serve`: what it is put together of, and its life from first to last.

settings ─► Store ─► Registry ─┐
         └► Host ──────────────┴► Service ─┬► routes ─► uvicorn         one event loop, uvloop's
                                           └► RpcServer

SIGTERM, SIGINT   /readyz says 503 and work is refused, for _NOTICE_S: balancers look away
                  no more connections on either door; requests end, within `drain_time`, or are cancelled
                  sessions and guests are closed, the host holds none, status 0
a second one      what runs is cancelled at once
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import uvicorn

from .._log import get_logger
from ..errors import ConfigError
from ..host import Host
from .admin import admin_routes
from .background import in_background
from .collecting import spare_what_is_loaded
from .compiler import Compilers
from .config import Settings
from .console import console_routes
from .gate import Gate
from .http import make_app
from .listening import duplicates, listen, make_room
from .notify import keep_watched, notify, stopping
from .observed import observe_routes
from .problems import Invalid
from .realtime import PRIORITY, Realtime, may_be_realtime
from .registry import Registry
from .registry.first_tokens import ensure_admin, ensure_only
from .rpc.server import RpcServer
from .service import Service
from .store import Store
from .wire import GatedProtocol

__all__ = ["Opened", "open_service", "serve"]

_NOTICE_S = 1.0
"""Arbitrary: some looks of a balancer at /readyz. Less when there is little time to drain."""
_SWITCH_S = 0.0005
"""A thread that registers or loads a module keeps the loop from Python for so long at a time; Python's own 5 ms are
ten requests' worth."""
_REST_S = 130
"""Of a connection. Longer than who keeps some to a service lets them rest (nginx 60 s, Go 90, Caddy 120): whoever
closes first never meets the other's next request."""
_SPARE_FILES = 256
"""Descriptors that are not for connections: the database's, uploads', guests'. Arbitrary."""


class Opened(NamedTuple):
    """What `open_service` has opened."""

    service: Service
    token: str | None
    """Made just now, to be shown once: of the operator, or of the only tenant."""


@contextlib.contextmanager
def open_service(
    settings: Settings, compilers: Compilers | None = None, *, realtime: bool = False
) -> Iterator[Opened]:
    """Have a service within the block. Drain it before the end.

    Args:
        compilers: who compiles modules; None: this makes its own.
        realtime: whether the event loop will have a real-time priority.

    Raises:
        ConfigError: the settings cannot be used here.
        OSError: the folder cannot be.
    """
    only = settings.tenant
    if only is None and settings.token_file is not None:
        raise ConfigError("token_file holds the token of the tenant that --tenant names: give both")
    if only is not None and settings.admin_token is not None:
        raise ConfigError("with --tenant there is no operator: leave admin_token out")
    with Store(settings.data) as store:
        registry = Registry(store, settings.bounds())
        if only is not None:
            made = _only_tenant(registry, only, settings.token_file)
        else:
            secret = settings.admin_token
            made = ensure_admin(registry, None if secret is None else secret.get_secret_value())
        with Host(
            process_limit=settings.process_limit,
            handle_memory=settings.handle_memory,
            max_guests=settings.max_guests,
            background=settings.background,
            realtime=PRIORITY if realtime else 0,
        ) as host:
            host.pressure.start()
            compilers = compilers or Compilers(
                settings.compile_memory, settings.compile_time, background=settings.background
            )
            yield Opened(Service(settings, host, registry, compilers), made)


def _only_tenant(registry: Registry, tenant: str, file: str | None) -> str | None:
    try:
        text = None if file is None else Path(file).read_text("ascii", "replace").strip()
        return ensure_only(registry, tenant, text)
    except Invalid as problem:
        raise ConfigError(f"--tenant: {problem.detail}") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def serve(settings: Settings, say: Callable[[str], object]) -> int:
    """Serve until a signal ends it; return the exit status, 0 when nothing was left behind.

    Args:
        say: gets what the operator is to read: addresses, and the first admin token.

    Raises:
        ConfigError: the settings cannot be used here.
        OSError: the folder or the address cannot be used.
    """
    make_room(_files())
    listener = listen(settings.http_host, settings.http_port)
    if settings.grpc_port:
        # gRPC opens its own. What is in its way is said here, before anything is opened, and exactly.
        listen(settings.grpc_host, settings.grpc_port).close()
    realtime = settings.realtime and may_be_realtime()
    opened = open_service(settings, realtime=realtime)
    with contextlib.closing(listener), opened as (service, token):
        if token is not None:
            whose = "admin token" if settings.tenant is None else f"token of {settings.tenant}"
            say(f"{whose}, shown this once: {token}")
        loop = _new_loop()
        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(_live(service, listener, say, realtime=realtime))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
        left = service.host.stats().guests_live
        if left:
            get_logger("sandhost.serve").error("guests are left at the end", guests=left)
        return 1 if left else 0


async def _live(
    service: Service, listener: socket.socket, say: Callable[[str], object], *, realtime: bool
) -> None:
    service.start()
    sys.setswitchinterval(_SWITCH_S)
    spare_what_is_loaded()
    try:
        await _serve(service, listener, say, realtime=realtime)
    finally:
        await service.drain()


async def _serve(
    service: Service, listener: socket.socket, say: Callable[[str], object], *, realtime: bool
) -> None:
    settings, connections = service.settings, _most_connections()
    routes = [*admin_routes(service), *observe_routes(service), *console_routes(service)]
    app = make_app(service, routes)

    class Protocol(GatedProtocol):
        gate = Gate(service)

    server = _Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=connections,
            timeout_keep_alive=_REST_S,
            timeout_graceful_shutdown=math.ceil(settings.drain_time),
        )
    )
    signals = _signals()
    say(f"listening on http://{_address(*listener.getsockname()[:2])}")
    rpc = None
    if settings.grpc_port is not None:
        rpc = RpcServer(service, connections)
        port = await rpc.start(settings.grpc_host, settings.grpc_port)
        say(f"listening on grpc://{_address(settings.grpc_host, port)}")
    beside = [in_background(_end_on_signal(signals, service, server, rpc))]
    if realtime:
        beside.append(in_background(Realtime().keep()))
    notify("READY=1")
    beside.append(in_background(keep_watched()))
    try:
        with duplicates(listener) as sockets:
            await server.serve(sockets=sockets)
    finally:
        if rpc is not None:
            await rpc.stop(settings.drain_time)  # which the signal has begun
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


def _signals() -> asyncio.Queue[None]:
    """Return where an item comes for each signal to end, from now on."""
    signals: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, None)
    return signals


async def _end_on_signal(
    signals: asyncio.Queue[None], service: Service, server: uvicorn.Server, rpc: RpcServer | None
) -> None:
    await signals.get()
    get_logger("sandhost.serve").info("stopping")
    stopping(service.settings.drain_time)
    service.stop()
    notice_s = min(_NOTICE_S, service.settings.drain_time / 4)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(signals.get(), notice_s)
        signals.put_nowait(None)  # it was the second
    server.should_exit = True
    async with anyio.create_task_group() as closing:
        if rpc is not None:
            closing.start_soon(rpc.stop, service.settings.drain_time)
        await signals.get()
        server.force_exit = True
        for task in list(server.server_state.tasks):
            task.cancel()
        if rpc is not None:
            await rpc.stop(None)


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn's own would end the process by the signal, after all is done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _address(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _most_connections() -> int:
    """Return how many each door may have."""
    return max(16, (_files() - _SPARE_FILES) // 2)


def _files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _new_loop() -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
