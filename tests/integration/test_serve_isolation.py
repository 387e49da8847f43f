"""What tenants, and those who are none, cannot do to each other over HTTP."""

from __future__ import annotations

import asyncio

import pytest
from helpers.serving import Client, Desk, in_desk

from sandhost.serve.tokens import new_token


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


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
