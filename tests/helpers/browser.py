"""A real headless Chromium, which `./run` finds or fetches, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from .prometheus import own_environment

VARIABLE = "SANDHOST_TEST_CHROMIUM"
_PATIENCE_MS = 30_000  # machines may be busy
expect.set_options(timeout=_PATIENCE_MS)


def program() -> str:
    """Return where Chromium is; skip without one, but in CI fail."""
    found = os.environ.get(VARIABLE)
    if not found:
        assert not os.environ.get("CI"), "CI has to have a Chromium"
        pytest.skip("there is no Chromium here: `./run test integration` finds or fetches one")
    return found


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Have a browser."""
    path = program()
    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=path, env=dict(own_environment()))
        try:
            yield one
        finally:
            one.close()


class Watched:
    """A page with a profile of its own, and all that it complains about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.urls: list[str] = []
        page.on("console", lambda said: self._said(said.type, said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.urls.append(request.url))
        page.add_init_script(
            "addEventListener('securitypolicyviolation',"
            " (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"
        )

    def _said(self, kind: str, text: str) -> None:
        # Chromium itself says so of every answer that is no success, and of servers that are gone.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
            self.complaints.append(text)


@contextlib.contextmanager
def watched(one: Browser, **options: Any) -> Iterator[Watched]:
    """Have a page, which must have nothing to complain of at its end."""
    context = one.new_context(**options)
    context.set_default_timeout(_PATIENCE_MS)
    try:
        page = Watched(context.new_page())
        yield page
        assert page.complaints == []
    finally:
        context.close()
