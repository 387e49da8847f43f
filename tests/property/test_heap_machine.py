"""The handle heap against a naive oracle: guests and host allocate, link, pin, drop and close, in any order,
between any two steps of the collector.

The model is a graph: cells with what they refer to, and roots. Two promises are held against it. What can be reached is
there, at every moment. What could not be reached when a cycle began is gone when it ends.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import guest_file

import sandhost
from sandhost.observe import path_to

SLOTS = 4  # words of memory in which a guest that does not release keeps handles
MOST = 4  # guests
APART = 15  # cells of the table between two of the model: a step of the marker then sees a few

STEPS = st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 13]), min_size=3, max_size=3)
PATHS = st.permutations(["edge", "root", "memory"])


class Thing:
    """What a handle stands for."""


class Cell:
    """A cell of the model: lists of edges, counts of roots."""

    def __init__(self, owner: Owner, is_list: bool) -> None:
        self.owner, self.is_list = owner, is_list
        self.entries: list[int] = []
        self.owners = self.pins = 0
        self.in_flight = False


class Owner:
    """The host (`guest` None), a guest that releases by hand, or one whose memory is scanned."""

    def __init__(self, guest: sandhost.Guest | None, scanned: bool) -> None:
        self.guest, self.scanned = guest, scanned
        self.memory = [0] * SLOTS
        self.in_a_call_while_marking = False


class Machine(RuleBasedStateMachine):
    @initialize(moves=st.booleans(), steps=STEPS, order=PATHS, ends=st.booleans())
    def make_host(self, moves, steps, order, ends) -> None:
        self.host = sandhost.Host(cache=False, max_guests=MOST)
        self.inside = lambda: None

        @self.host.function("env", "open")
        def open_thing(number: int) -> sandhost.Handle[Thing]:
            return Thing()

        @self.host.function("env", "read")
        def read(thing: sandhost.Handle[Thing]) -> int:
            self.inside()
            return 0

        self.heap = self.host.handles
        self.host.gc.close()  # cycles are the machine's to run
        self.by_hand = self.host.load(guest_file("handles"))
        self.scanned = self.host.load(guest_file("hoarder"))
        self.cells: dict[int, Cell] = {}
        self.gone: set[int] = set()
        self.owners = [Owner(None, False)]
        self.condemned: set[int] | None = None
        if moves:  # as a rule alone it would be left out of too many histories
            self.spawn(scanned=True)
            self.move_only_paths_while_marking(0, 0, 1, steps, order, ends)

    # ---- the oracle ----

    def reachable(self) -> set[int]:
        roots = {h for h, cell in self.cells.items() if cell.owners or cell.pins or cell.in_flight}
        for owner in self.owners:
            roots |= {h for h in owner.memory if h}
        return self.reachable_from(roots)

    def reachable_from(self, roots: set[int]) -> set[int]:
        seen: set[int] = set()
        while roots:
            handle = roots.pop()
            if handle in self.cells and handle not in seen:
                seen.add(handle)
                roots |= set(self.cells[handle].entries) - {0}
        return seen

    def is_there(self, handle: int) -> bool:
        try:
            self.heap.info(handle)
        except sandhost.InvalidHandle:
            return False
        return True

    @invariant()
    def what_can_be_reached_is_there(self):
        if hasattr(self, "host"):
            for handle in self.reachable():
                assert self.is_there(handle)

    # ---- choices ----

    def choose(self, number: int, wanted) -> int | None:
        """Pick a handle that somebody can know: one that is reachable."""
        found = sorted(h for h in self.reachable() if wanted(self.cells[h]))
        return found[number % len(found)] if found else None

    def owner(self, number: int, wanted=lambda owner: True) -> Owner | None:
        found = [owner for owner in self.owners if wanted(owner)]
        return found[number % len(found)] if found else None

    def call(self, owner: Owner, name: str, *arguments):
        assert owner.guest is not None
        result = owner.guest.call(name, *arguments)
        for cell in self.cells.values():
            if cell.owner is owner:
                cell.in_flight = False  # its outermost call is over
        return result

    def add(self, handle: int, owner: Owner, is_list: bool) -> Cell:
        assert handle not in self.cells
        assert handle not in self.gone
        cell = self.cells[handle] = Cell(owner, is_list)
        for _ in range(APART):
            self.heap.release(self.heap.new(None, size=0))
        return cell

    def slot_value(self, owner: Owner, slot: int) -> int:
        assert owner.guest is not None
        return int.from_bytes(owner.guest.memory.read(8 * slot + 8, 8), "little")

    # ---- guests ----

    @precondition(lambda self: len(self.owners) <= MOST)
    @rule(scanned=st.booleans())
    def spawn(self, scanned):
        guest = (self.scanned if scanned else self.by_hand).spawn()
        self.owners.append(Owner(guest, scanned))

    @rule(number=st.integers(0, 20))
    def close(self, number):
        owner = self.owner(number, lambda owner: owner.guest is not None)
        if owner is None:
            return
        if self.heap.figures().phase == "marking":
            # The barrier keeps what the guest's cells refer to until the next cycle, whoever reached them.
            assert self.condemned is not None
            owned = {h for h, cell in self.cells.items() if cell.owner is owner}
            self.condemned -= self.reachable_from(owned)
        owner.guest.close()
        self.owners.remove(owner)
        for handle in [h for h, cell in self.cells.items() if cell.owner is owner]:
            del self.cells[handle]
            self.gone.add(handle)
            assert not self.is_there(handle), "at once"

    # ---- cells of the host and of guests that release by hand ----

    @rule(number=st.integers(0, 20))
    def new_thing(self, number):
        owner = self.owner(number)
        handle = self.heap.new(Thing(), guest=owner.guest)
        cell = self.add(handle, owner, False)
        cell.owners, cell.in_flight = int(not owner.scanned), owner.scanned

    @rule(parents=st.lists(st.integers(0, 99), min_size=1, max_size=8))
    def new_children(self, parents):
        for which in parents:
            parent = self.choose(which, lambda cell: not cell.is_list)
            handle = self.heap.new(Thing())
            self.add(handle, self.owners[0], False).owners = 1
            if parent is not None:
                self.heap.link(parent, handle)
                self.cells[parent].entries.append(handle)
                self.heap.release(handle)
                self.cells[handle].owners = 0

    @rule(number=st.integers(0, 20))
    def new_list_by_hand(self, number):
        owner = self.owner(number, lambda owner: owner.guest is not None and not owner.scanned)
        if owner is not None:
            self.add(self.call(owner, "list_new"), owner, True).owners = 1

    @rule(which=st.integers(0, 99))
    def release(self, which):
        handle = self.choose(which, lambda cell: cell.owners > 0)
        if handle is not None:
            self.heap.release(handle)
            self.cells[handle].owners -= 1

    @rule(which=st.integers(0, 99), by_weak=st.booleans())
    def retain(self, which, by_weak):
        handle = self.choose(which, lambda cell: not cell.owner.scanned)
        if handle is None:
            return
        weak = self.heap.weak(handle) if by_weak else handle
        assert self.heap.retain(weak) == handle
        self.cells[handle].owners += 1
        if by_weak:
            self.heap.release(weak)

    @rule(which=st.integers(0, 99))
    def pin(self, which):
        handle = self.choose(which, lambda cell: True)
        if handle is not None:
            self.heap.pin(handle)
            self.cells[handle].pins += 1

    @rule(which=st.integers(0, 99))
    def unpin(self, which):
        handle = self.choose(which, lambda cell: cell.pins > 0)
        if handle is not None:
            self.heap.unpin(handle)
            self.cells[handle].pins -= 1

    @rule(source=st.integers(0, 99), to=st.integers(0, 99))
    def link(self, source, to):
        source = self.choose(source, lambda cell: not cell.is_list)
        target = self.choose(to, lambda cell: True)
        if source is not None:
            self.heap.link(source, target)
            self.cells[source].entries.append(target)

    @rule(source=st.integers(0, 99), which=st.integers(0, 99))
    def unlink(self, source, which):
        source = self.choose(source, lambda cell: cell.entries and not cell.is_list)
        if source is None:
            return
        entries = self.cells[source].entries
        target = entries[which % len(entries)]
        if target in self.gone:  # its owner is closed
            with pytest.raises(sandhost.ConfigError):
                self.heap.unlink(source, 0)
            return
        self.heap.unlink(source, target)
        entries.remove(target)

    @rule(source=st.integers(0, 99), which=st.integers(0, 99), to=st.integers(0, 99))
    def move_an_edge(self, source, which, to):
        source = self.choose(
            source, lambda cell: not cell.is_list and set(cell.entries) - self.gone
        )
        if source is None:
            return
        entries = self.cells[source].entries
        present = [entry for entry in entries if entry not in self.gone]
        target = present[which % len(present)]
        to = self.choose(to, lambda cell: not cell.is_list)
        self.heap.link(to, target)
        self.cells[to].entries.append(target)
        self.heap.unlink(source, target)
        entries.remove(target)

    @rule(which=st.integers(0, 99), to=st.integers(0, 99))
    def turn_a_root_into_an_edge(self, which, to):
        target = self.choose(which, lambda cell: cell.owners > 0)
        to = self.choose(to, lambda cell: not cell.is_list)
        if target is None or to is None:
            return
        self.heap.link(to, target)
        self.cells[to].entries.append(target)
        for _ in range(self.cells[target].owners):
            self.heap.release(target)
        self.cells[target].owners = 0

    @rule(which=st.integers(0, 99), entry=st.integers(0, 99))
    def push(self, which, entry):
        items = self.choose(which, lambda cell: cell.is_list and not cell.owner.scanned)
        if items is None:
            return
        owner = self.cells[items].owner
        entry = self.choose(entry, lambda cell: cell.owner is owner)
        self.call(owner, "list_push", items, entry)
        self.cells[items].entries.append(entry)

    @rule(which=st.integers(0, 99))
    def pop(self, which):
        items = self.choose(
            which, lambda cell: cell.is_list and cell.entries and not cell.owner.scanned
        )
        if items is not None:
            entry = self.cells[items].entries.pop()
            assert self.call(self.cells[items].owner, "list_pop", items) == entry
            self.cells[entry].owners += 1

    # ---- guests that do not release ----

    def scanned_owner(self, number: int) -> Owner | None:
        return self.owner(number, lambda owner: owner.scanned)

    @rule(
        number=st.integers(0, 20),
        slot=st.integers(0, SLOTS - 1),
        is_list=st.booleans(),
        pinned=st.booleans(),
    )
    def new_in_memory(self, number, slot, is_list, pinned):
        owner = self.scanned_owner(number)
        if owner is None:
            return
        at = 8 * slot + 8
        self.call(owner, "list_at", at) if is_list else self.call(owner, "open_at", at, 0)
        owner.memory[slot] = self.slot_value(owner, slot)
        cell = self.add(owner.memory[slot], owner, is_list)
        if pinned and is_list:
            self.heap.pin(owner.memory[slot])
            cell.pins = 1

    @rule(number=st.integers(0, 20), slot=st.integers(0, SLOTS - 1))
    def forget(self, number, slot):
        owner = self.scanned_owner(number)
        if owner is not None:
            self.call(owner, "forget_at", 8 * slot + 8)
            owner.memory[slot] = 0

    @rule(
        number=st.integers(0, 20),
        slot=st.integers(0, SLOTS - 1),
        other=st.integers(0, SLOTS - 1),
        pops=st.booleans(),
    )
    def move(self, number, slot, other, pops):
        owner = self.scanned_owner(number)
        items = owner.memory[slot] if owner is not None else 0
        if not items or not self.cells[items].is_list:
            return
        entries = self.cells[items].entries
        if pops and entries:
            self.call(owner, "pop_at", 8 * slot + 8, 8 * other + 8)
            owner.memory[other] = self.slot_value(owner, other)
            assert owner.memory[other] == entries.pop()
        elif not pops and owner.memory[other]:
            self.call(owner, "push_at", 8 * slot + 8, 8 * other + 8)
            entries.append(owner.memory[other])

    @rule(which=st.integers(0, 99), slot=st.integers(0, SLOTS - 1))
    def hide_in_a_pinned_list(self, which, slot):
        items = self.choose(which, lambda cell: cell.is_list and cell.pins and cell.owner.scanned)
        if items is None or items not in self.cells[items].owner.memory:
            return
        owner = self.cells[items].owner
        entry = owner.memory[slot]
        if entry and entry != items:
            self.call(owner, "push_at", 8 * owner.memory.index(items) + 8, 8 * slot + 8)
            self.cells[items].entries.append(entry)
            self.call(owner, "forget_at", 8 * slot + 8)
            owner.memory[slot] = 0

    # ---- the collector ----

    @precondition(lambda self: self.heap.figures().phase == "idle")
    @rule()
    def begin(self):
        self.heap.begin_cycle()
        self.condemned = set(self.cells) - self.reachable()
        for owner in self.owners:
            owner.in_a_call_while_marking = False

    @precondition(lambda self: self.heap.figures().phase == "marking")
    @rule(budget=st.sampled_from([1, 100, 1000]))
    def mark(self, budget):
        self.heap.mark(budget)

    @precondition(lambda self: self.heap.figures().phase == "marking")
    @rule(
        number=st.integers(0, 20), slot=st.integers(0, SLOTS - 1), budget=st.sampled_from([1, 9999])
    )
    def mark_in_the_middle_of_a_call(self, number, slot, budget):
        owner = self.scanned_owner(number)
        handle = owner.memory[slot] if owner is not None else 0
        if handle and not self.cells[handle].is_list:
            owner.in_a_call_while_marking = True
            self.inside = lambda: self.heap.mark(budget)
            self.call(owner, "read_at", 8 * slot + 8)
            self.inside = lambda: None

    @rule(
        changes=st.lists(
            st.tuples(
                st.sampled_from(["edge", "root", "pop", "new", "weak", "hide"]),
                *[st.integers(0, 99)] * 3,
            ),
            min_size=10,
            max_size=30,
        ),
        ends=st.booleans(),
    )
    def mark_step_by_step_between_changes(self, changes, ends):
        if self.heap.figures().phase == "idle":
            self.begin()
        for change, one, two, three in changes:
            if self.heap.figures().phase == "marking":
                self.heap.mark(1)
            if change == "edge":
                self.move_an_edge(source=one, which=two, to=three)
            elif change == "root":
                self.turn_a_root_into_an_edge(which=one, to=two)
            elif change == "pop":
                self.pop(which=one)
            elif change == "hide":
                self.hide_in_a_pinned_list(which=one, slot=two % SLOTS)
            elif change == "new":
                self.new_thing(number=one)
            else:
                self.retain(which=one, by_weak=True)
            self.what_can_be_reached_is_there()
        if ends:
            if self.heap.figures().phase == "marking":
                self.finish_mark()
            self.sweep(budget=2**20)

    # Chance alone hardly ever moves the only path to a cell from where the marker is yet to come to where it
    # never comes: what is born while it marks is black, and nobody follows its edges. So one rule does, for each
    # barrier: from an edge, from a root, from a guest's memory.

    def mark_a_little(self, steps: int) -> None:
        for _ in range(steps):
            self.heap.mark(1)

    def new_of_hosts(self) -> int:
        handle = self.heap.new(Thing())
        self.add(handle, self.owners[0], False).owners = 1
        return handle

    def link_owned(self, source: int, target: int) -> None:
        self.heap.link(source, target)
        self.cells[source].entries.append(target)

    def let_go(self, handle: int) -> None:
        self.heap.release(handle)
        self.cells[handle].owners -= 1

    @precondition(lambda self: self.heap.figures().phase == "idle")
    @rule(
        number=st.integers(0, 20),
        slot=st.integers(0, SLOTS - 1),
        apart=st.integers(1, SLOTS - 1),
        steps=STEPS,
        order=PATHS,
        ends=st.booleans(),
    )
    def move_only_paths_while_marking(self, number, slot, apart, steps, order, ends):
        source, below, linked, held = (self.new_of_hosts() for _ in range(4))
        self.link_owned(linked, below)
        self.let_go(below)
        self.link_owned(source, linked)
        self.let_go(linked)
        owner, other = self.scanned_owner(number), (slot + apart) % SLOTS
        if owner is not None:
            self.new_in_memory(number, slot, is_list=False, pinned=False)
        self.begin()
        for count, path in zip(steps, order):
            self.mark_a_little(count)
            if path == "edge":
                self.link_owned(self.new_of_hosts(), linked)
                self.heap.unlink(source, linked)
                self.cells[source].entries.remove(linked)
            elif path == "root":
                self.link_owned(self.new_of_hosts(), held)
                self.let_go(held)
            elif owner is not None:
                self.new_in_memory(number, other, is_list=True, pinned=False)
                self.move(number, other, slot, pops=False)
                self.forget(number, slot)
        if ends:
            self.finish_mark()
            self.sweep(budget=2**20)

    @precondition(lambda self: self.heap.figures().phase == "marking")
    @rule()
    def finish_mark(self):
        self.heap.finish_mark()

    @precondition(lambda self: self.heap.figures().phase == "sweeping")
    @rule(budget=st.sampled_from([1, 64, 5000]))
    def sweep(self, budget):
        if not self.heap.sweep(budget):
            return
        assert self.condemned is not None
        for handle in self.condemned & set(self.cells):
            owner = self.cells[handle].owner
            if not any(o.in_a_call_while_marking for o in self.owners):
                assert not self.is_there(handle), owner
        for handle in [h for h in self.cells if not self.is_there(h)]:
            del self.cells[handle]
            self.gone.add(handle)

    @rule()
    def collect_in_the_thread(self):
        if self.heap.figures().phase == "idle":
            kept = self.reachable()
            self.heap.run_cycle_async()
            assert self.heap.wait(60)
            assert {h for h in self.cells if self.is_there(h)} == kept
            self.gone |= set(self.cells) - kept
            self.cells = {h: cell for h, cell in self.cells.items() if h in kept}
        self.heap.run_finalizers()

    # ---- figures ----

    @invariant()
    def figures_add_up(self):
        if hasattr(self, "host"):
            figures = self.heap.figures()
            assert figures.allocs - figures.frees == figures.live_cells
            assert figures.alloc_bytes - figures.free_bytes == figures.live_bytes
            assert figures.live_cells >= len(self.reachable())

    # ---- captures ----

    @rule()
    def capture(self):
        if self.heap.figures().phase == "sweeping":
            self.sweep(budget=2**20)  # which a capture would do as well
        taken = sandhost.observe.capture(self.host)
        assert len(taken) == self.heap.figures().live_cells == taken.figures.live_cells
        found = {taken.handle(place).handle: place for place in range(len(taken))}
        in_use = dict.fromkeys(taken.sites, 0)
        for group in taken.groups():
            in_use[group.site] += group.cells
        assert all(site.allocs - site.frees == count for site, count in in_use.items())
        for handle in self.reachable():
            cell, shown = self.cells[handle], taken.handle(found[handle])
            assert (shown.owners, shown.pins) == (cell.owners, cell.pins)
            assert shown.guest == (cell.owner.guest.id if cell.owner.guest else 0)
            targets = sorted(taken.handle(to).handle for to in taken.targets(found[handle]))
            assert targets == sorted(e for e in cell.entries if e in self.cells)
            self.path_is_one(taken, found[handle])

    def path_is_one(self, taken, place):
        way = path_to(taken, place)
        places = [taken.find(step.handle) for step in way.steps]
        assert places[-1] == place
        assert all(to in taken.targets(by) for by, to in pairwise(places))
        first = self.cells.get(way.steps[0].handle)
        if first is None:  # a weak one of a test, or what is garbage in the model
            return
        kept = {"pinned": first.pins, "not released": first.owners, "in a call": first.in_flight}
        if way.root in kept:
            assert kept[way.root] or way.root == "in a call"  # the model lands later than the heap
        else:
            assert way.root == "in guest memory"
            assert first.owner.scanned

    def teardown(self):
        if not hasattr(self, "host"):
            return
        if self.heap.figures().phase == "marking":
            self.finish_mark()
        if self.heap.figures().phase == "sweeping":
            self.sweep(budget=2**20)
        self.what_can_be_reached_is_there()
        for owner in self.owners[1:]:
            owner.guest.close()
        for cell_handle, cell in list(self.cells.items()):
            if cell.owner is self.owners[0] and self.is_there(cell_handle):
                for _ in range(cell.pins):
                    self.heap.unpin(cell_handle)
                for _ in range(cell.owners):
                    self.heap.release(cell_handle)
        while self.heap.figures().phase == "marking" and not self.heap.mark():
            pass
        if self.heap.figures().phase == "marking":
            self.heap.finish_mark()
        while not self.heap.sweep():
            pass
        self.heap.run_cycle_async()
        assert self.heap.wait(60)
        self.heap.run_finalizers()
        figures = self.heap.figures()
        assert (figures.live_cells, figures.live_bytes, figures.finalizers_queued) == (0, 0, 0)
        assert not any(self.heap.objects)
        self.host.close()


Histories = Machine.TestCase
Histories.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
