"""The OpenAPI document: that it is one, that it has what the service has, and that the service keeps to it.

Each answer that the other tests see is held against it too: see helpers/described.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers import guest_file
from helpers.described import CONSOLE, check_answer
from helpers.serving import ADMIN, Child, Client, Desk, child, in_desk
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from sandhost.serve.admin import admin_routes
from sandhost.serve.app import open_service
from sandhost.serve.config import Settings
from sandhost.serve.http import make_app
from sandhost.serve.observed import observe_routes
from sandhost.serve.openapi import document
from sandhost.serve.operations import OPERATIONS, Operation
from sandhost.serve.tokens import Scope

HELPERS = Path(__file__).parents[1] / "helpers"

SUM = b"""(module (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "reverse") (param i32 i32) (result i64) (i64.const 0)))"""
COUNT = b"""(module (global $n (mut i32) (i32.const 0))
  (func (export "next") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n)))"""


# ---- the document ----


def test_the_document_is_valid():
    OpenAPIV31SpecValidator(document()).validate()


def test_each_route_is_described_and_each_description_has_its_route(data):
    with open_service(Settings(data=data, admin_token=ADMIN)) as (service, _):
        app = make_app(service, [*admin_routes(service), *observe_routes(service)]).app.app.app
        routes = [one for one in app.routes if isinstance(one, Route)]
        assert len(routes) == len(app.routes)
        there = {
            (method, one.path)
            for one in routes
            for method in one.methods - {"HEAD"}
            if not one.path.startswith(CONSOLE)
        }
        asyncio.run(service.drain())
    described = [(one.method, one.path) for one in OPERATIONS]
    assert there == set(described)
    assert len(set(described)) == len(described)
    assert len({one.name for one in OPERATIONS}) == len(OPERATIONS)


def test_the_document_is_served_to_everybody_and_printed(data):
    async def test(one: Desk) -> None:
        served = (await one.http.get("/openapi.json")).json()
        assert served == document()

    in_desk(data, test)
    command = [sys.executable, "-m", "sandhost", "serve", "--openapi"]
    printed = subprocess.run(command, capture_output=True, check=True, cwd=data.parent)
    assert json.loads(printed.stdout) == document()


def test_what_a_service_has_not_its_document_has_not(data):
    async def test(one: Desk) -> None:
        paths = (await one.http.get("/openapi.json")).json()["paths"]
        assert "/v1/plugins" in paths
        assert not [path for path in paths if path.startswith(("/metrics", "/debug"))]

    in_desk(data, test, metrics="off", debug="off")


def test_each_operation_asks_for_its_scope(data):
    def path(operation: Operation) -> str:
        return operation.path.replace("{number}", "1").replace("{", "").replace("}", "")

    async def test(one: Desk) -> None:
        nobody = Client(one.http, None)
        others = {scope: set(Scope) - {scope} for scope in Scope}
        clients = {scope: await one.client("acme", *sorted(others[scope])) for scope in others}
        for operation in OPERATIONS:
            if operation.scope is None:
                response = await nobody.ask(operation.method, path(operation))
                assert response.status_code == 200
            else:
                await nobody.problem(operation.method, path(operation), 401, "unknown")
                lacking = clients[operation.scope]
                await lacking.problem(operation.method, path(operation), 403, "denied")

    in_desk(data, test)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (418, {}, {}),  # a status
        (200, {}, {"plugins": [], "more": 1}),  # a field
        (200, {}, {}),  # one that lacks
        (
            401,
            {},
            {"type": "urn:sandhost:unknown", "title": "unknown", "status": 401, "detail": ""},
        ),
        (
            404,
            {},
            {"type": "urn:sandhost:missing", "title": "missing", "status": 404, "detail": ""},
        ),
    ],
)
def test_an_answer_that_is_not_described_is_found(status, headers, body):
    kind = "application/json" if status == 200 else "application/problem+json"
    response = httpx.Response(
        status,
        headers={"Content-Type": kind, **headers},
        json=body,
        request=httpx.Request("GET", "http://test/v1/plugins"),
    )
    with pytest.raises(AssertionError):
        asyncio.run(check_answer(response))


# ---- schemathesis: the service keeps to it ----


async def furnish(one: Child) -> str:
    """Have something there to ask for; return a token that is good for all of it."""
    async with one.http() as http:
        admin = Client(http, ADMIN)
        for tenant in ("acme", "other"):
            await admin.ask("PUT", f"/v1/admin/tenants/{tenant}", 201, json={})
        scopes = {"scopes": ["deploy", "invoke", "admin"]}
        made = await admin.ask("POST", "/v1/admin/tenants/acme/tokens", 201, json=scopes)
        acme = Client(http, made["token"])
        for plugin, module in (
            ("sum", SUM),
            ("sum", SUM),
            ("count", COUNT),
            ("echo", guest_file("echo")),
        ):
            await acme.deploy(plugin, module)
        for version in (1, 2):
            await acme.ask("PUT", "/v1/plugins/sum/aliases/live", 200, json={"version": version})
        return str(made["token"])


def answered(report: Path) -> Iterator[tuple[str, int]]:
    """Yield the operations that were asked for, each with a status that came."""
    for line in report.read_text().splitlines():
        record = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for made in record.get("interactions", {}).values():
            if made.get("response"):
                yield record["label"], made["response"]["status_code"]


def schemathesis(data: Path, *arguments: str) -> float:
    """Have schemathesis ask a service, with all of its checks, in all of its phases.

    Return the share of the operations of which one was done: else it would have tested refusals alone.
    """
    report = data.parent / "report.ndjson"
    with child(data) as one:
        token = asyncio.run(furnish(one))
        command = [sys.executable, "-m", "schemathesis.cli"]
        result = subprocess.run(
            [
                *(*command, "--config-file", str(HELPERS / "contract.toml")),
                *("run", f"{one.url}/openapi.json", "--checks", "all"),
                *("--report", "ndjson", "--report-ndjson-path", str(report), *arguments),
            ],
            env={
                **os.environ,
                "SANDHOST_TEST_TOKEN": token,
                "SANDHOST_TEST_HOOKS": str(HELPERS / "contract_hooks.py"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=data.parent,
            check=False,
        )
        assert result.returncode == 0, f"{result.stdout.decode()}\n{one.said().decode()}"
        assert one.end() == 0, one.said()
    seen = set(answered(report))
    # It does not ask for the document again.
    asked = {f"{one.method} {one.path}" for one in OPERATIONS if one.name != "openapi"}
    done = {label for label, status in seen if 200 <= status < 300 and label in asked}
    print("never done:", *sorted(asked - done), sep="\n  ")
    return len(done) / len(asked)


@pytest.mark.timeout(400)  # 15 s, when nothing else runs
def test_schemathesis_finds_nothing(data):
    assert schemathesis(data, "--max-examples", "6", "--generation-deterministic") >= 0.8


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_schemathesis_finds_nothing_in_thousands_of_requests(data, seed):
    # One may be out of luck: what it asks for was removed by another.
    assert schemathesis(data, "--max-examples", "50", "--seed", str(seed)) > 0.95


# ---- what it found ----


def test_a_wrong_method_is_answered_with_all_that_are_right(data):
    """`Allow` had the methods of the first route of the path alone, and the problem said it were a 400."""

    async def test(one: Desk) -> None:
        for method in ("PATCH", "OPTIONS", "POST"):
            response = await one.admin.ask(method, "/v1/plugins/p")
            assert response.status_code == 405
            assert response.headers["allow"] == "DELETE, GET, HEAD, PUT"
            assert (response.json()["status"], response.json()["title"]) == (405, "wrong-method")

    in_desk(data, test)


def test_a_profile_that_is_not_there_is_a_problem(data):
    """It was a line of text."""

    async def test(one: Desk) -> None:
        await one.admin.problem("GET", "/debug/pprof/none", 404, "missing")
        await one.admin.problem("GET", "/debug/pprof/heap?seconds=soon", 400, "invalid")
        await one.admin.problem("GET", "/debug/pprof/heap?seconds=301", 400, "invalid")

    in_desk(data, test)


def test_a_limit_that_is_too_high_is_refused(data):
    """It was cut down to 1000, and the page was taken for the whole."""

    async def test(one: Desk) -> None:
        await one.admin.ask("GET", "/v1/admin/audit?limit=1000", 200)
        await one.admin.problem("GET", "/v1/admin/audit?limit=1001", 400, "invalid")

    in_desk(data, test)


def test_whole_numbers_may_have_a_point(data):
    """JSON has one kind of numbers: 2.0 is a whole one, and was refused."""

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", COUNT)
        body = b'{"version": 1.0}'
        made = await acme.ask("PUT", "/v1/plugins/p/aliases/live", 200, content=body)
        assert made["version"] == 1
        body = b'{"quotas": {"guests": 2.0, "memory_limit": 1e9}}'
        shown = await one.admin.ask("PUT", "/v1/admin/tenants/other", 201, content=body)
        assert shown["quotas"] == {"guests": 2, "memory_limit": 10**9}
        for number in (b"2.5", b"true", b'"2"', b"1e400", b"-1.0"):
            body = b'{"quotas": {"guests": ' + number + b"}}"
            await one.admin.problem("PUT", "/v1/admin/tenants/other", 400, "invalid", content=body)

    in_desk(data, test)


def test_how_long_a_token_lives_is_a_number_and_may_be_years(data):
    """Text was taken for a number, and eleven days were the most."""

    async def test(one: Desk) -> None:
        await one.client("acme")
        place = "/v1/admin/tenants/acme/tokens"
        for left, status in ((3e7, 201), (None, 201), ("3", 400), (True, 400), (-1, 400)):
            body = {"scopes": ["invoke"], "expires_in_s": left}
            response = await one.admin.ask("POST", place, json=body)
            assert response.status_code == status, left

    in_desk(data, test)


def test_a_label_may_be_in_any_script(data):
    """What could not be in it was Python's to say, and no document could."""

    async def test(one: Desk) -> None:
        await one.client("acme")
        place = "/v1/admin/tenants/acme/tokens"
        for label in ("Ü", "日本", "a\N{NO-BREAK SPACE}b", "\N{ZERO WIDTH JOINER}"):
            body = {"scopes": ["invoke"], "label": label}
            made = await one.admin.ask("POST", place, 201, json=body)
            assert made["label"] == label
        for label in ("a\nb", "\0", "\x9b", "\u2028", "x" * 201):
            body = {"scopes": ["invoke"], "label": label}
            await one.admin.problem("POST", place, 400, "invalid", json=body)

    in_desk(data, test)


def test_a_variable_has_a_name_and_a_value(data):
    """`env=NAME` was taken, and so was one without a name."""

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        for env in ("NAME", "", "=", "=VALUE"):
            path = f"/v1/plugins/p?env={env}"
            await acme.problem("PUT", path, 400, "invalid", content=COUNT)
        await acme.deploy("p", COUNT, env="NAME=")

    in_desk(data, test)
