"""A heap to try collectors on: a real mark-sweep over a real graph, in a time of its own.

It keeps the protocol of sandhost/gc/protocol.py. Time passes only in `run` (the program has the
machine) and in `wait` (the program and the collector share it), a quantum at a time: the program
allocates with the core time that it has, which makes the collector's work its own once the assist
ratio asks for more than the background has done.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from sandhost.gc.collector import Collector
from sandhost.heap_figures import HeapCycle, HeapFigures
from sandhost.limits import UNLIMITED

WHITE, GREY, BLACK = range(3)
QUANTUM_S = 0.0005
SWEEP_CELLS_PER_S = 50e6
STOP_NS = 50_000
CHAIN = 8
PARTS = 4


class Cell:
    """size bytes, of which all are scanned; edges to other cells."""

    __slots__ = ("colour", "edges", "finalizer", "freed", "size")

    def __init__(self, size: int, colour: int) -> None:
        self.size, self.colour = size, colour
        self.edges: list[Cell] = []
        self.finalizer: Callable[[], None] | None = None
        self.freed = False


class Bundle:
    """A root of the program and the chain of cells that hangs on it."""

    __slots__ = ("bytes", "cells", "root", "tail")

    def __init__(self, root: Cell) -> None:
        self.root = self.tail = root
        self.cells, self.bytes = 1, root.size

    def add(self, cell: Cell) -> None:
        self.tail.edges.append(cell)
        self.tail = cell
        self.cells, self.bytes = self.cells + 1, self.bytes + cell.size


class Load:
    """What a program does: functions of time. Sizes in bytes, rates in bytes a second of one core."""

    def __init__(
        self,
        rate: Callable[[float], float],
        live: Callable[[float], float],
        cell_bytes: int = 64 << 10,
    ) -> None:
        self.rate, self.live, self.cell_bytes = rate, live, cell_bytes


class SimHeap:
    """See above.

    Args:
        scan_rate: bytes a second that one core scans.
        load: what the program does while time passes; None: nothing.
        roots_bytes: scanned at the beginning of each cycle.
    """

    def __init__(
        self,
        load: Load | None = None,
        *,
        cores: int = 4,
        scan_rate: float = 1e9,
        roots_bytes: int = 0,
        seed: int = 1,
    ) -> None:
        self.load, self.cores, self.scan_rate, self.root_size = load, cores, scan_rate, roots_bytes
        self.on_trigger: Callable[[], object] | None = None
        self.on_time: Callable[[], None] | None = None
        """Called when time has passed, for whoever watches."""
        self.now_s = 0.0
        self.random = random.Random(seed)
        self.cells: list[Cell] = []
        self.roots: deque[Bundle] = deque()  # the program's: first in, first out
        self.rooted_bytes = 0
        self.goal, self.trigger, self.assist_ratio = UNLIMITED, UNLIMITED, 0.0
        self.background = 1.0
        self.live = self.allocs = self.frees = self.alloc_bytes = self.free_bytes = 0
        self.marked = self.scanned = self.roots_scanned = 0
        self.assist_ns = self.mark_ns = self.sweep_ns = self.longest_stop_ns = self.cycles = 0
        self.phase = "idle"
        self.grey: list[Cell] = []
        self.sweeping = 0
        self.kept: list[Cell] = []
        self.queue: list[Callable[[], None]] = []
        self.credit = 0.0  # bytes that the background has scanned and nobody has claimed
        self.debt = 0.0  # core seconds of assists that the program still has to spend
        self.owed = 0.0  # bytes of allocation that were begun in the last quantum, below 0
        self.allowed = 0.0  # bytes that the background may scan and has not
        self.at_mark_end: list[tuple[int, int]] = []
        """(live, goal) when each cycle had marked everything."""
        self.peak = 0
        self.marking_s = self.marking_since_s = 0.0
        self.running = False
        self.begun = 0
        self.limited = self.wanted = self.tells = False
        self.by_itself: tuple[float | None, int, int] | None = None
        self.records: list[HeapCycle] = []
        self.paced_in = self.left = self.left_work = self.collecting_ns = 0
        self.rest_until_s = 0.0

    # ---- the program ----

    def clock(self) -> float:
        return self.now_s

    def alloc(self, size: int, edges: list[Cell] | None = None) -> Cell:
        """Allocate a cell, black while marking and sweeping."""
        if self.phase == "sweep":
            colour = BLACK
            self.kept.append(cell := Cell(size, colour))
        else:
            colour = BLACK if self.phase == "mark" else WHITE
            self.cells.append(cell := Cell(size, colour))
        cell.edges = edges or []
        if self.phase == "mark":
            for other in cell.edges:  # its edges are never scanned again
                self.shade(other)
        self.live += size
        self.allocs, self.alloc_bytes = self.allocs + 1, self.alloc_bytes + size
        self.peak = max(self.peak, self.live)
        self._look_at_trigger()
        if self.phase == "mark":
            self.shade(cell)  # in flight: a cycle that begins here finds it on no bundle yet
        if self.tells and self.on_trigger is not None:
            self.tells = False
            self.on_trigger()
        return cell

    def hold(self, size: int) -> Cell:
        """Allocate a cell that the program holds, alone or at the end of a chain."""
        cell = self.alloc(size)
        if self.roots and self.roots[-1].cells < CHAIN:
            self.roots[-1].add(cell)
        else:
            self.roots.append(Bundle(cell))
        self.rooted_bytes += size
        return cell

    def let_go(self) -> None:
        """Drop the oldest bundle; what hung on it when marking began is kept by the barrier."""
        bundle = self.roots.popleft()
        self.rooted_bytes -= bundle.bytes
        if self.phase == "mark":
            self.shade(bundle.root)

    def shade(self, cell: Cell) -> None:
        assert not cell.freed, "the program holds a cell that was freed"
        if cell.colour == WHITE:
            cell.colour = GREY
            self.grey.append(cell)

    # ---- the protocol ----

    def begin_cycle(self) -> None:
        assert self.phase == "idle"
        self.phase = "mark"
        self.begun += 1
        self.wanted = False
        self.marking_since_s = self.now_s
        self.marked = self.scanned = self.roots_scanned = 0
        self.credit = self.allowed = 0.0
        for cell in self.cells:
            cell.colour = WHITE
        for bundle in self.roots:
            self.shade(bundle.root)
        self.longest_stop_ns = max(self.longest_stop_ns, STOP_NS)

    def mark(self, budget: int) -> bool:
        assert self.phase == "mark"
        self._scan(budget)
        return self._marked_all

    def _scan(self, budget: float) -> int:
        """Scan about so much, at least one thing; return how much it was."""
        done = 0
        if budget <= 0:
            return 0
        if self.roots_scanned < self.root_size:
            done = int(min(self.root_size - self.roots_scanned, max(budget, 1)))
            self.roots_scanned += done
        while done < budget and self.grey:
            cell = self.grey.pop()
            cell.colour = BLACK
            self.marked += cell.size
            for other in cell.edges:
                self.shade(other)
            self.scanned += cell.size
            done += cell.size
        return done

    @property
    def _marked_all(self) -> bool:
        return not self.grey and self.roots_scanned >= self.root_size

    def finish_mark(self) -> None:
        assert self.phase == "mark"
        self._scan(float("inf"))
        self.at_mark_end.append((self.live, self.goal))
        self.marking_s += self.now_s - self.marking_since_s
        self.phase, self.sweeping, self.kept = "sweep", 0, []
        self.grey = []

    def sweep(self, budget_cells: int) -> bool:
        assert self.phase == "sweep"
        end = min(self.sweeping + budget_cells, len(self.cells))
        for cell in self.cells[self.sweeping : end]:
            if cell.colour == BLACK:
                self.kept.append(cell)
                continue
            cell.freed = True
            self.live -= cell.size
            self.frees, self.free_bytes = self.frees + 1, self.free_bytes + cell.size
            if cell.finalizer is not None:
                self.queue.append(cell.finalizer)
        self.sweep_ns += int((end - self.sweeping) / SWEEP_CELLS_PER_S * 1e9)
        self.sweeping = end
        if end < len(self.cells):
            return False
        self.cells, self.kept = self.kept, []
        self._over()
        return True

    def run_finalizers(self) -> int:
        queue, self.queue = self.queue, []
        for finalizer in queue:
            finalizer()
        return len(queue)

    def run_cycle_async(self) -> bool:
        if self.phase != "idle":
            return False
        self._begin("asked")
        return True

    def wait(self, timeout_s: float) -> bool:
        end, number = self.now_s + timeout_s, self.begun
        while self.running and self.begun == number and self.now_s < end:
            self._share(QUANTUM_S)
        return not self.running or self.begun != number

    def cycle(self) -> HeapCycle | None:
        return self.records[0] if self.records else None

    def forget_cycle(self, number: int) -> None:
        assert self.records[0].number == number
        assert self.records[0].after is not None
        del self.records[0]

    def figures(self) -> HeapFigures:
        return HeapFigures(
            live_bytes=self.live,
            live_cells=self.allocs - self.frees,
            heap_goal_bytes=self.goal,
            allocs=self.allocs,
            frees=self.frees,
            alloc_bytes=self.alloc_bytes,
            free_bytes=self.free_bytes,
            marked_bytes=self.marked,
            scan_work_bytes=self.scanned + self.roots_scanned,
            roots_bytes=self.roots_scanned,
            assist_ns=self.assist_ns,
            mark_ns=self.mark_ns,
            sweep_ns=self.sweep_ns,
            longest_stop_ns=self.longest_stop_ns,
            cycles=self.cycles,
            phase=self.phase,
            finalizers_queued=len(self.queue),
            peak_bytes=self.at_mark_end[-1][0] if self.at_mark_end else 0,
            marking_ns=int(self.marking_s * 1e9),
            begun=self.begun,
        )

    def set_goal(
        self,
        goal_bytes: int,
        trigger_bytes: int,
        assist_ratio: float,
        cores: float,
        *,
        limited: bool,
        as_of: int,
        by_itself: tuple[float | None, int, int] | None,
    ) -> None:
        self.background, self.by_itself = cores, by_itself
        if as_of == 2 * self.begun - (self.phase != "idle"):
            self.goal, self.trigger, self.assist_ratio = goal_bytes, trigger_bytes, assist_ratio
            self.limited = limited
            self.paced_in = self.begun
        elif self.phase == "idle":
            self._set_own_goal()
        self.wanted = False
        self._look_at_trigger()
        self.tells = False

    # ---- cycles that begin by themselves, as in native/heap_cycle.c ----

    def _look_at_trigger(self) -> None:
        if self.phase != "idle" or self.live < self.trigger:
            return
        if self.by_itself is not None and self.now_s >= self.rest_until_s:
            self._begin("limit" if self.limited else "heap goal")
            self.tells = True
        elif not self.wanted:
            self.tells = self.wanted = True

    def _begin(self, reason: str) -> None:
        before = self.figures()
        self.collecting_ns = self.assist_ns + self.mark_ns
        self.begin_cycle()
        self.records.append(
            HeapCycle(self.begun, reason, self.now_s, None, self.trigger, before, None)
        )
        self.running = True
        self._pace()

    def _over(self) -> None:
        self.phase = "idle"
        self.cycles += 1
        self.left, self.left_work = self.live, self.scanned + self.roots_scanned
        self.assist_ratio = 0.0
        if self.running:
            self.running = False
            self.records[-1] = self.records[-1]._replace(ended_s=self.now_s, after=self.figures())
        self._set_own_goal()
        if self.limited and self.goal == self.left:
            wall_s = self.now_s - self.marking_since_s
            core_s = (self.assist_ns + self.mark_ns - self.collecting_ns) / 1e9 / self.cores
            self.rest_until_s = self.now_s + max(wall_s, 2 * core_s - wall_s)  # debt is paid late
        self._look_at_trigger()

    def _set_own_goal(self) -> None:
        percent, minimum, ceiling = self.by_itself or (None, 0, UNLIMITED)
        goal = UNLIMITED
        if percent is not None:
            goal = max(self.left + int((self.left + self.roots_scanned) * percent / 100), minimum)
        ceiling = max(ceiling, self.left)
        self.limited, self.goal = ceiling < goal, min(goal, ceiling)
        way = (self.goal - self.left) // 64
        self.trigger = UNLIMITED if self.goal == UNLIMITED else self.left + 45 * way

    def _pace(self) -> None:
        if self.phase != "mark" or self.by_itself is None or self.paced_in == self.begun:
            return
        goal, work = float(self.goal), self.scanned + self.roots_scanned
        worst = self.left_work * self.live / self.left if self.left else float(self.live)
        expected = self.left_work or worst
        if work > expected or self.live > goal:
            expected = worst
        if self.live > goal and not self.limited:
            goal *= 1.1
        self.assist_ratio = max(expected - work, 1000) / max(goal - self.live, 1)

    # ---- time ----

    def run(self, seconds: float) -> None:
        """Give the program the whole machine."""
        end = self.now_s + seconds
        while self.now_s < end:
            if self.running:
                self._share(QUANTUM_S)
                continue
            self._program(self.cores * QUANTUM_S)
            self._pass(QUANTUM_S)

    def _share(self, seconds: float) -> None:
        """Let the collector and the program run side by side."""
        background = self.background
        if self.phase == "sweep":
            self._program((self.cores - background) * seconds)
            self._pass(seconds)
            self.sweep(int(SWEEP_CELLS_PER_S * seconds))
            return
        part_s = seconds / PARTS  # so that neither is far ahead of the other
        for _ in range(PARTS):
            self.allowed += background * part_s * self.scan_rate
            done = self._scan(self.allowed)  # cells are scanned whole: it may be a little more
            self.allowed -= done
            self.credit += done
            self.mark_ns += int(done / self.scan_rate * 1e9)
            self._pace()
            self._program((self.cores - background) * part_s)
            self._pass(part_s)
            if self._marked_all:
                self.finish_mark()
                return

    def _pass(self, seconds: float) -> None:
        self.now_s += seconds
        if self.on_time is not None:
            self.on_time()

    def _program(self, core_s: float) -> None:
        """Allocate with so much core time, assisting where the pacer wants it."""
        load = self.load
        if load is None:
            return
        paid = min(self.debt, core_s)
        self.debt -= paid
        self.owed += load.rate(self.now_s) * (core_s - paid)
        while self.owed > 0:
            size = int(load.cell_bytes * self.random.uniform(0.5, 1.5))
            self.owed -= size
            self.hold(size)
            self._assist(size)
        while self.rooted_bytes > load.live(self.now_s) and len(self.roots) > 1:
            self.let_go()

    def _assist(self, size: int) -> None:
        if self.phase != "mark" or self.assist_ratio <= 0:
            return
        need = size * self.assist_ratio
        stolen = min(need, self.credit)
        self.credit -= stolen
        need -= stolen
        if need > 0:
            done = self._scan(need)
            core_s = done / self.scan_rate
            self.assist_ns += int(core_s * 1e9)
            self.debt += core_s
            self.credit += max(done - need, 0)


def simulate(heap: SimHeap, collector: Collector, seconds: float) -> None:
    """Let program and collector run for so long."""
    called = [False]

    def wake() -> None:
        called[0] = True

    end = heap.now_s + seconds
    collector.start()
    heap.on_trigger = wake
    look_s = heap.now_s
    while heap.now_s < end:
        if called[0] or heap.now_s >= look_s:
            called[0] = False
            wait_s = collector.turn()
            look_s = heap.now_s + (seconds if wait_s is None else wait_s)
        else:
            heap.run(QUANTUM_S)
