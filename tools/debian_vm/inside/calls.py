"""Calls a service on this machine by HTTP and gRPC: `calls.py WHAT HTTP_PORT GRPC_PORT`; prints what came, as JSON.

The operator's tokens are those that docs/deploying.md had made; the tenant's is in TOKEN, or the operator makes it.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from sandhost.serve.rpc.messages import CallReply, CallRequest, Value

CLONE = Path("/srv/sandhost")
PLUGIN = b"""(module (memory (export "memory") 1 1024)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "work") (param $n i32) (result i32)
    (loop $next (br_if $next (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $n))
  (func (export "fill") (param $pages i32) (result i32)
    (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1)) (then (return (i32.const 0))))
    (memory.fill (i32.const 65536) (i32.const 7) (i32.shl (local.get $pages) (i32.const 16)))
    (i32.const 1)))"""
FILL_PAGES = 32 * 16
"""32 MiB."""


class Tenant:
    """A tenant of the service, by both doors."""

    def __init__(self, http_port: str, grpc_port: str) -> None:
        self._url = f"http://127.0.0.1:{http_port}"
        self._address = f"127.0.0.1:{grpc_port}"
        self._observe = (CLONE / "observe_token").read_text()
        self._token = os.environ.get("TOKEN") or self._made_token()

    def _made_token(self) -> str:
        text = (CLONE / "sandhost.toml").read_text()
        admin = re.findall(r'^admin_token = "(.*)"', text, re.MULTILINE)[0]
        tenant = "/v1/admin/tenants/acme"
        self.ask("PUT", tenant, admin, {})
        scopes = {"scopes": ["deploy", "invoke"]}
        made: str = self.ask("POST", f"{tenant}/tokens", admin, scopes)["token"]
        return made

    def ask(self, method: str, path: str, token: str, body: Any = None, **headers: str) -> Any:
        """Make a request of HTTP; return the answer."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310
            self._url + path, data, {"Authorization": f"Bearer {token}", **headers}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            text = answer.read().decode()
        return json.loads(text) if answer.headers["content-type"] == "application/json" else text

    def deploy(self) -> dict[str, Any]:
        """Upload PLUGIN, which a process compiles, and wait until it can be called."""
        path = "/v1/plugins/p"
        made = self.ask("PUT", f"{path}?memory=64%20MiB&deadline=100%20s", self._token, PLUGIN)
        found: dict[str, Any] = self.ask(
            "GET", f"{path}/versions/{made['version']}?wait=100", self._token
        )
        return found

    def call(self, function: str, *arguments: int, **headers: str) -> list[int]:
        """Call by HTTP."""
        body = {"arguments": arguments}
        answer = self.ask("POST", f"/v1/plugins/p/call/{function}", self._token, body, **headers)
        results: list[int] = answer["results"]
        return results

    def call_by_grpc(self, function: str, *arguments: int) -> dict[str, Any]:
        """Call by gRPC; return that with what its health and its reflection say."""
        with grpc.insecure_channel(self._address) as channel:
            rpc = channel.unary_unary(
                "/sandhost.v1.Invoker/Call", CallRequest.SerializeToString, CallReply.FromString
            )
            values = [Value(i32=n) for n in arguments]
            order = CallRequest(plugin="p", function=function, arguments=values)
            reply = rpc(order, metadata=(("authorization", f"Bearer {self._token}"),), timeout=120)
            health = HealthStub(channel).Check(HealthCheckRequest(), timeout=120).status
            return {
                "results": [value.i32 for value in reply.results],
                "health": HealthCheckResponse.ServingStatus.Name(health),
                "services": sorted(ProtoReflectionDescriptorDatabase(channel).get_services()),
            }

    def limit_bytes(self) -> int | None:
        """Return what the service says that it may have resident."""
        metrics = self.ask("GET", "/metrics", self._observe)
        found = re.findall(r"^sandhost_pressure_limit_bytes (\S+)$", metrics, re.MULTILINE)
        return int(float(found[0])) if found else None

    def guests(self) -> int:
        """Return how many guests are alive."""
        return len(self.ask("GET", "/debug/sandhost/view", self._observe)["guests"])


def serve(tenant: Tenant) -> dict[str, Any]:
    """Deploy, call by both doors, ask for the limit."""
    deployed = tenant.deploy()
    by_http = tenant.call("add", 2, 3)
    by_grpc = tenant.call_by_grpc("add", 3, 4)
    return {"deployed": deployed, "http": by_http, "grpc": by_grpc, "limit": tenant.limit_bytes()}


def again(tenant: Tenant) -> dict[str, Any]:
    """Call what another life of the service was given."""
    return {"http": tenant.call("add", 2, 3), "grpc": tenant.call_by_grpc("add", 3, 4)}


def fill(tenant: Tenant) -> dict[str, Any]:
    """Keep guests that fill their memory, until the service will have no more; then call."""
    kept, refused = [], None
    for _ in range(64):
        try:
            session = tenant.ask("POST", "/v1/plugins/p/sessions", tenant._token)["session"]
            kept.append(session)
            filled = tenant.call("fill", FILL_PAGES, **{"Sandhost-Session": session})
        except urllib.error.HTTPError as error:
            refused = [error.code, json.load(error)["title"]]
            break
        if filled == [0]:
            refused = [200, "no memory"]
            break
    for session in kept:
        try:
            tenant.ask("DELETE", f"/v1/sessions/{session}", tenant._token)
        except urllib.error.HTTPError as error:
            if error.code != 404:  # ended by the service
                raise
    time.sleep(2)  # the pressure is gone
    return {"kept": len(kept), "refused": refused, "http": tenant.call("add", 2, 3)}


def stop(tenant: Tenant, command: str) -> dict[str, Any]:
    """Stop the service by a command while it answers a call; return both."""
    answers: list[Any] = []

    def work() -> None:
        answers.append(tenant.call("work", 1 << 30))

    calling = threading.Thread(target=work)
    calling.start()
    while tenant.guests() == 0:
        time.sleep(0.1)
    stopped = subprocess.run(command, shell=True, check=False).returncode  # noqa: S602
    calling.join()
    return {"answers": answers, "stopped": stopped}


if __name__ == "__main__":
    what, http_port, grpc_port, *more = sys.argv[1:]
    orders: dict[str, Callable[..., Any]] = {
        "serve": serve,
        "again": again,
        "fill": fill,
        "stop": stop,
    }
    print(json.dumps(orders[what](Tenant(http_port, grpc_port), *more)))
