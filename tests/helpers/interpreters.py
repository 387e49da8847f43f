"""What the tests of the interpreters share."""

from __future__ import annotations

import time
from typing import Any

import pytest

import sandhost
from sandhost.interpreters import Box

from . import PATIENCE, ROOT, Background, run_cleanly, wait_until


def cancelled_meanwhile(box: Box, endless: str) -> None:
    """Assert that code without end can be cancelled from another thread, which ends its session."""
    with box.session() as session:
        worker = Background(session.run, endless)
        # Again and again: a run is several calls, and a cancelled one may be about to return.
        wait_until(lambda: (session.guest.cancel(), worker.done)[1])
        with pytest.raises(sandhost.GuestCancelled):
            worker.result()
        assert session.closed


def stopped_by_its_deadline(box: Box, *endless: str, deadline: float) -> None:
    """Assert that each piece of code without end is stopped, and that the box goes on."""
    began = time.monotonic()
    for code in endless:
        with pytest.raises(sandhost.DeadlineExceeded):
            box.run(code, limits=sandhost.Limits(deadline=deadline))
    assert time.monotonic() - began < PATIENCE
    assert box.run("1").value == 1


def lines_of_example(name: str, **options: Any) -> list[str]:
    """Run a program of examples/; return the lines that it prints."""
    source = str(ROOT / "examples" / name)
    return run_cleanly(
        f"exec(compile(open({source!r}).read(), 'example', 'exec'))", **options
    ).splitlines()
