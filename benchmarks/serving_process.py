"""The process of the servers that serving.py and serving_grpc.py measure."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from sandhost.serve.records import Version, VersionSettings
from sandhost.serve.service import Service
from sandhost.serve.tokens import Scope

__all__ = ["ADD", "ADMIN", "Serve", "deploy", "processor_s", "running", "tenant_token"]

ADMIN = "sh_" + "A" * 43
ADD = b"""(module (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))"""

Serve = Callable[[str, Connection], Awaitable[None]]
"""Serves with a folder; sends what is to be known of it, and ends when something is sent to it."""


def tenant_token(service: Service) -> str:
    """Add a tenant; return a token of its own."""
    service.registry.tenants.add("acme")
    return service.registry.tokens.add("acme", [Scope.DEPLOY, Scope.INVOKE])


async def deploy(service: Service, token: str, name: str, module: bytes) -> Version:
    """Deploy a module and wait until it is ready."""
    registry = service.registry
    who = registry.tokens.who(token)
    blob = registry.blobs.put([module], 1 << 20)
    settings = VersionSettings(service.settings.guest_limits())
    version = await service.deploy(who, name, blob, settings)
    while registry.plugins.version(who.tenant, name, version.number).state != "ready":
        await asyncio.sleep(0.01)
    return registry.plugins.version(who.tenant, name, version.number)


def _run(serve: Serve, folder: str, pipe: Connection) -> None:
    import uvloop

    uvloop.install()
    asyncio.run(serve(folder, pipe))


@contextlib.contextmanager
def running(serve: Serve) -> Iterator[tuple[int, object]]:
    """Have a server in a process of its own; give the process's number, and what it sent."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_run, args=(serve, folder, there))
        process.start()
        assert process.pid is not None
        yield process.pid, here.recv()
        here.send(None)
        process.join()
        assert process.exitcode == 0


def processor_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
