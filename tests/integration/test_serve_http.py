"""The service over HTTP, from the request to the guest and back, in this process. For sockets and signals
see test_serve_process.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

from helpers import guest_file
from helpers.serving import COUNTER, REVERSE, Client, Desk, desk, in_desk, versioned

ADD = guest_file("add")


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


# ---- from start to stop ----


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
