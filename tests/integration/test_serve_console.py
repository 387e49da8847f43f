"""The console in a real headless Chromium, before a real `sandhost serve`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from helpers import guest_file
from helpers.serving import ADMIN, Child, child

pytest.importorskip(
    "playwright", reason="the browser's tests run on the Python that ./run itself runs on"
)
from axe_playwright_python.sync_playwright import Axe
from helpers.browser import Watched, browser, watched
from playwright.sync_api import Browser, Page, expect

PRICE = b"""(module $price
  (func $share (param i32 i32) (result i32) (i32.div_s (local.get 0) (local.get 1)))
  (func (export "split") (param i32 i32) (result i32) (call $share (local.get 0) (local.get 1)))
  (func (export "same") (param i64) (result i64) (local.get 0))
  (func (export "half") (param f64) (result f64) (f64.mul (local.get 0) (f64.const 0.5)))
  (func (export "hold") (param externref)))"""
HOLD = b"""(module (memory (export "memory") 16)
  (func (export "touch") (param i32)
    (loop $next
      (i32.store (i32.mul (local.get 0) (i32.const 4096)) (i32.const 1))
      (br_if $next (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))"""
HOSTILE = "<img src=x onerror=hit()>"
TRAPS = f"""(module $"m<svg onload=hit()>"
  (func (export "{HOSTILE}") (param i32) (result i32) (unreachable))
  (func (export "\\e2\\80\\aeesrever") (result i32) (i32.const 7)))""".encode()
WILL_NOT_LOAD = f'(module (import "<script>hit()</script>" "{HOSTILE}" (func)))'.encode()


class Client:
    """Requests of one token; Playwright has a running loop in this thread, so these are without one."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def ask(self, method: str, path: str, status: int | None = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        response = httpx.request(method, self.url + path, headers=headers, timeout=30, **more)
        assert status is None or response.status_code == status, response.text
        return response.json() if response.content else None

    def token_of(self, tenant: str, *scopes: str) -> Client:
        """Return another client: of a tenant, which is added if need be."""
        self.ask("PUT", f"/v1/admin/tenants/{tenant}", json={"quotas": {"guests": 50}})
        path = f"/v1/admin/tenants/{tenant}/tokens"
        return Client(self.url, self.ask("POST", path, 201, json={"scopes": scopes})["token"])

    def deploy(self, plugin: str, module: bytes | Path) -> str:
        content = module if isinstance(module, bytes) else module.read_bytes()
        made = self.ask("PUT", f"/v1/plugins/{plugin}", 202, content=content)
        path = f"/v1/plugins/{plugin}/versions/{made['version']}?wait=30"
        return str(self.ask("GET", path, 200)["state"])

    def call(self, plugin: str, function: str, *arguments: int, session: str = "") -> None:
        headers = {"Sandhost-Session": session} if session else {}
        path = f"/v1/plugins/{plugin}/call/{quote(function)}"
        self.ask("POST", path, json={"arguments": arguments}, headers=headers)


class Service:
    """A child with two tenants that have plugins."""

    def __init__(self, one: Child) -> None:
        self.child, self.url = one, f"{one.url}/console"
        self.admin = Client(one.url, ADMIN)
        self.acme = self.admin.token_of("acme", "deploy", "invoke")
        self.birch = self.admin.token_of("birch", "deploy", "invoke")
        assert self.acme.deploy("sum", guest_file("add")) == "ready"
        assert self.acme.deploy("price", PRICE) == "ready"
        assert self.birch.deploy("hold", HOLD) == "ready"
        assert self.birch.deploy("traps", TRAPS) == "ready"
        assert self.birch.deploy("broken", WILL_NOT_LOAD) == "failed"
        assert self.birch.deploy("secret-of-birch", PRICE) == "ready"

    def sign_in(self, page: Page, client: Client) -> None:
        page.goto(self.url)
        page.get_by_label("Token").fill(client.token)
        page.keyboard.press("Enter")
        expect(page.locator("#board")).to_be_visible()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with child(tmp_path_factory.mktemp("console") / "data") as one:
        yield Service(one)


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Watched]:
    with watched(chromium) as one:
        yield one


def tile(page: Page, title: str) -> Any:
    """Return the number of a tile."""
    return page.locator(".tile", has_text=title).locator("dd").first


def invoke(page: Page, plugin: str, function: str, *arguments: str) -> None:
    """Fill in the form and send it."""
    page.get_by_label("Plugin", exact=True).select_option(plugin)
    page.get_by_label("Function", exact=True).select_option(function)
    for at, argument in enumerate(arguments):
        page.get_by_label(f"Argument {at + 1}").fill(argument)
    page.get_by_role("button", name="Call", exact=True).click()


# ---- who comes in ----


def test_the_page_asks_for_a_token_and_refuses_a_wrong_one(service, tab):
    page = tab.page
    page.goto(service.url)
    expect(page.get_by_label("Token")).to_be_focused()
    for wrong in ("sh_" + "x" * 43, "schlüssel"):
        page.get_by_label("Token").fill(wrong)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("This is no valid token, or it has expired.")
    expect(page.locator("#board")).to_be_hidden()
    deployer = service.admin.token_of("acme", "deploy")
    page.get_by_label("Token").fill(deployer.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("has not the scope 'invoke', nor 'admin'")
    assert page.evaluate("sessionStorage.length") == 0


def test_the_token_stays_in_the_tab_and_is_in_no_url(service, tab):
    page = tab.page
    service.sign_in(page, service.acme)
    page.reload()
    expect(page.locator("#board")).to_be_visible()
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert page.context.cookies() == []
    assert tab.urls
    assert not [url for url in [*tab.urls, page.url] if "sh_" in url]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_token_that_is_revoked_leads_back_to_the_door(service, tab):
    visitor = service.admin.token_of("acme", "invoke")
    service.sign_in(tab.page, visitor)
    tokens = service.admin.ask("GET", "/v1/admin/tenants/acme/tokens", 200)["tokens"]
    service.admin.ask("DELETE", f"/v1/admin/tenants/acme/tokens/{tokens[-1]['id']}", 204)
    expect(tab.page.get_by_role("alert")).to_contain_text("expired or was revoked")
    expect(tab.page.locator("#board")).to_be_hidden()
    assert "acme" not in tab.page.locator("body").inner_text()


# ---- what an operator sees ----


def test_an_operator_sees_all_of_it_live(service, tab):
    page = tab.page
    service.sign_in(page, service.admin)
    tenants = page.get_by_role("region", name="Tenants")
    for name in ("acme", "birch", "operator"):
        expect(tenants.get_by_role("row", name=name)).to_be_visible()
    plugins = page.get_by_role("region", name="Plugins")
    expect(plugins.get_by_role("row", name="acme / sum")).to_contain_text("1, ready")
    expect(page.locator("#level")).to_contain_text("calm")
    expect(page.locator("#collector")).to_contain_text("nothing to collect")

    before = int(tile(page, "Guests").first.inner_text())
    sessions = [
        service.birch.ask("POST", "/v1/plugins/hold/sessions", 201)["session"] for _ in range(3)
    ]
    try:
        for session in sessions:
            service.birch.call("hold", "touch", 200, session=session)
        expect(tile(page, "Guests").first).to_have_text(str(before + 3))
        heat = page.locator("#heat")
        expect(heat).to_be_visible()
        expect(heat).to_have_attribute(
            "aria-label", "Heat map of 3 slots: 3 in use with 2.34 MiB resident"
        )
        blue = "(canvas) => [...canvas.getContext('2d').getImageData(10, 10, 1, 1).data]"
        red, _, strong, _ = heat.evaluate(blue)
        assert strong > red + 40  # of the accent, not of an empty cell
        heat.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#heat-cell")).to_contain_text("Slot 1 · in use · 80")
        expect(page.locator("#heat-cell")).to_contain_text("birch/hold@1")
        expect(tenants.get_by_role("row", name="birch")).to_contain_text("3 of 50")
    finally:
        for session in sessions:
            service.birch.ask("DELETE", f"/v1/sessions/{session}", 204)
    expect(tile(page, "Guests").first).to_have_text(str(before))
    for _ in range(30):
        service.acme.call("sum", "add", 2, 3)
    expect(tile(page, "Requests a second")).not_to_have_text("0")
    expect(page.get_by_role("row", name="Call of a function")).to_contain_text("µs")


# ---- the form ----


def test_the_form_calls_functions_and_shows_what_comes_of_it(service, tab):
    page, value = tab.page, tab.page.locator("#value")
    service.sign_in(page, service.acme)
    page.get_by_label("Plugin", exact=True).select_option("sum")
    expect(page.locator("#signature")).to_have_text("(i32, i32) → i32")
    invoke(page, "sum", "add", "2", "3")
    expect(value).to_have_text("5")
    invoke(page, "price", "same", "-0x7fffffffffffffff")
    expect(value).to_have_text("-9223372036854775807")  # which no number of JavaScript is
    invoke(page, "price", "half", "-Infinity")
    expect(value).to_have_text("-Infinity")
    assert page.locator("#function option").all_inner_texts() == ["split", "same", "half"]

    invoke(page, "price", "split", "1", "0")
    answer = page.locator("#result")
    expect(answer).to_contain_text("The plugin failed")
    expect(answer).to_contain_text("integer division by zero")
    expect(answer.get_by_role("listitem").first).to_contain_text("share in price")
    invoke(page, "price", "split", "12", "many")
    expect(page.get_by_label("Argument 2")).to_be_focused()
    expect(page.get_by_label("Argument 2")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#argument-1-problem")).to_have_text("Give a whole number.")


def test_what_a_tenant_has_named_is_text_and_nothing_else(service, tab):
    page = tab.page
    page.add_init_script("globalThis.hits = 0; globalThis.hit = () => { hits += 1; }")
    service.sign_in(page, service.birch)
    invoke(page, "traps", HOSTILE, "1")
    answer = page.locator("#result")
    expect(answer).to_contain_text("The plugin failed")
    expect(answer).to_contain_text("in m<svg onload=hit()>")
    expect(page.locator("#function option").nth(1)).to_have_text("\\u{202e}esrever")
    page.get_by_role("button", name="broken").click()
    expect(page.locator(".more:visible")).to_contain_text(f"<script>hit()</script>.{HOSTILE}")
    assert page.evaluate("document.images.length") == 1  # the page's own
    assert page.evaluate("[document.querySelectorAll('script, svg[onload]').length, hits]") == [
        1,
        0,
    ]


def test_nothing_runs_that_the_service_did_not_send(service, chromium):
    with watched(chromium) as tab:
        tab.page.goto(service.url)
        tab.page.evaluate(
            "document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:1/x'}))"
        )
        with pytest.raises(Exception, match="TrustedHTML"):
            tab.page.evaluate("document.body.innerHTML = '<b>'")
        tab.page.wait_for_timeout(100)
        assert any("img-src" in complaint for complaint in tab.complaints)
        tab.complaints.clear()


# ---- what a tenant sees ----


def test_a_tenant_sees_its_own_and_nothing_of_others(service, tab):
    page, answers = tab.page, []
    page.on("response", lambda response: answers.append(response) if "view" in response.url else 0)
    session = service.birch.ask("POST", "/v1/plugins/hold/sessions", 201)["session"]
    service.sign_in(page, service.acme)
    expect(page.get_by_role("row", name="sum")).to_be_visible()
    for hidden in ("#slots", "#pressure", "#requests", "#latency", "#collector"):
        expect(page.locator(hidden)).to_be_hidden()
    shown, sent = page.locator("body").inner_text(), json.loads(answers[0].body())
    assert "birch" not in shown
    assert "operator" not in shown
    assert "birch" not in json.dumps(sent)
    assert sent.keys() == {
        "taken_s", "level", "stopping", "tenants", "tenants_in_all", "plugins", "plugins_in_all",
    }  # fmt: skip
    assert [row["name"] for row in sent["tenants"]] == ["acme"]
    assert not {"share_bytes", "resident_bytes"} & sent["tenants"][0].keys()
    assert {row["tenant"] for row in sent["plugins"]} == {"acme"}
    path = "/console/functions/secret-of-birch"
    assert service.acme.ask("GET", path, 404)["title"] == "missing"
    assert service.acme.ask("GET", "/debug/sandhost/view", 403)["title"] == "denied"
    service.birch.ask("DELETE", f"/v1/sessions/{session}", 204)


def test_a_tenant_without_plugins_is_told_so(service, tab):
    service.sign_in(tab.page, service.admin.token_of("empty", "invoke"))
    expect(tab.page.locator("#plugins")).to_contain_text("None has been deployed yet.")
    expect(tab.page.locator("#form")).to_contain_text("has no plugin that is ready")
    expect(tab.page.locator("#invoke")).to_be_hidden()


# ---- when the service ends ----


def test_a_lost_connection_is_said_and_what_was_seen_stays(tmp_path, tab):
    page = tab.page
    with child(tmp_path / "data") as one:
        page.goto(f"{one.url}/console")
        page.get_by_label("Token").fill(ADMIN)
        page.keyboard.press("Enter")
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        one.end(signal.SIGKILL)
        expect(page.get_by_role("alert")).to_contain_text("The connection to the service is lost.")
        expect(page.get_by_text("Connection lost")).to_be_visible()
        expect(page.get_by_role("row", name="operator")).to_be_visible()
        expect(page.locator("#board")).to_have_class("old")


# ---- for everybody ----


def test_axe_finds_nothing_to_object_to(service, chromium):
    session = service.birch.ask("POST", "/v1/plugins/hold/sessions", 201)["session"]
    service.birch.call("hold", "touch", 200, session=session)
    with watched(chromium, color_scheme="dark", reduced_motion="reduce") as tab:
        page = tab.page
        page.goto(service.url)
        expect(page.get_by_label("Token")).to_be_focused()
        assert_accessible(page)
        service.sign_in(page, service.admin)
        expect(page.locator("#heat")).to_be_visible()
        assert_accessible(page)
        page.get_by_role("button", name="Sign out").click()
        page.emulate_media(color_scheme="light")
        service.sign_in(page, service.acme)
        invoke(page, "price", "split", "1", "0")
        expect(page.locator("#result")).to_contain_text("division")
        assert_accessible(page)
    service.birch.ask("DELETE", f"/v1/sessions/{session}", 204)


def assert_accessible(page: Page) -> None:
    """See what axe-core, which judges by the rules of WCAG, objects to."""
    found = Axe().run(page).response["violations"]
    said = [(one["id"], [node["html"][:100] for node in one["nodes"]]) for one in found]
    assert said == []


def test_a_narrow_screen_needs_no_scrolling_sideways(service, chromium):
    with watched(chromium, viewport={"width": 360, "height": 740}) as tab:
        service.sign_in(tab.page, service.admin)
        expect(tab.page.get_by_role("button", name="Sign out")).to_be_in_viewport()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
