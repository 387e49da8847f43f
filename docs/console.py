"""Make docs/console.png: a service with some tenants at work, and its console in a headless Chromium.

    python docs/console.py [FOLDER]     needs sandhost[serve,client,browser], and Debian's chromium

With a folder, all pictures that one may want to look at go there: light and dark, wide and narrow, as an
operator and as a tenant.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Browser, async_playwright

ADMIN = "sh_" + "C" * 43
PORT = 8931
URL = f"http://127.0.0.1:{PORT}"
HERE = Path(__file__).parent
SECONDS = 40
"""Of work before the picture is taken, so that there is something to be seen."""

SUM = b'(module (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))'
BUSY = b"""(module (func (export "work") (param $n i32) (result i32)
  (loop $next (br_if $next (local.tee $n (i32.sub (local.get $n) (i32.const 1))))) (local.get $n)))"""
HOLD = b"""(module (memory (export "memory") 16)
  (func (export "touch") (param $pages i32)
    (loop $next
      (i32.store (i32.mul (local.get $pages) (i32.const 4096)) (i32.const 1))
      (br_if $next (local.tee $pages (i32.sub (local.get $pages) (i32.const 1)))))))"""
PRICE = b"""(module $price
  (func $share (param $of i32) (param $n i32) (result i32) (i32.div_s (local.get $of) (local.get $n)))
  (func $split (export "split") (param i32 i32) (result i32) (call $share (local.get 0) (local.get 1)))
  (func (export "total") (param f64 f64) (result f64) (f64.mul (local.get 0) (local.get 1))))"""
BROKEN = b'(module (import "payments" "charge" (func (param i64) (result i32))))'

TENANTS: dict[str, dict[str, Any]] = {
    "acme": {"memory_limit": "256 MiB", "guests": 200, "weight": 2},
    "birch": {"memory_limit": "512 MiB", "cpus": 0.5},
    "corvid": {"guests": 60},
    "dune": {"spawns_per_s": 15, "memory_limit": "64 MiB"},
    "elm": {},
}


class Tenant:
    """A client with a token of its own."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self.http, self.token = http, token

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **more)

    async def deploy(self, plugin: str, module: bytes) -> None:
        made = (await self.ask("PUT", f"/v1/plugins/{plugin}", content=module)).json()
        await self.ask("GET", f"/v1/plugins/{plugin}/versions/{made['version']}?wait=30")

    async def call(self, plugin: str, function: str, *arguments: int, session: str = "") -> None:
        headers = {"Sandhost-Session": session} if session else {}
        path = f"/v1/plugins/{plugin}/call/{function}"
        await self.ask("POST", path, json={"arguments": arguments}, headers=headers)

    async def hold(self, pages: int) -> None:
        session = (await self.ask("POST", "/v1/plugins/hold/sessions")).json()["session"]
        await self.call("hold", "touch", pages, session=session)


async def make_tenants(http: httpx.AsyncClient) -> dict[str, Tenant]:
    operator = Tenant(http, ADMIN)
    found = {"operator": operator}
    for name, quotas in TENANTS.items():
        at = f"/v1/admin/tenants/{name}"
        await operator.ask("PUT", at, json={"quotas": quotas})
        scopes = {"scopes": ["deploy", "invoke"]}
        made = (await operator.ask("POST", f"{at}/tokens", json=scopes)).json()
        found[name] = Tenant(http, made["token"])
    return found


async def deploy_all(tenants: dict[str, Tenant]) -> None:
    for name in ("acme", "birch", "corvid"):
        await tenants[name].deploy("hold", HOLD)
    for module in (SUM, SUM + b" ", PRICE):
        await tenants["acme"].deploy("price", module)
    await tenants["acme"].ask("PUT", "/v1/plugins/price/aliases/live", json={"version": 3})
    await tenants["acme"].deploy("checkout", SUM)
    await tenants["acme"].deploy("checkout", BROKEN)
    await tenants["operator"].deploy("price", PRICE)
    await tenants["birch"].deploy("render", BUSY)
    await tenants["corvid"].deploy("sum", SUM)
    await tenants["dune"].deploy("sum", SUM)


async def work(tenants: dict[str, Tenant]) -> None:
    """Be busy without end, with something that changes."""
    chance = random.Random(7)
    for name, sessions in (("acme", 84), ("birch", 55), ("corvid", 36)):
        for _ in range(sessions):
            await tenants[name].hold(min(int(chance.lognormvariate(3.6, 1.2)) + 1, 250))

    async def often(pause_s: float, do: Callable[[], Any]) -> None:
        while True:
            await do()
            await asyncio.sleep(chance.expovariate(1 / pause_s))

    acme, birch, corvid, dune = (tenants[name] for name in ("acme", "birch", "corvid", "dune"))
    await asyncio.gather(
        often(0.03, lambda: acme.call("price", "split", 90, 4)),
        often(4.0, lambda: acme.call("price", "split", 90, 0)),
        often(0.09, lambda: birch.call("render", "work", chance.randrange(1, 12_000_000))),
        often(0.05, lambda: corvid.call("sum", "add", 2, 3)),
        *(
            often(0.1, lambda: corvid.call("hold", "touch", chance.randrange(1, 200)))
            for _ in "1234"
        ),
        often(0.05, lambda: dune.call("sum", "add", 2, 3)),
    )


async def picture(
    browser: Browser, token: str, path: Path, *, wide: int = 1280, dark: bool = False, **more: Any
) -> None:
    """Sign in, look for a while, call what fails or not, and take the picture."""
    page = await browser.new_page(
        viewport={"width": wide, "height": 900}, color_scheme="dark" if dark else "light", **more
    )
    page.on("console", lambda message: print("console:", message.text))
    await page.goto(f"{URL}/console")
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_selector("#board:not([hidden])")
    if await page.locator("#invoke").is_visible():
        await page.get_by_label("Plugin", exact=True).select_option("price")
        await page.get_by_label("Function", exact=True).select_option("split")
        await page.get_by_label("Argument 1").fill("90")
        await page.get_by_label("Argument 2").fill("4" if dark else "0")
        await page.get_by_role("button", name="Call", exact=True).click()
        await page.wait_for_selector("#result .answer")
    await asyncio.sleep(SECONDS)
    await page.evaluate("scrollTo(0, 0)")
    await page.screenshot(path=path, full_page=True)
    await page.close()


async def main(folder: Path | None) -> None:
    async with httpx.AsyncClient(base_url=URL, timeout=30) as http:
        while True:
            try:
                await http.get("/readyz")
                break
            except httpx.TransportError:
                await asyncio.sleep(0.1)
        tenants = await make_tenants(http)
        await deploy_all(tenants)
        busy = asyncio.ensure_future(work(tenants))
        async with async_playwright() as playwright:
            program = os.environ.get("SANDHOST_TEST_CHROMIUM") or shutil.which("chromium")
            browser = await playwright.chromium.launch(executable_path=program)
            mine = tenants["acme"].token
            if folder is None:
                await picture(browser, ADMIN, HERE / "console.png")
            else:
                await asyncio.gather(
                    picture(browser, ADMIN, folder / "operator.png"),
                    picture(browser, ADMIN, folder / "operator-dark.png", dark=True),
                    picture(browser, ADMIN, folder / "operator-narrow.png", wide=390),
                    picture(browser, mine, folder / "tenant.png"),
                    picture(browser, mine, folder / "tenant-dark.png", dark=True, wide=900),
                )
            await browser.close()
        busy.cancel()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as data:
        server = subprocess.Popen(
            [sys.executable, "-m", "sandhost", "serve", "--http", f"127.0.0.1:{PORT}",
             "--data", f"{data}/data", "--process-limit", "600 MiB"],
            env={**os.environ, "SANDHOST_ADMIN_TOKEN": ADMIN},
            cwd=data,
        )  # fmt: skip
        try:
            asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
        finally:
            server.terminate()
            server.wait()
