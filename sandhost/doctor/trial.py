"""A guest that really runs: spawned, called, trapped, closed, its memory counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from ..errors import GuestTrap, SandhostError
from ..units import format_bytes, format_ns
from .findings import Finding

if TYPE_CHECKING:
    from ..plugin import Plugin

__all__ = ["trial_findings"]

_trial = partial(Finding, "trial")
_ROUNDS = 200
_FILLED_BYTES = 1 << 20

_GUEST = b"""(module (memory 16 16)
  (func (export "fill") (memory.fill (i32.const 0) (i32.const 1) (i32.const 0x100000)))
  (func (export "nothing"))
  (func (export "trap") (drop (i32.load (i32.const 0x100000)))))"""


def trial_findings() -> Iterator[Finding]:
    """Yield how running a guest went; what fails ends the trial."""
    from ..host import Host

    why = "A guest is spawned, called and closed, as a program would do it."
    try:
        with Host(cache=False, reclaim="immediate") as host:
            plugin = host.load(_GUEST, name="doctor")
            yield _trial("a guest", "ok", f"runs: {_cycle(plugin)} from spawn to close", why)
            yield _trap(plugin)
            yield _memory_back(plugin)
    except (SandhostError, OSError) as error:
        advice = "The lines above may say why; if not, please report it with their output."
        yield _trial("a guest", "problem", str(error), why, advice)


def _cycle(plugin: Plugin) -> str:
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter_ns()
        with plugin.spawn() as guest:
            guest.call("nothing")
        times.append(time.perf_counter_ns() - started)
    return format_ns(round(statistics.median(times)))


def _trap(plugin: Plugin) -> Finding:
    why = "An access outside a guest's memory is a signal that must end the guest, not the process."
    with plugin.spawn() as guest:
        try:
            guest.call("trap")
        except GuestTrap as trap:
            if trap.code == "memory_out_of_bounds":
                return _trial("a fault", "ok", "ended the guest only", why)
    advice = "Please report it with this output; do not run code that you do not trust here."
    return _trial("a fault", "problem", "did not trap as it should", why, advice)


def _memory_back(plugin: Plugin) -> Finding:
    why = "What a guest wrote is back with the system when close returns."
    guest = plugin.spawn()
    try:
        guest.call("fill")
    finally:
        reclaim = guest.close()
    found = (
        f"{format_bytes(reclaim.bytes)} of {format_bytes(_FILLED_BYTES)} in {format_ns(reclaim.ns)}"
    )
    if reclaim.bytes < _FILLED_BYTES:
        advice = "Please report it with this output."
        return _trial("its memory", "problem", found, why, advice)
    return _trial("its memory", "ok", found, why)
