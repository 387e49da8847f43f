"""The service over HTTP, from the request to the guest and back, in this process. For sockets and signals
see test_serve_process.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import time
from pathlib import Path

import pytest
from helpers import guest_file
from helpers.serving import Client, Desk, desk, in_desk

from sandhost.govern.ladder import Level

ADD = guest_file("add")

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

COUNTER = b"""(module
  (global $n (mut i32) (i32.const 0))
  (func (export "warm") (global.set $n (i32.const 100)))
  (func (export "next") (result i32)
    (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n)))"""


def versioned(number: int) -> bytes:
    """Return a module whose function `which` returns this number."""
    return f'(module (func (export "which") (result i32) (i32.const {number})))'.encode()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


# ---- plugins and calls ----


def test_a_plugin_is_uploaded_compiled_and_called(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        response = await acme.ask("PUT", "/v1/plugins/sum", content=ADD.read_bytes())
        assert response.status_code == 202
        assert response.headers["location"] == "/v1/plugins/sum/versions/1"
        found = await acme.ask("GET", response.headers["location"] + "?wait=30", 200)
        assert (found["state"], found["error"]) == ("ready", None)
        assert found["functions"]["add"] == "(i32, i32) -> (i32)"
        assert await acme.call("sum", "add", 2, 3) == [5]
        assert await acme.call("sum", "add", 2**32 - 1, 1) == [0]
        listed = await acme.ask("GET", "/v1/plugins", 200)
        assert [p["plugin"] for p in listed["plugins"]] == ["sum"]
        assert listed["plugins"][0]["latest"] == 1

    in_desk(data, test)


def test_a_module_that_cannot_be_loaded_fails_with_its_reason(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        for number, module in enumerate((b"", b"\0asm rubbish", b"(module (func"), 1):
            await acme.ask("PUT", "/v1/plugins/bad", 202, content=module)
            path = f"/v1/plugins/bad/versions/{number}?wait=30"
            found = await acme.ask("GET", path, 200)
            assert found["state"] == "failed"
            assert found["error"]
        found = await acme.problem("POST", "/v1/plugins/bad/call/f", 409, "not-ready")
        assert "ready" in found["detail"]
        await acme.problem("POST", "/v1/plugins/bad/call/f?ref=1", 409, "not-ready")

    in_desk(data, test)


def test_what_begins_as_no_module_is_refused_and_is_no_version(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        for noise in (b"\xff" * 99, b"\0elf", bytes(300_000)):
            found = await acme.problem("PUT", "/v1/plugins/n", 422, "bad-plugin", content=noise)
            assert found["offset"] == 0
        await acme.problem("GET", "/v1/plugins/n", 404, "missing")
        assert os.listdir(data / "blobs") == []

    in_desk(data, test)


def test_values_at_the_edge_come_back_as_they_went(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("types", guest_file("types"))
        for function, value, returned in (
            ("i32", 2**32 - 1, -1),
            ("i64", -(2**63), -(2**63)),
            ("i64", 2**64 - 1, -1),
            ("f32", "NaN", "NaN"),
            ("f64", "-Infinity", "-Infinity"),
            ("f64", 1e308, 1e308),
            ("v128", "000102030405060708090a0b0c0d0e0f", "000102030405060708090a0b0c0d0e0f"),
        ):
            assert await acme.call("types", function, value) == [returned]
        assert await acme.call("types", "swap", 1, 2**40) == [2**40, 1]
        assert await acme.call("types", "nothing") == []
        bad = [
            ("i32", b'{"arguments": [4294967296]}'),
            ("i32", b'{"arguments": [1, 2]}'),
            ("i32", b'{"arguments": []}'),
            ("i32", b'{"arguments": [true]}'),
            ("i32", b'{"arguments": [1.5]}'),
            ("f64", b'{"arguments": [NaN]}'),
            ("f64", b'{"arguments": [1e999]}'),  # JSON readers make infinity of it
            ("f64", b'{"arguments": 1}'),
            ("f64", b'{"args": [1]}'),
            ("f64", b"[1]"),
            ("f64", b"{"),
            ("f64", b"\xff"),
            ("f64", b"[" * 50_000),
            ("i64", b'{"arguments": [' + b"9" * 5000 + b"]}"),
            ("externref", b'{"arguments": [null]}'),
            ("absent", b'{"arguments": []}'),
        ]
        for function, content in bad:
            path = f"/v1/plugins/types/call/{function}"
            await acme.problem("POST", path, 400, "invalid", content=content)

    in_desk(data, test)


def test_bytes_go_in_and_come_out(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("rev", REVERSE)
        path = "/v1/plugins/rev/bytes/"
        for content in (b"", b"x", os.urandom(1000)):
            response = await acme.ask("POST", f"{path}reverse", 200, content=content)
            assert response.content == content[::-1]
        await acme.problem("POST", f"{path}outside", 422, "guest-failed", content=b"x")
        await acme.problem("POST", f"{path}huge", 422, "guest-failed", content=b"x")
        await acme.problem("POST", f"{path}numbers", 400, "invalid", content=b"x")
        # More than its memory has room for.
        await acme.problem("POST", f"{path}reverse", 422, "guest-failed", content=bytes(300_000))

    in_desk(data, test)


def test_a_guest_that_traps_says_where_and_the_next_one_is_fresh(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("trap", guest_file("unreachable"))
        functions = (await acme.ask("GET", "/v1/plugins/trap/versions/1", 200))["functions"]
        name = next(iter(functions))
        found = await acme.problem("POST", f"/v1/plugins/trap/call/{name}", 422, "guest-failed")
        assert found["trap"]
        await acme.deploy("count", COUNTER)
        assert [await acme.call("count", "next") for _ in range(3)] == [[1], [1], [1]]
        await acme.deploy("warmed", COUNTER, warm="warm")
        assert [await acme.call("warmed", "next") for _ in range(3)] == [[101], [101], [101]]

    in_desk(data, test)


def test_a_versions_limits_hold(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("spin", guest_file("spin"), deadline="50 ms")
        await acme.problem("POST", "/v1/plugins/spin/call/spin", 504, "deadline-passed")
        await acme.deploy("fuel", guest_file("spin"), fuel="10000")
        found = await acme.problem("POST", "/v1/plugins/fuel/call/spin", 422, "guest-failed")
        assert found["limit"] == "OutOfFuel"
        for query in ("memory=lots", "deadline=0", "fuel=-1", "fuel=x", "colour=red", "argv=%00"):
            path = f"/v1/plugins/spin?{query}"
            await acme.problem("PUT", path, 400, "invalid", content=ADD.read_bytes())

    in_desk(data, test)


def test_a_requests_deadline_ends_its_guest(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("spin", guest_file("spin"))
        path = "/v1/plugins/spin/call/spin"
        before = time.monotonic()
        for left in ("0.05", "0"):
            headers = {"Sandhost-Deadline": left}
            await acme.problem("POST", path, 504, "deadline-passed", headers=headers)
        assert time.monotonic() - before < 9  # the version's own would be 10 s
        assert one.service.host.stats().guests_live == 0
        session = await acme.ask("POST", "/v1/plugins/spin/sessions", 201)
        headers = {"Sandhost-Deadline": "0.05", "Sandhost-Session": session["session"]}
        await acme.problem("POST", path, 504, "deadline-passed", headers=headers)
        await acme.problem("POST", path, 404, "missing", headers=headers)
        for left in ("-1", "nan", "soon", "1e9"):
            headers = {"Sandhost-Deadline": left}
            await acme.problem("POST", path, 400, "invalid", headers=headers)

    in_desk(data, test)


def test_a_command_that_never_begins_is_an_ordinary_problem(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("sum", ADD)
        await acme.problem("POST", "/v1/plugins/sum/run", 400, "invalid")
        await acme.problem("POST", "/v1/plugins/none/run", 404, "missing")
        await Client(one.http, None).problem("POST", "/v1/plugins/sum/run", 401, "unknown")

    in_desk(data, test)


def test_a_command_that_fails_by_our_fault_is_logged(data, monkeypatch, caplog):
    def broken(*_given: object) -> object:
        raise KeyError("what the tenant is not to read")

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("echo", guest_file("echo"))
        monkeypatch.setattr("sandhost.serve.service.Wasi", broken)
        told = await acme.problem("POST", "/v1/plugins/echo/run", 500, "internal")
        assert "not to read" not in told["detail"]

    with caplog.at_level(logging.ERROR, "sandhost.serve"):
        in_desk(data, test)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]


# ---- versions, aliases ----


def test_aliases_switch_and_go_back_while_calls_go_on(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        for number in (1, 2, 3):
            assert await acme.deploy("p", versioned(number)) == number
        alias = "/v1/plugins/p/aliases/live"
        await acme.ask("PUT", alias, 200, json={"version": 1})
        seen: list[int] = []
        over = False

        async def calls() -> None:
            while not over:
                seen.extend(await acme.call("p", "which", params={"ref": "live"}))

        callers = [asyncio.ensure_future(calls()) for _ in range(4)]
        for number in (2, 3) * 5:
            made = await acme.ask("PUT", alias, 200, json={"version": number})
            assert made["version"] == number
            # Acknowledged, so no request that comes from now on may see another one.
            assert await acme.call("p", "which", params={"ref": "live"}) == [number]
        back = await acme.ask("POST", f"{alias}/rollback", 200)
        assert (back["version"], back["previous"]) == (2, 3)
        assert await acme.call("p", "which", params={"ref": "live"}) == [2]
        over = True
        await asyncio.gather(*callers)
        assert set(seen) <= {1, 2, 3}
        assert {2, 3} <= set(seen)
        assert await acme.call("p", "which") == [3]
        assert await acme.call("p", "which", params={"ref": "1"}) == [1]

    in_desk(data, test)


def test_the_module_of_a_version_that_is_gone_leaves_the_disk(data, monkeypatch):
    monkeypatch.setattr("sandhost.serve.upkeep._SWEEP_EVERY_S", 0.01)

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", versioned(1))
        await acme.deploy("p", versioned(2))
        # From here on: an upload that no version names yet is spared no longer.
        monkeypatch.setattr("sandhost.serve.registry._SWEEP_AGE_S", 0.0)
        digests = [
            one.service.registry.plugins.version("acme", "p", number).digest for number in (1, 2)
        ]
        monkeypatch.setattr(
            "sandhost.serve.registry._SWEEP_AGE_S", 0.0
        )  # not before: it spares uploads
        await acme.ask("DELETE", "/v1/plugins/p/versions/1", 204)
        monkeypatch.setattr(
            "sandhost.serve.registry._SWEEP_AGE_S", 0.0
        )  # nothing is on its way any more
        blobs = one.service.registry.blobs
        for _ in range(500):
            if digests[0] not in blobs:
                break
            await asyncio.sleep(0.01)
        assert [digest in blobs for digest in digests] == [False, True]

    in_desk(data, test)


def test_a_version_goes_only_when_no_alias_names_it(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", versioned(1))
        await acme.deploy("p", versioned(2))
        await acme.ask("PUT", "/v1/plugins/p/aliases/live", 200, json={"version": 1})
        await acme.problem("DELETE", "/v1/plugins/p/versions/1", 409, "conflict")
        await acme.ask("DELETE", "/v1/plugins/p/aliases/live", 204)
        await acme.ask("DELETE", "/v1/plugins/p/versions/1", 204)
        await acme.problem("GET", "/v1/plugins/p/versions/1", 404, "missing")
        await acme.problem("POST", "/v1/plugins/p/call/which?ref=1", 404, "missing")
        assert await acme.call("p", "which") == [2]
        for body in ({"version": "2"}, {"version": True}, {}, {"version": 2, "more": 1}):
            path = "/v1/plugins/p/aliases/live"
            await acme.problem("PUT", path, 400, "invalid", json=body)

    in_desk(data, test)


# ---- sessions ----


def test_a_session_keeps_its_guest_until_it_is_closed(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("count", COUNTER)
        made = await acme.ask("POST", "/v1/plugins/count/sessions", 201)
        headers = {"Sandhost-Session": made["session"]}
        assert await acme.call("count", "next", headers=headers) == [1]
        await acme.deploy("count", versioned(2))  # a session stays with what it began with
        assert await acme.call("count", "next", headers=headers) == [2]
        many = await asyncio.gather(
            *(acme.call("count", "next", headers=headers) for _ in range(8))
        )
        assert sorted(many) == [[n] for n in range(3, 11)]
        await acme.deploy("other", COUNTER)
        path = "/v1/plugins/other/call/next"
        await acme.problem("POST", path, 404, "missing", headers=headers)
        await acme.ask("DELETE", f"/v1/sessions/{made['session']}", 204)
        path = "/v1/plugins/count/call/next"
        await acme.problem("POST", path, 404, "missing", headers=headers)
        assert one.service.host.stats().guests_live == 0

    in_desk(data, test)


def test_a_session_that_nobody_uses_ends(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("count", COUNTER)
        await acme.ask("POST", "/v1/plugins/count/sessions", 201)
        assert one.service.host.stats().guests_live == 1
        for _ in range(500):
            if not one.service.host.stats().guests_live:
                break
            await asyncio.sleep(0.02)
        assert one.service.sessions.stats().idled == 1
        assert one.service.host.stats().guests_live == 0

    in_desk(data, test, session_idle=0.2)


# ---- requests that come again ----


def test_a_request_with_a_key_is_done_once(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("count", COUNTER)
        made = await acme.ask("POST", "/v1/plugins/count/sessions", 201)
        headers = {"Sandhost-Session": made["session"], "Idempotency-Key": "k1"}
        same = await asyncio.gather(
            *(acme.call("count", "next", headers=headers) for _ in range(10))
        )
        assert same == [[1]] * 10
        headers["Idempotency-Key"] = "k2"
        assert await acme.call("count", "next", headers=headers) == [2]
        headers["Idempotency-Key"] = "k1"
        assert await acme.call("count", "next", headers=headers) == [1]
        path = "/v1/plugins/count/call/warm"
        await acme.problem("POST", path, 409, "conflict", headers=headers)
        other = await one.client("other")  # another tenant's keys are its own
        await other.deploy("count", COUNTER)
        assert await other.call("count", "next", headers={"Idempotency-Key": "k1"}) == [1]
        for key in ("x" * 256, "two words"):
            headers = {"Idempotency-Key": key}
            await acme.problem("POST", path, 400, "invalid", headers=headers)

    in_desk(data, test)


def test_an_upload_with_a_key_makes_one_version(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        headers = {"Idempotency-Key": "deploy-7"}
        for _ in range(3):
            made = await acme.ask(
                "PUT", "/v1/plugins/p", 202, content=versioned(1), headers=headers
            )
            assert made["version"] == 1
        found = await acme.ask("GET", "/v1/plugins/p", 200)
        assert len(found["versions"]) == 1
        path = "/v1/plugins/p"
        await acme.problem("PUT", path, 409, "conflict", content=versioned(2), headers=headers)

    in_desk(data, test)


# ---- who may ----


def test_who_has_no_valid_token_learns_nothing(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", versioned(1))
        token = acme.headers["Authorization"].removeprefix("Bearer ")
        flipped = token[:-1] + ("A" if token[-1] != "A" else "B")
        wrong = [
            {},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Bearer {flipped}"},
            {"Authorization": f"Basic {token}"},
            {"Authorization": f"Bearer {token} {token}"},
            {"Authorization": "Bearer sh_" + "B" * 43},
            {"Authorization": f"Bearer {token}".encode() + b"\xff"},
        ]
        places = [
            ("POST", "/v1/plugins/p/call/which"),
            ("POST", "/v1/plugins/absent/call/which"),
            ("GET", "/v1/plugins"),
            ("PUT", "/v1/plugins/p"),
            ("GET", "/v1/admin/tenants/acme"),
            ("GET", "/v1/admin/tenants/absent"),
            ("DELETE", "/v1/sessions/0123"),
            ("GET", "/metrics"),
            ("GET", "/debug/sandhost/view"),
        ]
        answers = set()
        for method, path in places:
            for headers in wrong:
                response = await one.http.request(method, path, headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                answers.add((response.content, tuple(sorted(response.headers.items()))))
        assert len(answers) == 1  # nothing in an answer tells one guess from another

    in_desk(data, test)


def test_a_scope_is_good_for_its_own_part(data):
    async def test(one: Desk) -> None:
        caller = await one.client("acme", "invoke")
        deployer = await one.client("acme", "deploy")
        await caller.problem("PUT", "/v1/plugins/p", 403, "denied", content=versioned(1))
        made = await deployer.ask("PUT", "/v1/plugins/p", 202, content=versioned(1))
        assert made["version"] == 1
        await caller.ask("GET", "/v1/plugins/p/versions/1?wait=30", 200)
        await deployer.problem("POST", "/v1/plugins/p/call/which", 403, "denied")
        path = "/v1/plugins/p/aliases/x"
        await caller.problem("PUT", path, 403, "denied", json={"version": 1})
        seen = set()
        for client in (caller, deployer):
            for tenant in ("acme", "other", "absent"):
                for method in ("GET", "PUT"):
                    path = f"/v1/admin/tenants/{tenant}"
                    found = await client.problem(method, path, 403, "denied", json={})
                    seen.add(found["detail"])
        assert len(seen) == 1
        await caller.problem("GET", "/v1/admin/audit", 403, "denied")
        await caller.problem("GET", "/metrics", 403, "denied")

    in_desk(data, test)


def test_a_revoked_and_an_expired_token_are_nobodys(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        place = "/v1/admin/tenants/acme/tokens"
        made = await one.admin.ask("POST", place, 201, json={"scopes": ["invoke"], "label": "ci"})
        short = await one.admin.ask(
            "POST", place, 201, json={"scopes": ["invoke"], "expires_in_s": 0}
        )
        ci = Client(one.http, made["token"])
        await ci.ask("GET", "/v1/plugins", 200)
        await Client(one.http, short["token"]).problem("GET", "/v1/plugins", 401, "unknown")
        listed = await one.admin.ask("GET", place, 200)
        assert "ci" in [token["label"] for token in listed["tokens"]]
        assert made["token"] not in json.dumps(listed)
        await one.admin.ask("DELETE", f"{place}/{made['id']}", 204)
        await ci.problem("GET", "/v1/plugins", 401, "unknown")
        await one.admin.problem("DELETE", f"{place}/{made['id']}", 404, "missing")
        await acme.ask("GET", "/v1/plugins", 200)
        for body in (
            {"scopes": []},
            {"scopes": ["root"]},
            {"scopes": "invoke"},
            {"scopes": ["invoke"], "label": "\n"},
            {"scopes": ["invoke"], "expires_in_s": "soon"},
            {"scopes": ["invoke"], "more": 1},
        ):
            await one.admin.problem("POST", place, 400, "invalid", json=body)

    in_desk(data, test)


def test_two_tenants_do_not_reach_each_other(data):
    async def test(one: Desk) -> None:
        acme, evil = await one.client("acme"), await one.client("evil")
        await acme.deploy("p", COUNTER)
        await acme.ask("PUT", "/v1/plugins/p/aliases/live", 200, json={"version": 1})
        made = await acme.ask("POST", "/v1/plugins/p/sessions", 201)
        headers = {"Sandhost-Session": made["session"]}
        for method, path in (
            ("GET", "/v1/plugins/{}"),
            ("GET", "/v1/plugins/{}/versions/1"),
            ("DELETE", "/v1/plugins/{}/versions/1"),
            ("POST", "/v1/plugins/{}/call/next"),
            ("POST", "/v1/plugins/{}/call/next?ref=live"),
            ("POST", "/v1/plugins/{}/bytes/next"),
            ("POST", "/v1/plugins/{}/run"),
            ("POST", "/v1/plugins/{}/sessions"),
            ("POST", "/v1/plugins/{}/aliases/live/rollback"),
        ):
            theirs = await evil.problem(method, path.format("p"), 404, "missing")
            nobodys = await evil.problem(method, path.format("q"), 404, "missing")
            # The same words, but for the name that was asked for.
            assert theirs["detail"].replace("'p'", "'q'") == nobodys["detail"]
        assert (await evil.ask("GET", "/v1/plugins", 200)) == {"plugins": []}
        await evil.deploy("p", COUNTER)  # the same name, and another plugin
        theirs = await evil.problem(
            "POST", "/v1/plugins/p/call/next", 404, "missing", headers=headers
        )
        headers = {"Sandhost-Session": "0" * 32}
        nobodys = await evil.problem(
            "POST", "/v1/plugins/p/call/next", 404, "missing", headers=headers
        )
        assert theirs == nobodys
        await evil.problem("DELETE", f"/v1/sessions/{made['session']}", 404, "missing")
        headers = {"Sandhost-Session": made["session"]}
        assert await acme.call("p", "next", headers=headers) == [1]

    in_desk(data, test)


# ---- the operator ----


def test_a_tenants_quotas_hold(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme", guests=2)
        await acme.deploy("count", COUNTER)
        for _ in range(2):
            await acme.ask("POST", "/v1/plugins/count/sessions", 201)
        response = await acme.ask("POST", "/v1/plugins/count/sessions")
        assert response.status_code == 429, response.text
        place = "/v1/admin/tenants/acme"
        shown = await one.admin.ask("PUT", place, 200, json={"quotas": {"guests": 3}})
        assert shown["quotas"] == {"guests": 3}
        await acme.ask("POST", "/v1/plugins/count/sessions", 201)  # from now on
        await one.admin.ask("PUT", place, 200, json={"quotas": {"guests": 1}})
        await acme.problem("POST", "/v1/plugins/count/sessions", 429, "too-many")
        await one.admin.ask("PUT", place, 200, json={})
        await acme.ask("POST", "/v1/plugins/count/sessions", 201)
        for quotas in ({"guests": -1}, {"guests": True}, {"gusts": 1}, {"memory_limit": "big"}):
            await one.admin.problem("PUT", place, 400, "invalid", json={"quotas": quotas})
        for name in ("Acme", "a b", "-", "x" * 64, "a%2Fb"):
            response = await one.admin.ask("PUT", f"/v1/admin/tenants/{name}", json={})
            assert response.status_code in (400, 404)

    in_desk(data, test)


def test_the_audit_log_has_what_was_changed_and_what_was_refused(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", versioned(1))
        await acme.ask("PUT", "/v1/plugins/p/aliases/live", 200, json={"version": 1})
        await acme.problem("DELETE", "/v1/plugins/p/versions/1", 409, "conflict")
        found = await one.admin.ask("GET", "/v1/admin/audit", 200)
        told = [(e["tenant"], e["action"], e["subject"], e["outcome"]) for e in found["entries"]]
        assert told == [
            ("acme", "version.remove", "p/1", "conflict"),
            ("acme", "alias.set", "p/live", "done"),
            ("acme", "version.add", "p", "done"),
            ("operator", "token.add", "acme", "done"),
            ("operator", "tenant.put", "acme", "done"),
            ("operator", "token.add", "operator", "done"),  # the first admin token
            ("operator", "tenant.put", "operator", "done"),
        ]
        before = found["entries"][2]["at_ns"]
        page = await one.admin.ask("GET", f"/v1/admin/audit?limit=1&before={before}", 200)
        assert page["entries"] == [found["entries"][3]]
        page = await one.admin.ask("GET", "/v1/admin/audit?tenant=acme", 200)
        assert page["entries"] == found["entries"][:3]

    in_desk(data, test)


def test_refusals_that_cannot_be_written_do_not_keep_the_next_ones_out(data, monkeypatch, caplog):
    monkeypatch.setattr("sandhost.serve.upkeep._TELL_EVERY_S", 0.01)
    stranger = "sh_" + "x" * 43

    async def refusals(one: Desk) -> int:
        found = await one.admin.ask("GET", "/v1/admin/audit", 200)
        return sum(entry["action"] == "token.refuse" for entry in found["entries"])

    async def test(one: Desk) -> None:
        other = sqlite3.connect(data / "registry.db", isolation_level=None)
        with contextlib.closing(other):
            other.execute("BEGIN IMMEDIATE")  # nobody else writes
            await Client(one.http, stranger).problem("GET", "/v1/plugins", 401, "unknown")
            while "database is locked" not in caplog.text:
                await asyncio.sleep(0.01)
            other.execute("ROLLBACK")
        assert await refusals(one) == 0
        await Client(one.http, stranger).problem("GET", "/v1/plugins", 401, "unknown")
        while not await refusals(one):
            await asyncio.sleep(0.01)

    in_desk(data, test)
    assert "refusals could not be audited count=1" in caplog.text


def test_who_watches_sees_figures_and_the_picture(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("count", COUNTER)
        await acme.call("count", "next")
        await acme.ask("POST", "/v1/plugins/count/sessions", 201)
        watcher = Client(one.http, "watch-" + "x" * 20)
        for client in (watcher, one.admin):
            response = await client.ask("GET", "/metrics", 200)
            lines = response.text.splitlines()
            assert "sandhost_serve_sessions_live 1.0" in lines
            assert "sandhost_serve_requests_admitted_total 2.0" in lines
            assert any(line.startswith("sandhost_spawns_total") for line in lines), lines
            response = await client.ask("GET", "/debug/sandhost/view")
            assert response.json()["guests"]
            response = await client.ask("GET", "/debug/pprof/heap?debug=1", 200)
            assert "alloc_objects" in response.text
        secret = "watch-" + "x" * 20
        profile = await one.http.request("GET", f"/debug/pprof/guests?token={secret}")
        assert profile.status_code == 200 and profile.content[:2] == b"\x1f\x8b"
        assert (await one.http.request("GET", "/debug/pprof/heap")).status_code == 401
        await watcher.problem("GET", "/v1/plugins", 401, "unknown")
        await watcher.problem("GET", "/v1/admin/tenants", 401, "unknown")

    in_desk(data, test, observe_token="watch-" + "x" * 20)


def test_what_is_switched_off_is_not_there(data):
    async def test(one: Desk) -> None:
        for path in ("/metrics", "/debug/sandhost/view", "/debug/pprof/heap", "/", "/v2"):
            await one.admin.problem("GET", path, 404, "missing")
        response = await one.http.request("PATCH", "/v1/plugins/p")
        assert response.status_code == 405
        assert "PUT" in response.headers["allow"]

    in_desk(data, test, metrics="off", debug="off")


# ---- too much ----


def test_bodies_and_modules_have_a_largest_size(data):
    async def pieces(count: int):
        for _ in range(count):
            yield b" " * 1000

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("rev", REVERSE)
        for content in (bytes(10_001), pieces(11)):
            path = "/v1/plugins/rev/bytes/reverse"
            await acme.problem("POST", path, 413, "too-large", content=content)
        await acme.problem(
            "POST", "/v1/plugins/rev/call/alloc", 413, "too-large", content=pieces(11)
        )
        for content in (b" " * 20_001, pieces(21)):
            path = "/v1/plugins/rev"
            await acme.problem("PUT", path, 413, "too-large", content=content)
        assert len(os.listdir(data / "blobs")) == 1

    in_desk(data, test, body_limit=10_000, upload_limit=20_000)


def test_the_body_of_a_call_that_cannot_be_is_not_read_and_numbers_take_little(data):
    async def unwanted():
        raise AssertionError
        yield b""

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("rev", REVERSE)
        for path, status, code in (
            ("/v1/plugins/rev/bytes/alloc", 400, "invalid"),
            ("/v1/plugins/rev/bytes/nope", 400, "invalid"),
            ("/v1/plugins/rev/bytes/reverse?ref=7", 404, "missing"),
        ):
            await acme.problem("POST", path, status, code, content=unwanted())
        numbers = b'{"arguments": [1]%s}' % (b" " * 65_000)
        assert (await acme.ask("POST", "/v1/plugins/rev/call/alloc", 200, content=numbers))[
            "results"
        ]
        path = "/v1/plugins/rev/call/alloc"
        await acme.problem("POST", path, 413, "too-large", content=numbers + b" " * 600)

    in_desk(data, test)


def test_short_memory_becomes_a_429_and_goes_again(data):
    """The limit is moved instead of the memory, as in test_pressure.py."""

    async def level(one: Desk, wanted: Level) -> None:
        for _ in range(1500):
            if one.service.host.pressure.level == wanted:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(one.service.host.pressure.level)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("count", COUNTER)
        pressure = one.service.host.pressure
        pressure.limit_bytes = int(resident() / 0.96)
        await level(one, Level.RELEASE)
        path = "/v1/plugins/count/call/next"
        response = await acme.ask("POST", path)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["retry_after_s"] > 0
        response = await one.http.get("/readyz")
        assert (response.status_code, response.json()["pressure"]) == (503, "release")
        assert (await one.http.get("/healthz")).status_code == 200
        await acme.ask("GET", "/v1/plugins", 200)  # what starts no guest goes on
        pressure.limit_bytes = 64 * 2**30
        await level(one, Level.CALM)
        assert await acme.call("count", "next") == [1]
        assert (await one.http.get("/readyz")).status_code == 200
        assert one.service.admission.stats().refused["pressure"] == 1

    in_desk(data, test, process_limit="64 GiB")


def test_what_was_known_is_known_after_a_restart(data):
    async def both() -> None:
        async with desk(data) as one:
            acme = await one.client("acme", guests=7)
            await acme.deploy("p", versioned(1), deadline="3 s")
            await acme.deploy("p", versioned(2))
            await acme.ask("PUT", "/v1/plugins/p/aliases/live", 200, json={"version": 1})
            assert await acme.call("p", "which", headers={"Idempotency-Key": "k"}) == [2]
        token = acme.headers["Authorization"].removeprefix("Bearer ")
        async with desk(data) as one:
            acme = Client(one.http, token)
            assert await acme.call("p", "which", params={"ref": "live"}) == [1]
            assert await acme.call("p", "which", headers={"Idempotency-Key": "k"}) == [2]
            assert one.service.tenant("acme").quotas.guests == 7
            version = one.service.registry.plugins.version("acme", "p", 1)
            assert version.settings.limits.deadline_ns == 3_000_000_000
            entries = (await one.admin.ask("GET", "/v1/admin/audit", 200))["entries"]
            assert len(entries) == 7

    asyncio.run(both())


def test_a_service_that_stops_takes_nothing_new(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        await acme.deploy("p", versioned(1))
        one.service.stop()
        assert (await one.http.get("/readyz")).status_code == 503
        response = await acme.ask("POST", "/v1/plugins/p/call/which")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        await acme.problem("PUT", "/v1/plugins/p", 503, "unavailable", content=versioned(2))
        assert (await one.http.get("/healthz")).status_code == 200

    in_desk(data, test)
