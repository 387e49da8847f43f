"""A service in this process, and one in a child, for tests of what it answers."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from sandhost.serve.admin import admin_routes
from sandhost.serve.app import open_service
from sandhost.serve.compiler import Compilers
from sandhost.serve.config import Settings
from sandhost.serve.console import console_routes
from sandhost.serve.http import make_app
from sandhost.serve.observed import observe_routes
from sandhost.serve.service import Service

from . import wait_until
from .described import check_answer

ADMIN = "sh_" + "A" * 43
REVERSE = b"""(module
  (memory (export "memory") 4)
  (global $free (mut i32) (i32.const 1024))
  (func (export "alloc") (param $n i32) (result i32)
    (global.get $free) (global.set $free (i32.add (global.get $free) (local.get $n))))
  (func (export "reverse") (param $at i32) (param $n i32) (result i64) (local $i i32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (i32.store8 (i32.add (i32.const 100000) (local.get $i))
        (i32.load8_u (i32.sub (i32.add (local.get $at) (local.get $n)) (i32.add (local.get $i) (i32.const 1)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i64.or (i64.shl (i64.const 100000) (i64.const 32)) (i64.extend_i32_u (local.get $n))))
  (func (export "outside") (param i32 i32) (result i64) (i64.const -4294967292))
  (func (export "huge") (param i32 i32) (result i64) (i64.const 0xffffffff))
  (func (export "numbers") (param i64) (result i64) (local.get 0)))"""

COPY = b"""(module
  (memory (export "memory") 4)
  (func (export "alloc") (param $n i32) (result i32) (i32.const 1024))
  (func (export "same") (param $at i32) (param $n i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32))
      (i64.extend_i32_u (local.get $n)))))"""
COUNTER = b"""(module
  (global $n (mut i32) (i32.const 0))
  (func (export "warm") (global.set $n (i32.const 100)))
  (func (export "next") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n)))"""
_CHECKED = {"response": [check_answer]}
"""No test sees an answer that the OpenAPI document does not describe."""
_FREE_PORTS = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")


def versioned(number: int) -> bytes:
    """Return a module whose function `which` returns this number."""
    return f'(module (func (export "which") (result i32) (i32.const {number})))'.encode()


class Client:
    """Requests of one tenant."""

    def __init__(self, http: httpx.AsyncClient, token: str | None) -> None:
        self.http = http
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def ask(self, method: str, path: str, status: int | None = None, **more: Any) -> Any:
        """Return the answer, checked for its status; JSON as what it holds."""
        headers = {**self.headers, **more.pop("headers", {})}
        await asyncio.sleep(0)  # as a socket would: a short call never waits for the loop
        response = await self.http.request(method, path, headers=headers, **more)
        if status is not None:
            assert response.status_code == status, (response.status_code, response.text)
            if response.headers.get("content-type") == "application/json":
                return response.json()
        return response

    async def deploy(self, plugin: str, module: bytes | Path, **query: Any) -> int:
        """Upload a version and wait until it is ready; return its number."""
        content = module if isinstance(module, bytes) else module.read_bytes()
        made = await self.ask("PUT", f"/v1/plugins/{plugin}", 202, content=content, params=query)
        path = f"/v1/plugins/{plugin}/versions/{made['version']}?wait=30"
        found = await self.ask("GET", path, 200)
        assert found["state"] == "ready", found
        return int(made["version"])

    async def call(self, plugin: str, function: str, *arguments: Any, **more: Any) -> Any:
        """Call a function; return its results."""
        path = f"/v1/plugins/{plugin}/call/{function}"
        return (await self.ask("POST", path, 200, json={"arguments": arguments}, **more))["results"]

    async def problem(self, method: str, path: str, status: int, code: str, **more: Any) -> Any:
        """Make a request that fails just so; return the problem."""
        response = await self.ask(method, path, **more)
        assert response.status_code == status, (response.status_code, response.text)
        assert response.headers["content-type"] == "application/problem+json"
        found = response.json()
        assert (found["status"], found["title"]) == (status, code), found
        return found


class Desk:
    """A service of this process, reached without a socket."""

    def __init__(self, service: Service, http: httpx.AsyncClient) -> None:
        self.service, self.http = service, http
        self.admin = Client(http, ADMIN)

    async def client(self, tenant: str, *scopes: str, **quotas: Any) -> Client:
        """Add a tenant if need be, and return a client with a token of it, for all but admin unless named."""
        if tenant not in {t.name for t in self.service.registry.tenants}:
            await self.admin.ask("PUT", f"/v1/admin/tenants/{tenant}", 201, json={"quotas": quotas})
        wanted = list(scopes or ("deploy", "invoke"))
        made = await self.admin.ask(
            "POST", f"/v1/admin/tenants/{tenant}/tokens", 201, json={"scopes": wanted}
        )
        return Client(self.http, made["token"])


class _Kept(Compilers):
    """Processes that outlive a test, since each takes some time to start."""

    def close(self) -> None:
        """Leave them to the next test."""


_COMPILERS = _Kept(Settings().compile_memory, Settings().compile_time)
atexit.register(Compilers.close, _COMPILERS)


@contextlib.asynccontextmanager
async def desk(data: Path, **settings: Any) -> AsyncIterator[Desk]:
    """Have a service; at the end it is drained and must hold no guest."""
    wanted = Settings(data=data, **{"admin_token": ADMIN, **settings})
    own = any(name.startswith("compile_") for name in settings)
    with open_service(wanted, None if own else _COMPILERS) as (service, made):
        assert made is None
        service.start()
        routes = [*admin_routes(service), *observe_routes(service), *console_routes(service)]
        app = make_app(service, routes)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", event_hooks=_CHECKED
            ) as http:
                yield Desk(service, http)
        finally:
            await service.drain()
        assert service.host.stats().guests_live == 0


def in_desk(data: Path, test: Callable[[Desk], Any], **settings: Any) -> None:
    """Run a test in a service."""

    async def run() -> None:
        async with desk(data, **settings) as one:
            await test(one)

    asyncio.run(run())


class Child:
    """`sandhost serve` in a process of its own, on free ports."""

    def __init__(self, data: Path, *arguments: str, under: Sequence[str] = ()) -> None:
        self.output = data.parent / f"{data.name}-{time.monotonic_ns()}.txt"
        words = [*_FREE_PORTS, "--data", str(data), *arguments]  # of two of a kind the last counts
        environment = {**os.environ, "SANDHOST_ADMIN_TOKEN": ADMIN}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "sandhost", "serve", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=data.parent,
            )
        doors = ["http"] if ("--grpc", "none") in itertools.pairwise(words) else ["http", "grpc"]
        try:
            wait_until(
                lambda: self.process.poll() is not None or len(self._ports()) == len(doors),
                timeout=60,  # it begins with all of the machine's other work beside it
            )
            found = self._ports()
            assert list(found) == doors, self.said()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.port, self.grpc_port = found["http"], found.get("grpc")
        self.url = f"http://127.0.0.1:{self.port}"

    def _ports(self) -> dict[str, int]:
        said = re.findall(r"listening on (\w+)://127.0.0.1:(\d+)\n", self.said().decode())
        return {door: int(port) for door, port in said}

    def said(self) -> bytes:
        """Return what it has printed."""
        return self.output.read_bytes()

    def http(self) -> httpx.AsyncClient:
        """Return a client of its own connections."""
        return httpx.AsyncClient(base_url=self.url, timeout=100, event_hooks=_CHECKED)

    def guests(self) -> int:
        """Return how many guests are alive in it."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        view = httpx.get(f"{self.url}/debug/sandhost/view", headers=headers).json()
        return len(view["guests"])

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Send it a signal, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def child(data: Path, *arguments: str, under: Sequence[str] = ()) -> Iterator[Child]:
    """Have a child, started by the command `under` if there is one; it is killed at the end, if it is still there."""
    one = Child(data, *arguments, under=under)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
