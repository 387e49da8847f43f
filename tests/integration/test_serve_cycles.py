"""What requests make goes with its last reference, and leaves nothing to Python's collector, which stops the loop."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from helpers.serving import ADMIN

from sandhost.serve.app import open_service
from sandhost.serve.config import Settings
from sandhost.serve.gate import Gate
from sandhost.serve.http import make_app
from sandhost.serve.overload import Admission
from sandhost.serve.records import VersionSettings
from sandhost.serve.service import Service
from sandhost.serve.tokens import Scope
from sandhost.serve.wire import GatedProtocol
from sandhost.tenants import Quotas

TIMES = 20
PLUGIN = b"""(module
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "trap") unreachable))"""


@pytest.fixture
def only_by_hand() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class Door:
    """A service of this process behind a socket, as `sandhost serve` has it."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        registry = service.registry
        registry.tenants.add("acme", Quotas())
        registry.tenants.add("poor", Quotas(guests=0))
        scopes = [Scope.DEPLOY, Scope.INVOKE]
        self.tokens = {name: registry.tokens.add(name, scopes) for name in ("acme", "poor")}
        self.tokens["nobody"] = "sh_" + "x" * 43

    async def deploy(self, tenant: str) -> None:
        who = self.service.registry.tokens.who(self.tokens[tenant])
        blob = self.service.registry.blobs.put([PLUGIN], 1 << 20)
        settings = VersionSettings(self.service.settings.guest_limits())
        version = await self.service.deploy(who, "p", blob, settings)
        plugins = self.service.registry.plugins
        while (state := plugins.version(tenant, "p", version.number).state) != "ready":
            assert state == "compiling"
            await asyncio.sleep(0.01)

    async def ask(self, request: str, tenant: str, body: bytes = b"") -> int:
        """Make a request on a connection of its own; return the status."""
        token = self.tokens[tenant]
        head = f"{request} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

        def exchange() -> int:
            with socket.create_connection(("127.0.0.1", self.port)) as one:
                one.sendall(whole)
                return int(one.recv(65536).split(b" ", 2)[1])

        return await asyncio.get_running_loop().run_in_executor(None, exchange)

    async def left_by(self, status: int, *request: Any) -> int:
        """Return how many objects only the collector finds, after it was made some times."""
        for times in (2, TIMES):
            await asyncio.sleep(0.02)
            gc.collect()
            for _ in range(times):
                assert await self.ask(*request) == status
        await asyncio.sleep(0.02)  # the server's end of the last connection
        return gc.collect()


def behind_a_door(folder: Path, test: Callable[[Door], Awaitable[None]]) -> None:
    async def run() -> None:
        settings = Settings(data=folder, admin_token=ADMIN)
        with open_service(settings) as (service, _):

            class Protocol(GatedProtocol):
                gate = Gate(service)

            app = make_app(service, [])
            config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None)
            config.load()
            state = uvicorn.Server(config).server_state
            loop = asyncio.get_running_loop()
            server = await loop.create_server(
                lambda: Protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
            )
            door = Door(service, server.sockets[0].getsockname()[1])
            service.start()
            try:
                await test(door)
            finally:
                server.close()
                await service.drain()

    loop = (
        uvloop.new_event_loop()
    )  # as the process has it; each of asyncio's own transports is a cycle
    try:
        loop.run_until_complete(run())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def test_requests_leave_nothing_whether_they_are_answered_refused_or_fail(tmp_path, only_by_hand):
    add, trap = "POST /v1/plugins/p/call/add", "POST /v1/plugins/p/call/trap"
    alias = "PUT /v1/plugins/p/aliases/prod"
    two = json.dumps({"arguments": [2, 3]}).encode()
    found: dict[str, int] = {}

    async def test(door: Door) -> None:
        for tenant in ("acme", "poor"):
            await door.deploy(tenant)
        found["answered"] = await door.left_by(200, add, "acme", two)
        found["trapped"] = await door.left_by(422, trap, "acme")
        found["not there"] = await door.left_by(404, "POST /v1/plugins/q/call/f", "acme")
        found["quota"] = await door.left_by(429, add, "poor", two)
        found["noise"] = await door.left_by(422, "PUT /v1/plugins/n", "acme", b"\xff" * 1000)
        found["no token"] = await door.left_by(401, add, "nobody", two)
        found["by a task"] = await door.left_by(200, "GET /v1/plugins/p", "acme")
        found["by a thread"] = await door.left_by(200, alias, "acme", b'{"version": 1}')
        door.service.admission = Admission(pressure=lambda: 4)
        found["pressure"] = await door.left_by(429, add, "acme", two)

    behind_a_door(tmp_path / "data", test)
    assert all(objects < TIMES for objects in found.values()), found  # not one for each request
