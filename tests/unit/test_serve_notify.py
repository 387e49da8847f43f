"""What the service says to a service manager: the manager here is a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandhost.serve.notify import keep_watched, notify, stopping


@pytest.fixture(params=["a path", "an abstract name"])
def heard(request, tmp_path: Path, monkeypatch) -> Iterator[Callable[[], str]]:
    path = str(tmp_path / "notify")
    bound, told = (path, path) if request.param == "a path" else ("\0" + path[1:], "@" + path[1:])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(bound)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", told)
        yield lambda: manager.recv(4096).decode()


def test_the_manager_hears_states(heard):
    notify("READY=1")
    assert heard() == "READY=1"


def test_the_end_may_take_as_long_as_the_drain_and_a_little_more(heard):
    stopping(30.5)
    assert heard() == "STOPPING=1\nEXTEND_TIMEOUT_USEC=35500000"


def test_the_watchdog_hears_of_the_loop_again_and_again(heard, monkeypatch):
    async def watch_for(seconds: float) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(keep_watched(), seconds)

    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    asyncio.run(watch_for(0.4))
    assert [heard(), heard(), heard()] == ["WATCHDOG=1"] * 3


def test_a_manager_that_does_not_listen_keeps_nobody(heard):
    for _ in range(14):  # the kernel keeps 10 for it, unless net.unix.max_dgram_qlen says otherwise
        notify("WATCHDOG=1")
    assert heard() == "WATCHDOG=1"


@pytest.mark.parametrize(
    "variables", [{}, {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}]
)
def test_a_watchdog_that_is_not_ours_hears_nothing(monkeypatch, variables):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asyncio.run(asyncio.wait_for(keep_watched(), 5))  # returns at once


@pytest.mark.parametrize("name", ["", "nonsense", "vsock:2:1", "/gone/away"])
def test_without_a_manager_nothing_happens(monkeypatch, name):
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify("READY=1")
