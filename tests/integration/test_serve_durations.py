"""The histogram of requests in /metrics: each is counted once, by what it asked for and what became of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc.aio
import httpx
import pytest
from helpers.rpcs import Stub, refused
from helpers.serving import ADMIN, Child, Client, child
from prometheus_client.parser import text_string_to_metric_families

from sandhost.serve.durations import BOUNDS_S
from sandhost.serve.rpc.messages import CallManyRequest, CallRequest, OpenSessionRequest

PLUGIN = b"""(module (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "same") (param $at i32) (param $n i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $n))))
  (func (export "which") (result i32) (i32.const 1))
  (func (export "spin") (loop (br 0)))
  (func (export "trap") unreachable))"""
CALL = "/v1/plugins/p/call"
SCRAPE = ("http", "other", "2xx")

Key = tuple[str, str, str]


class Seen:
    """What a scrape says: how many of what, and how long all of it took."""

    def __init__(self, text: str) -> None:
        self.counts: Counter[Key] = Counter()
        self.sums: dict[Key, float] = {}
        self.buckets: dict[Key, dict[float, float]] = {}
        for family in text_string_to_metric_families(text):
            if family.name == "sandhost_serve_request_seconds":
                assert family.type == "histogram"
                for sample in family.samples:
                    labels = sample.labels
                    key = (labels["door"], labels["operation"], labels["status"])
                    if sample.name.endswith("_bucket"):
                        self.buckets.setdefault(key, {})[float(labels["le"])] = sample.value
                    elif sample.name.endswith("_count"):
                        self.counts[key] = int(sample.value)
                    else:
                        self.sums[key] = sample.value
        for key, buckets in self.buckets.items():
            assert list(buckets) == [*BOUNDS_S, float("inf")]
            assert list(buckets.values()) == sorted(buckets.values())
            assert buckets[float("inf")] == self.counts[key]


class Service:
    """A service, a tenant of it, and what its operator sees."""

    def __init__(self, one: Child, token: str) -> None:
        self.one, self.token = one, token

    def run(self, test: Callable[[Client, Callable[[], Awaitable[Seen]]], Awaitable[None]]) -> None:
        async def run() -> None:
            async with self.one.http() as http:
                await test(Client(http, self.token), lambda: seen(http))

        asyncio.run(run())


async def seen(http: httpx.AsyncClient) -> Seen:
    return Seen((await Client(http, ADMIN).ask("GET", "/metrics", 200)).text)


def came(before: Seen, after: Seen) -> dict[Key, int]:
    """Return what came between two scrapes, the first of which is not among it yet when it is answered."""
    more = after.counts - before.counts
    more.subtract([SCRAPE])
    return dict(+more)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    async def prepare() -> str:
        async with one.http() as http:
            admin = Client(http, ADMIN)
            await admin.ask("PUT", "/v1/admin/tenants/acme", 201, json={})
            path = "/v1/admin/tenants/acme/tokens"
            made = await admin.ask("POST", path, 201, json={"scopes": ["deploy", "invoke"]})
            await Client(http, made["token"]).deploy("p", PLUGIN)
            return str(made["token"])

    with child(tmp_path_factory.mktemp("durations") / "data") as one:
        yield Service(one, asyncio.run(prepare()))
        assert one.end() == 0, one.said()


def test_requests_are_counted_once_wherever_they_are_answered(service):
    async def test(acme: Client, look: Callable[[], Awaitable[Seen]]) -> None:
        nobody = Client(acme.http, "sh_" + "x" * 43)
        soon = {"headers": {"Sandhost-Deadline": "0.05"}}
        before = await look()
        for _ in range(3):  # parsed; then known by its head
            await acme.call("p", "which")
        await acme.call("p", "which", **soon)  # by the application
        for _ in range(2):
            await nobody.problem("POST", f"{CALL}/which", 401, "unknown")
            await acme.problem("POST", f"{CALL}/nothing", 400, "invalid")
            await acme.problem("POST", f"{CALL}/trap", 422, "guest-failed")
        await acme.problem("POST", f"{CALL}/spin", 504, "deadline-passed", **soon)
        assert (await acme.ask("POST", "/v1/plugins/p/bytes/same", content=b"x")).content == b"x"
        session = (await acme.ask("POST", "/v1/plugins/p/sessions", 201))["session"]
        await acme.call("p", "which", headers={"Sandhost-Session": session})
        await acme.ask("DELETE", f"/v1/sessions/{session}", 204)
        await acme.problem("POST", "/v1/plugins/p/run", 400, "invalid")
        assert await acme.deploy("q", PLUGIN)  # an upload, and a look how far it is
        await acme.ask("GET", "/v1/plugins", 200)
        await acme.ask("GET", "/v1/plugins/p", 200)
        await acme.ask("PUT", "/v1/plugins/p/aliases/live", json={"version": 1})
        await acme.problem("GET", "/v1/admin/tenants", 403, "denied")
        await acme.ask("GET", "/healthz", 200)
        await acme.problem("GET", "/nowhere", 404, "missing")
        assert came(before, await look()) == {
            ("http", "call", "2xx"): 5,
            ("http", "call", "4xx"): 6,
            ("http", "call", "5xx"): 1,
            ("http", "bytes", "2xx"): 1,
            ("http", "session", "2xx"): 2,
            ("http", "run", "4xx"): 1,
            ("http", "upload", "2xx"): 1,
            ("http", "version", "2xx"): 1,
            ("http", "plugin", "2xx"): 3,
            ("http", "admin", "4xx"): 1,
            ("http", "other", "2xx"): 1,
            ("http", "other", "4xx"): 1,
        }

    service.run(test)


def test_a_request_that_waits_for_the_one_before_it_took_as_long_and_who_goes_is_counted_as_gone(
    service,
):
    def request(function: str, deadline: str) -> bytes:
        return (
            f"POST {CALL}/{function} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token}\r\n"
            f"Sandhost-Deadline: {deadline}\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    async def test(_acme: Client, look: Callable[[], Awaitable[Seen]]) -> None:
        before = await look()
        reader, writer = await asyncio.open_connection("127.0.0.1", service.one.port)
        writer.write(request("spin", "0.3") + request("which", "9"))
        for status in (b"504", b"200"):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split()[1] == status
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
        after = await look()
        for key in (("http", "call", "5xx"), ("http", "call", "2xx")):
            assert after.counts[key] - before.counts[key] == 1
            assert after.sums[key] - before.sums.get(key, 0.0) > 0.25
            quick = [seen.buckets.get(key, {}).get(0.2, 0) for seen in (before, after)]
            assert quick[0] == quick[1]
        writer.write(request("spin", "30"))
        await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
        gone = ("http", "call", "gone")
        while (await look()).counts[gone] == after.counts[gone]:
            await asyncio.sleep(0.05)

    service.run(test)


def test_clients_make_no_series_of_their_own(service):
    async def test(acme: Client, look: Callable[[], Awaitable[Seen]]) -> None:
        await acme.ask("GET", "/nowhere")
        before = await look()
        for method in ("GET", "POST", "LOCK", "PURGE", "OPTIONS"):
            for path in (
                "/v1/x",
                f"/v1/plugins/p/{method}/x",
                f"/{method}",
                "/v1",
                "//",
                "/v1/",
                "/",
            ):
                await acme.ask(method, path, 404)
        assert set((await look()).counts) <= {*before.counts, ("http", "plugin", "4xx")}

    service.run(test)


def test_rpcs_are_counted_among_them_and_calls_of_one_stream_each(service):
    async def calls() -> AsyncIterator[CallManyRequest]:
        for number in range(3):
            function = "trap" if number else "which"
            yield CallManyRequest(id=number, call=CallRequest(plugin="p", function=function))

    async def test(acme: Client, look: Callable[[], Awaitable[Seen]]) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{service.one.grpc_port}") as channel:
            stub, nobody = Stub(channel, service.token), Stub(channel, "sh_" + "x" * 43)
            before = await look()
            assert await stub.call("p", "which") == [1]
            await refused(nobody.call("p", "which"), "UNAUTHENTICATED", "UNKNOWN")
            await refused(stub.call("p", "which", ref="9"), "NOT_FOUND", "MISSING")
            assert len([reply async for reply in stub.CallMany(calls())]) == 3
            await stub.OpenSession(OpenSessionRequest(plugin="p"))
            await stub.deploy("r", PLUGIN)
            going: Any = stub.Call(CallRequest(plugin="p", function="spin"))
            await asyncio.sleep(0.1)
            going.cancel()
            while not (await look()).counts["grpc", "call", "gone"]:
                await asyncio.sleep(0.05)
        more = came(before, await look())
        assert {key: count for key, count in more.items() if key[0] == "grpc"} == {
            ("grpc", "call", "2xx"): 2,
            ("grpc", "call", "4xx"): 4,
            ("grpc", "call", "gone"): 1,
            ("grpc", "session", "2xx"): 1,
            ("grpc", "upload", "2xx"): 1,
            ("grpc", "version", "2xx"): 1,
        }

    service.run(test)
