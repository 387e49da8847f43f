"""What the console's routes answer, in this process. For the page in a browser see test_serve_console.py."""

from __future__ import annotations

import asyncio

from helpers.serving import Desk, in_desk

from sandhost import Host
from sandhost.observe.picture import look
from sandhost.observe.views import View


def test_the_page_and_its_files_come_with_strict_headers(tmp_path):
    async def test(one: Desk) -> None:
        for path in ("/console", "/console/console.js", "/console/console.css"):
            response = await one.http.get(path)
            assert response.status_code == 200
            policy = response.headers["content-security-policy"].split("; ")
            assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(
                policy
            )
            assert not [part for part in policy if "unsafe" in part]
            assert response.headers["x-frame-options"] == "DENY"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["referrer-policy"] == "no-referrer"
        for path in ("/console/who", "/console/view"):
            response = await one.http.get(path)
            assert (response.status_code, response.json()["title"]) == (401, "unknown")
            response = await one.admin.ask("GET", path)
            assert response.headers["cache-control"] == "no-store"
        for path in ("/console/..%2fconsole.py", "/console/console.py", "/console/", "/console/x"):
            assert (await one.http.get(path)).status_code == 404

    in_desk(tmp_path / "data", test)


def test_many_consoles_share_one_look(tmp_path, monkeypatch):
    looks = []

    def counted(host: Host) -> View:
        looks.append(host)
        return look(host)

    monkeypatch.setattr("sandhost.serve.console.look", counted)

    async def test(one: Desk) -> None:
        acme = await one.client("acme")
        clients = [one.admin, acme] * 20
        answers = await asyncio.gather(*(c.ask("GET", "/console/view", 200) for c in clients))
        assert len({answer["taken_s"] for answer in answers}) == 1
        assert len(looks) == 1
        await asyncio.sleep(1.1)
        later = await one.admin.ask("GET", "/console/view", 200)
        assert later["taken_s"] > answers[0]["taken_s"]

    in_desk(tmp_path / "data", test)


def test_the_console_can_be_left_out(tmp_path):
    async def test(one: Desk) -> None:
        for path in ("/console", "/console/view", "/console/console.js"):
            assert (await one.admin.ask("GET", path)).status_code == 404

    in_desk(tmp_path / "data", test, console="off")
