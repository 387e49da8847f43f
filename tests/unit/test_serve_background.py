"""Work that nobody waits for: what ends it is told."""

from __future__ import annotations

import asyncio
import logging

from sandhost.serve.background import in_background


def test_what_ends_it_is_logged_when_it_ends_also_if_nobody_ever_asks(caplog):
    async def fails() -> None:
        raise KeyError("broken")

    async def run() -> None:
        task = in_background(fails())
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert [record.exc_info[0] for record in caplog.records] == [KeyError]

    with caplog.at_level(logging.ERROR, "sandhost.serve"):
        asyncio.run(run())


def test_an_end_that_was_wanted_is_no_error(caplog):
    async def run() -> None:
        ends, stays = in_background(asyncio.sleep(0)), in_background(asyncio.sleep(60))
        await ends
        stays.cancel()
        await asyncio.wait([stays])
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert caplog.records == []
