r"""What one cycle was: a record, a line in Go's field order, a structured event.

    gc 7 @1.204s 3%: 0.05+12+0.84 ms clock, 0.05+1.1/11/0+0.84 ms cpu, 61->66->31 MB, 66 MB goal, \
        0 MB stacks, 0 MB globals, 2 P

The fields are those of Go's `GODEBUG=gctrace=1` (its package documentation, runtime), in Go's units:
number, seconds since the collector began, share of all core time spent on collecting since then; wall
clock of beginning + marking + sweeping; core time of the same, marking split into assists/background/
idle; heap at the start, at the end, and what is left; goal; scanned roots; roots of known size; cores.
"(forced)" ends the line of a cycle that `collect()` asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from .._log import get_logger

__all__ = ["Cycle", "line", "log", "tracer"]

VARIABLE = "SANDHOST_GCTRACE"
_LOGGER = "sandhost.gc"


class Cycle(NamedTuple):
    """One cycle that has ended. Bytes, and seconds."""

    number: int
    reason: str
    """The label of the trigger that was due."""
    began_s: float
    """Since the collector was made."""
    begin_s: float
    """Wall clock, of this and the next two: until marking ran."""
    mark_s: float
    sweep_s: float
    assist_s: float
    """Core time, of this and the next: marking done by guests that allocate."""
    background_s: float
    live_before_bytes: int
    live_after_bytes: int
    """When the sweep was over: what the next goal is computed from."""
    peak_bytes: int
    """What was live when everything was marked."""
    marked_bytes: int
    """Found reachable; what was allocated meanwhile stays too."""
    swept_bytes: int
    """Given back while it ran, by sweep and by hand."""
    goal_bytes: int
    trigger_bytes: int
    scanned_bytes: int
    """Read in the heap; a cell costs what reading it costs, not what it stands for."""
    roots_bytes: int
    globals_bytes: int
    utilization: float
    """Share of all cores' time, while it marked, that marking took."""
    assist_ratio: float
    """When it ended: bytes to scan for each byte allocated."""
    cons_mark: float
    percent: float | None
    limited: bool
    """The memory limit set the goal."""
    limiting: bool
    """The CPU limiter kept guests from assisting."""
    longest_stop_ns: int
    """Of any guest, ever."""
    finalizers: int
    cores: int
    spent: float
    """Share of all core time since the collector was made that went into collecting."""

    @property
    def duration_s(self) -> float:
        """Wall clock of all of it."""
        return self.begin_s + self.mark_s + self.sweep_s

    @property
    def forced(self) -> bool:
        """Whether somebody called `collect()`."""
        return self.reason == "explicit"


def line(cycle: Cycle) -> str:
    """Return the line that Go would print, without a newline."""
    clock = "+".join(map(_ms, (cycle.begin_s, cycle.mark_s, cycle.sweep_s)))
    marking = "/".join(map(_ms, (cycle.assist_s, cycle.background_s, 0.0)))
    heap = "->".join(
        str(size >> 20)
        for size in (cycle.live_before_bytes, cycle.peak_bytes, cycle.live_after_bytes)
    )
    goal = min(cycle.goal_bytes, 2**63 - 1) >> 20
    return (
        f"gc {cycle.number} @{cycle.began_s:.3f}s {int(cycle.spent * 100)}%: {clock} ms clock, "
        f"{_ms(cycle.begin_s)}+{marking}+{_ms(cycle.sweep_s)} ms cpu, {heap} MB, {goal} MB goal, "
        f"{cycle.roots_bytes >> 20} MB stacks, {cycle.globals_bytes >> 20} MB globals, "
        f"{cycle.cores} P{' (forced)' if cycle.forced else ''}"
    )


def _ms(seconds: float) -> str:
    """Return milliseconds: whole from 10 on, below with two significant digits, at least µs."""
    ms = seconds * 1e3
    if ms >= 10:
        return f"{ms:.0f}"
    decimals = 1 if ms >= 1 else 2 if ms >= 0.1 else 3
    text = f"{ms:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def log(cycle: Cycle) -> None:
    """Log a cycle as the event `cycle`, at level info; nothing is built when nobody listens."""
    import logging

    if logging.getLogger(_LOGGER).isEnabledFor(logging.INFO):
        get_logger(_LOGGER).info("cycle", **cycle._asdict(), duration_s=cycle.duration_s)


def tracer() -> Callable[[Cycle], None]:
    """Return what the environment asks for: the event, and with SANDHOST_GCTRACE=1 the line to stderr."""
    return _print_and_log if os.environ.get(VARIABLE, "0") not in ("", "0") else log


def _print_and_log(cycle: Cycle) -> None:
    stderr = sys.stderr
    if stderr is not None:  # a windowless or closing interpreter has none
        try:
            stderr.write(line(cycle) + "\n")
        except (OSError, ValueError):  # it is full, or closed: tracing must not end collecting
            pass
    log(cycle)
