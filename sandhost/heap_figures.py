"""What the handle heap tells of itself: figures of one moment, and the cycles of its own thread."""

from __future__ import annotations

from typing import Any, NamedTuple

from ._ffi import ffi, lib

__all__ = ["HeapCycle", "HeapFigures", "figures_from", "read_cycle", "read_figures"]

_PHASES = ("idle", "marking", "sweeping")
_REASONS = ("asked", "heap goal", "limit")


class HeapFigures(NamedTuple):
    """Exact figures of the heap, of one moment. Counters only grow."""

    live_bytes: int
    live_cells: int
    heap_goal_bytes: int
    """As `set_goal` was told."""
    allocs: int
    frees: int
    alloc_bytes: int
    free_bytes: int
    marked_bytes: int
    """Found by the last or current cycle; what was born meanwhile is not in it."""
    scan_work_bytes: int
    """Read by the last or current cycle; guests' memory counts for a quarter, as it reads so fast."""
    roots_bytes: int
    """Of guests' memory among them, so counted."""
    assist_ns: int
    """That allocating guests spent on marking."""
    mark_ns: int
    """CPU time of marking elsewhere."""
    sweep_ns: int
    longest_stop_ns: int
    """That a thread waited for the collector, or worked for it, at once."""
    cycles: int
    """That are over."""
    phase: str
    """"idle", "marking" or "sweeping"."""
    finalizers_queued: int
    """Objects that `run_finalizers` would drop."""
    peak_bytes: int
    """Live when the last cycle had marked everything."""
    marking_ns: int
    """By the clock, in which cycles marked that do so no more."""
    begun: int
    """Cycles that have begun, whoever runs them."""


class HeapCycle(NamedTuple):
    """A cycle of the heap's own thread."""

    number: int
    """Of all that have begun; `HeapFigures.begun` from its begin to the next one's."""
    reason: str
    """Why it began: "asked", by `run_cycle_async`, or by itself "heap goal" or "limit"."""
    began_s: float
    """As `time.monotonic()` counts."""
    ended_s: float | None
    """None: it runs."""
    trigger_bytes: int
    before: HeapFigures
    after: HeapFigures | None


def read_figures(heap: Any) -> HeapFigures:
    """Return the figures of a native heap."""
    native = ffi.new(_FIGURES)
    lib.sh_heap_get_figures(heap, native)
    return figures_from(native)


def read_cycle(heap: Any) -> HeapCycle | None:
    """Return the oldest cycle of the thread of a native heap that was not forgotten yet."""
    native = ffi.new("sh_heap_cycle *")
    if not lib.sh_heap_get_cycle(heap, native):
        return None
    ended = native.ended_ns
    return HeapCycle(
        native.number,
        _REASONS[native.reason],
        native.began_ns / 1e9,
        ended / 1e9 if ended else None,
        native.trigger,
        figures_from(native.before),
        figures_from(native.after) if ended else None,
    )


def figures_from(native: Any) -> HeapFigures:
    """Read what C has filled in as `sh_heap_get_figures` does."""
    figures: list[Any] = ffi.unpack(native, _COUNT)
    figures[_PHASE] = _PHASES[figures[_PHASE]]
    return HeapFigures(*figures)


_COUNT = lib.SH_HEAP_FIGURES
_PHASE = HeapFigures._fields.index("phase")
_FIGURES = ffi.typeof(f"uint64_t[{_COUNT}]")
