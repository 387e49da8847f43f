"""Who may do what over HTTP, and what the operator of many tenants does and sees; in this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3

from helpers.serving import COUNTER, Client, Desk, in_desk, versioned

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
