"""What tenants, and those who are none, cannot do to each other over HTTP."""

from __future__ import annotations

import asyncio

import pytest
from helpers.serving import Client, Desk, desk, in_desk, versioned

from sandhost.errors import ConfigError
from sandhost.serve.tokens import new_token

# ---- guessing tokens ----


def test_guesses_are_counted_and_audited_in_a_few_entries_that_say_nothing_of_them(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme", "invoke")
        guesses = [new_token()[0] for _ in range(200)]
        answers = await asyncio.gather(
            *(Client(one.http, guess).ask("GET", "/v1/plugins") for guess in guesses),
            *(Client(one.http, None).ask("GET", "/metrics") for _ in range(10)),
            *(acme.ask("GET", "/v1/admin/tenants") for _ in range(5)),
            *(acme.ask("GET", "/v1/plugins") for _ in range(5)),
        )
        assert [a.status_code for a in answers] == [401] * 210 + [403] * 5 + [200] * 5
        assert len({answer.text for answer in answers[:210]}) == 1
        figures = (await one.admin.ask("GET", "/metrics")).text
        assert 'sandhost_serve_tokens_refused_total{code="unknown"} 210.0' in figures
        assert 'sandhost_serve_tokens_refused_total{code="denied"} 5.0' in figures
        await one.service.drain()  # says what it has counted since the last minute
        found = (await one.admin.ask("GET", "/v1/admin/audit", 200))["entries"]
        refused = [entry for entry in found if entry["action"] == "token.refuse"]
        assert {(e["tenant"], e["subject"], e["outcome"]) for e in refused} == {
            ("", "127.0.0.1 x210", "unknown"),
            ("acme", "127.0.0.1 x5", "denied"),
        }
        assert not any(guess[3:9] in str(found) for guess in guesses)

    in_desk(data, test)


# ---- what is removed ----

COUNTER = b"""(module (memory (export "memory") 1)
  (func (export "next") (result i32)
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))) (i32.load (i32.const 0))))"""


async def idle(one: Desk) -> None:
    for _ in range(1000):
        if one.service.sessions.stats().live == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("sessions are left")


def test_a_plugin_that_is_removed_is_gone_and_its_name_is_free(data):
    async def test(one: Desk) -> None:
        acme, other = await one.client("acme"), await one.client("other")
        for number in (1, 2):
            await acme.deploy("p", versioned(number))
        await acme.ask("PUT", "/v1/plugins/p/aliases/live", 200, json={"version": 1})
        await acme.ask("POST", "/v1/plugins/p/sessions", 201)
        await other.deploy("p", versioned(7))
        await acme.ask("DELETE", "/v1/plugins/p", 204)
        await acme.problem("DELETE", "/v1/plugins/p", 404, "missing")
        await acme.problem("POST", "/v1/plugins/p/call/which", 404, "missing", json={})
        await idle(one)
        assert await acme.deploy("p", versioned(3)) == 1  # and not what was loaded as 1
        assert await acme.call("p", "which") == [3]
        assert (await acme.ask("GET", "/v1/plugins/p", 200))["aliases"] == {}
        assert await other.call("p", "which") == [7]

    in_desk(data, test)


def test_a_tenant_that_is_removed_leaves_nothing_to_whoever_has_its_name_next(data):
    async def test(one: Desk) -> None:
        acme = await one.client("acme", guests=1)
        await acme.deploy("p", versioned(1))
        key = {"Idempotency-Key": "k"}
        assert await acme.call("p", "which", headers=key) == [1]
        await acme.ask("POST", "/v1/plugins/p/sessions", 201)
        await acme.problem("DELETE", "/v1/admin/tenants/acme", 403, "denied")
        await one.admin.ask("DELETE", "/v1/admin/tenants/acme", 204)
        await one.admin.problem("DELETE", "/v1/admin/tenants/acme", 404, "missing")
        await one.admin.problem("DELETE", "/v1/admin/tenants/operator", 409, "conflict")
        await acme.problem("GET", "/v1/plugins", 401, "unknown")
        deputy = await one.client("deputy", "admin")
        await deputy.problem("DELETE", "/v1/admin/tenants/deputy", 409, "conflict")  # itself
        await idle(one)
        again = await one.client("acme", guests=9)
        assert await again.ask("GET", "/v1/plugins", 200) == {"plugins": []}
        assert await again.deploy("p", versioned(2)) == 1
        assert await again.call("p", "which", headers=key) == [2]
        assert one.service.tenant("acme").quotas.guests == 9

    in_desk(data, test)


# ---- two tenants ----


def test_whatever_is_guessed_of_another_tenant_is_as_if_there_were_nothing(data):
    """Each request is made for what the other has and for what nobody has; the answers differ in names alone."""

    async def test(one: Desk) -> None:
        acme, evil = await one.client("acme"), await one.client("evil")
        await acme.deploy("secret", COUNTER)
        await acme.deploy("secret", COUNTER)
        await acme.ask("PUT", "/v1/plugins/secret/aliases/live", 200, json={"version": 1})
        session = (await acme.ask("POST", "/v1/plugins/secret/sessions", 201))["session"]
        await acme.call("secret", "next", headers={"Idempotency-Key": "shared"})
        made = await one.admin.ask(
            "POST", "/v1/admin/tenants/acme/tokens", 201, json={"scopes": ["invoke"]}
        )
        await evil.deploy("mine", COUNTER)

        def asked(
            plugin: str, session: str, tenant: str
        ) -> list[tuple[str, str, dict[str, object]]]:
            named = [
                plugin, f"acme%2F{plugin}", f"acme/{plugin}", f"..%2Facme%2F{plugin}", f"../acme/{plugin}",
                f"acme/{plugin}@1", f"acme%2F{plugin}%401", f"{plugin}%00", f"%2E%2E/{plugin}",
                plugin.upper(), f"{plugin}%20", f"{plugin};x", f"mine%2F..%2F{plugin}",
            ]  # fmt: skip
            refs = [
                "1",
                "live",
                "latest",
                "01",
                "+1",
                "1 ",
                "-1",
                "1.0",
                "\u0661",
                "live\0",
                "../1",
                "1;1",
                "9" * 30,
            ]
            found: list[tuple[str, str, dict[str, object]]] = []
            for name in named:
                base = f"/v1/plugins/{name}"
                found += [("GET", base, {}), ("DELETE", base, {})]
                found += [("GET", f"{base}/versions/1", {}), ("DELETE", f"{base}/versions/1", {})]
                found += [("PUT", f"{base}/aliases/live", {"json": {"version": 1}})]
                found += [
                    ("DELETE", f"{base}/aliases/live", {}),
                    ("POST", f"{base}/aliases/live/rollback", {}),
                ]
                found += [("POST", f"{base}/sessions", {}), ("POST", f"{base}/run", {})]
                found += [
                    ("POST", f"{base}/call/next", {"json": {}}),
                    ("POST", f"{base}/bytes/next", {}),
                ]
            for ref in refs:
                found += [
                    (
                        "POST",
                        f"/v1/plugins/{plugin}/call/next",
                        {"json": {}, "params": {"ref": ref}},
                    )
                ]
            for headers in ({"Sandhost-Session": session}, {"Sandhost-Session": session.upper()}):
                for name in (plugin, "mine"):
                    found += [
                        ("POST", f"/v1/plugins/{name}/call/next", {"json": {}, "headers": headers})
                    ]
            found += [
                ("DELETE", f"/v1/sessions/{session}", {}),
                ("DELETE", f"/v1/sessions/..%2F{session}", {}),
            ]
            found += [
                ("GET", f"/v1/admin/tenants/{tenant}", {}),
                ("DELETE", f"/v1/admin/tenants/{tenant}", {}),
            ]
            found += [
                ("GET", f"/v1/admin/tenants/{tenant}/tokens", {}),
                ("GET", f"/v1/admin/audit?tenant={tenant}", {}),
            ]
            found += [("DELETE", f"/v1/admin/tenants/{tenant}/tokens/{made['id']}", {})]
            found += [("PUT", f"/v1/admin/tenants/{tenant}", {"json": {"quotas": {"guests": 0}}})]
            for path in ("/metrics", "/debug/sandhost/view", "/debug/pprof/heap", "/debug/pprof/"):
                found += [("GET", path, {}), ("GET", f"{path}?token={tenant}", {})]
            return found

        theirs = asked("secret", session, "acme")
        nobodys = asked("nobody", "0" * 32, "nope")
        for (method, path, more), (_, other, others) in zip(theirs, nobodys):
            told = await evil.ask(method, path, **dict(more))
            same = await evil.ask(method, other, **dict(others))
            assert told.status_code == same.status_code, (method, path, told.text, same.text)
            assert 400 <= told.status_code < 500, (method, path, told.text)
            words = [
                text.replace("secret", "X")
                .replace("nobody", "X")
                .replace("SECRET", "Y")
                .replace("NOBODY", "Y")
                for text in (told.text, same.text)
            ]
            assert words[0] == words[1], (method, path)
            headers = [
                {k: v for k, v in r.headers.items() if k != "content-length"} for r in (told, same)
            ]
            assert headers[0] == headers[1]
        # The same key, function and arguments: its own answer, of its own guest.
        assert await evil.call("mine", "next", headers={"Idempotency-Key": "shared"}) == [1]
        # And nothing has happened to the other.
        assert await acme.call("secret", "next", headers={"Sandhost-Session": session}) == [1]
        found = await acme.ask("GET", "/v1/plugins/secret", 200)
        assert (len(found["versions"]), found["aliases"]) == (2, {"live": 1})

    in_desk(data, test)


# ---- a process for a tenant ----


def test_a_process_for_one_tenant_has_no_operator_and_no_other_tenant(data, tmp_path):
    file = tmp_path / "token"

    async def test(token: str) -> None:
        file.write_text(f"{token}\n")
        alone = {"tenant": "acme", "token_file": str(file), "admin_token": None}
        async with desk(data, **alone, tenant_guests=7, observe_token="o" * 16) as one:
            acme = Client(one.http, token)
            if not (await acme.ask("GET", "/v1/plugins", 200))["plugins"]:
                await acme.deploy("p", versioned(1))
            assert await acme.call("p", "which") == [1]
            assert one.service.tenant("acme").quotas.guests == 7
            for path in ("tenants", "tenants/acme", "tenants/acme/tokens", "audit"):
                await acme.problem("GET", f"/v1/admin/{path}", 404, "missing")
            await acme.problem("GET", "/metrics", 403, "denied")
            watcher = Client(one.http, "o" * 16)
            assert (await watcher.ask("GET", "/metrics")).status_code == 200
            for other in tokens - {token}:  # what the file says is all there is
                await Client(one.http, other).problem("GET", "/v1/plugins", 401, "unknown")

    tokens = {new_token()[0] for _ in range(2)}
    for token in tokens:
        asyncio.run(test(token))
    with pytest.raises(ConfigError, match="revoked"):
        asyncio.run(test(next(iter(tokens))))
    with pytest.raises(ConfigError, match="is no token"):
        asyncio.run(test("password"))


def test_a_process_for_one_tenant_takes_no_folder_of_others(data, tmp_path):
    async def test(one: Desk) -> None:
        await one.client("other")

    in_desk(data, test)
    with pytest.raises(ConfigError, match="knows other tenants"):
        in_desk(data, test, tenant="acme", admin_token=None)
    for wrong, why in (
        ({"tenant": "A b", "admin_token": None}, "cannot be the name of a tenant"),
        ({"tenant": "acme"}, "no operator"),
        ({"token_file": "x"}, "give both"),
        ({"tenant": "acme", "admin_token": None, "token_file": str(tmp_path / "no")}, "be read"),
    ):
        with pytest.raises(ConfigError, match=why):
            in_desk(tmp_path / "fresh", test, **wrong)
