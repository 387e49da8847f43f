"""Handles: what guests do with them, what they try, and what is left of them."""

from __future__ import annotations

import os
import pickle
import threading
import weakref

import pytest
from helpers import collected, guest_file

import sandhost


class Table:
    def __init__(self, number: int) -> None:
        self.number = number


class Image:
    number = 0


@pytest.fixture(autouse=True)
def _by_hand(host):
    """Cycles and finalizers are run by the tests: the collector would come between. test_gc.py has it."""
    host.gc.close()


@pytest.fixture
def opened() -> list[weakref.ref[Table]]:
    return []


@pytest.fixture
def tables(host, opened):
    """A host whose guests open tables, and an image for 0."""

    @host.function("env", "open")
    def open_table(number: int) -> sandhost.Handle[Table]:
        table = Table(number)
        opened.append(weakref.ref(table))
        return table

    @host.function("env", "read")
    def read(table: sandhost.Handle[Table]) -> int:
        assert isinstance(table, Table)
        return table.number

    return host


@pytest.fixture
def plugin(tables):
    return tables.load(guest_file("handles"))


def cycle(host) -> sandhost.HeapFigures:
    heap = host.handles
    heap.begin_cycle()
    while not heap.mark(1000):
        pass
    heap.finish_mark()
    while not heap.sweep(10):
        pass
    heap.run_finalizers()
    return heap.figures()


def alive(opened) -> list[int]:
    collected()
    return [table.number for ref in opened if (table := ref()) is not None]


def test_a_handle_finds_the_object_it_was_given_for(plugin, host):
    with plugin.spawn() as guest:
        one, two = guest.call("open", 1), guest.call("open", 2)
        assert one != two
        assert one > 0
        assert [guest.call("read", h) for h in (one, two, one)] == [1, 2, 1]
        assert host.handles.get(one).number == 1
        assert guest.call("size", one) == host.handles.info(one).size > 0
        assert guest.call("kind", one) == host.handles.kind(Table)


def test_the_end_of_a_guest_releases_all_it_holds(plugin, host, opened):
    with plugin.spawn() as guest, plugin.spawn() as other:
        guest.call("leak", 100)
        kept = other.call("open", 7)
        assert host.handles.figures().live_cells == 101
        guest.close()
        assert host.handles.figures().live_cells == 1
        assert host.handles.run_finalizers() == 100
        assert alive(opened) == [7]
        assert other.call("read", kept) == 7


@pytest.mark.parametrize(
    "use", ["read", "retain", "release", "weak", "kind", "size", "length", "list_pop"]
)
@pytest.mark.parametrize("what", ["released", "foreign", "forged", "zero", "negative"])
def test_what_is_no_handle_of_the_guest_is_refused(plugin, host, use, what):
    with plugin.spawn() as guest, plugin.spawn() as other:
        mine, released = guest.call("open", 1), guest.call("open", 2)
        guest.call("release", released)
        handle = {
            "released": released,
            "foreign": other.call("open", 3),
            "forged": mine + 2**32,
            "zero": 0,
            "negative": -1,
        }[what]
        with pytest.raises(sandhost.InvalidHandle, match="handle 0x|handle 0 ") as caught:
            guest.call(use, handle)
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), sandhost.InvalidHandle)
        assert guest.call("read", mine) == 1, "the guest goes on"
        assert host.handles.figures().live_cells == 2


def test_a_handle_of_another_kind_is_refused(plugin, host):
    with plugin.spawn() as guest:
        for handle in (host.handles.new(Image(), guest=guest), guest.call("list_new")):
            with pytest.raises(sandhost.InvalidHandle, match="another kind"):
                guest.call("read", handle)
        with pytest.raises(sandhost.InvalidHandle, match="another kind"):
            guest.call("list_push", guest.call("open", 1), 0)


def test_a_second_release_takes_nothing_from_who_came_after(plugin, host):
    with plugin.spawn() as guest:
        handle = guest.call("open", 1)
        assert guest.call("release", handle) == 0
        for number in range(3000):  # until its place is used again
            later = guest.call("open", number)
            assert later != handle
            with pytest.raises(sandhost.InvalidHandle):
                guest.call("release", handle)
            assert guest.call("read", later) == number
            guest.call("release", later)


def test_retained_handles_take_as_many_releases(plugin):
    with plugin.spawn() as guest:
        handle = guest.call("open", 5)
        assert guest.call("retain", handle) == handle
        assert guest.call("release", handle) == 1
        assert guest.call("read", handle) == 5
        assert guest.call("release", handle) == 0
        with pytest.raises(sandhost.InvalidHandle):
            guest.call("read", handle)


def test_churn_leaves_nothing(plugin, host, opened):
    with plugin.spawn() as guest:
        guest.call("churn", 5000)
        figures = host.handles.figures()
        assert (figures.live_cells, figures.live_bytes) == (0, 0)
        assert figures.allocs == figures.frees == 5000
        host.handles.run_finalizers()
        assert alive(opened) == []


def test_containers_hold_what_guests_put_into_them(plugin, host):
    with plugin.spawn() as guest:
        call = guest.call
        handles = [call("open", n) for n in range(5)]
        items, record, index = call("list_new"), call("record_new", 2), call("map_new")
        for handle in handles:
            call("list_push", items, handle)
            call("map_put", index, 1000 - handle, handle)
            call("release", handle)
        call("list_set", record, 1, items)
        call("release", items)
        cycle(host)
        assert call("length", items) == call("length", index) == 5
        assert [call("read", call("list_get", items, k)) for k in range(5)] == list(range(5))
        assert call("read", call("map_get", index, 1000 - handles[3])) == 3
        assert call("map_get", index, 77) == 0
        assert call("list_get", record, 0) == 0
        assert call("list_pop", items) == handles[4]
        with pytest.raises(sandhost.InvalidHandle, match="entry 4 of a list or record of 4"):
            call("list_get", items, 4)


def test_a_ring_of_lists_is_collected_once_nobody_holds_it(plugin, host):
    with plugin.spawn() as guest:
        one, two = guest.call("list_new"), guest.call("list_new")
        guest.call("list_push", one, two)
        guest.call("list_push", two, one)
        guest.call("release", one)
        assert cycle(host).live_cells == 2
        guest.call("release", two)
        assert host.handles.figures().live_cells == 2, "counting alone does not find it"
        assert cycle(host).live_cells == 0


def test_a_weak_handle_gives_its_object_while_that_lives(plugin, host):
    with plugin.spawn() as guest:
        handle = guest.call("open", 1)
        weak = guest.call("weak", handle)
        assert guest.call("retain", weak) == handle
        guest.call("release", handle)
        guest.call("release", handle)
        assert guest.call("retain", weak) == 0


# ---- guests that do not release ----


def test_what_a_guest_keeps_in_memory_or_a_global_stays(tables, opened):
    with tables.load(guest_file("hoarder")).spawn() as guest:
        for at, number in ((8, 1), (70_000, 2), (262_136, 3)):
            guest.call("open_at", at, number)
        guest.call("open_in_global", 4)
        guest.call("churn", 1000)
        assert tables.handles.figures().live_cells == 1004
        assert cycle(tables).live_cells == 4
        assert alive(opened) == [1, 2, 3, 4]
        assert [guest.call("read_at", at) for at in (8, 70_000, 262_136)] == [1, 2, 3]
        assert guest.call("read_global") == 4
        guest.call("forget_at", 70_000)
        guest.call("open_in_global", 5)
        cycle(tables)
        assert alive(opened) == [1, 3, 5]


def test_a_ring_is_collected_when_it_is_forgotten(tables):
    with tables.load(guest_file("hoarder")).spawn() as guest:
        guest.call("ring_at", 16)
        assert cycle(tables).live_cells == 2
        guest.call("forget_at", 16)
        assert cycle(tables).live_cells == 0


def test_a_handle_in_another_guests_memory_keeps_nothing(tables, opened):
    plugin = tables.load(guest_file("hoarder"))
    with plugin.spawn() as one, plugin.spawn() as two:
        one.call("open_at", 8, 1)
        two.call("open_at", 16, 2)
        two.memory.write(8, one.memory.read(8, 8))
        one.call("forget_at", 8)
        cycle(tables)
        assert alive(opened) == [2]
        with pytest.raises(sandhost.InvalidHandle):
            two.call("read_at", 8)


def test_a_fork_has_none_of_the_handles_in_its_memory(tables):
    with tables.load(guest_file("hoarder")).spawn() as guest:
        guest.call("open_at", 8, 1)
        with guest.snapshot().spawn() as twin:
            with pytest.raises(sandhost.InvalidHandle):
                twin.call("read_at", 8)
            assert guest.call("read_at", 8) == 1


def test_handles_of_a_call_in_progress_stay_while_another_thread_collects(tables, opened):
    reached, go_on = threading.Event(), threading.Event()

    @tables.function("env", "read")
    def read(table: sandhost.Handle[Table]) -> int:
        reached.set()
        assert go_on.wait(60)
        return table.number

    with tables.load(guest_file("hoarder")).spawn() as guest:
        caller = threading.Thread(target=guest.call, args=("churn", 1))
        caller.start()
        assert reached.wait(60)
        assert cycle(tables).live_cells == 1
        go_on.set()
        caller.join()
        assert cycle(tables).live_cells == 0


# ---- the host's side ----


def test_the_host_gives_handles_that_guests_may_use(plugin, host):
    with plugin.spawn() as guest, plugin.spawn() as other:
        handle = host.handles.new(Table(9), guest=guest, label="a table")
        assert guest.call("read", handle) == 9
        info = host.handles.info(handle)
        assert (info.guest, info.label, info.owners, info.pins) == (guest.id, "a table", 1, 0)
        with pytest.raises(sandhost.InvalidHandle, match="another guest"):
            other.call("read", handle)
    with pytest.raises(sandhost.InvalidHandle):
        host.handles.get(handle)
    with pytest.raises(sandhost.GuestClosed):
        host.handles.new(Table(1), guest=guest)


def test_pins_and_links_keep_objects(host):
    heap = host.handles
    parent, child = heap.new(Table(1)), heap.new(Table(2))
    heap.link(parent, child)
    heap.pin(parent)
    heap.release(parent)
    heap.release(child)
    assert cycle(host).live_cells == 2
    heap.unlink(parent, child)
    with pytest.raises(sandhost.ConfigError):
        heap.unlink(parent, child)
    assert cycle(host).live_cells == 1
    heap.unpin(parent)
    with pytest.raises(sandhost.InvalidHandle):
        heap.unpin(parent)
    assert cycle(host).live_cells == 0


def test_classes_say_size_references_and_finalizer(host):
    heap, gone = host.handles, []
    children = {}
    heap.kind(
        Table,
        size=lambda table: 1000 + table.number,
        refs=lambda table: children.get(table.number, ()),
        finalize=lambda table: gone.append(table.number),
    )
    child = heap.new(Table(1))
    children[2] = [child]
    parent = heap.new(Table(2))
    heap.release(child)
    assert cycle(host).live_bytes == 2003
    heap.release(parent)
    assert cycle(host).live_bytes == 0
    assert sorted(gone) == [1, 2]
    assert heap.run_finalizers() == 0, "once"
    with pytest.raises(sandhost.ConfigError):
        heap.kind(Table, size=1)


@pytest.mark.parametrize(
    ("thing", "size"), [(b"x" * 5000, 5000), (bytearray(77), 77), (memoryview(bytes(80)), 80)]
)
def test_a_buffer_counts_as_large_as_it_is(host, thing, size):
    handle = host.handles.new(thing)
    assert host.handles.info(handle).size == size
    host.handles.release(handle)
    host.handles.run_finalizers()


def test_a_finalizer_that_raises_does_not_stop_the_next(host):
    heap, gone = host.handles, []
    for number in range(3):
        finalize = gone.append if number % 2 == 0 else lambda thing: 1 / 0
        heap.release(heap.new(number, finalize=finalize))
    assert heap.run_finalizers() == 3
    assert sorted(gone) == [0, 2]


def test_no_finalizer_runs_in_a_guests_call(host):
    heap, gone = host.handles, []

    @host.function("env", "f")
    def f() -> None:
        heap.release(heap.new(1, finalize=gone.append))
        assert heap.run_finalizers() == 0

    with host.load(
        b'(module (import "env" "f" (func $f)) (func (export "go") (call $f)))'
    ).spawn() as guest:
        guest.call("go")
        assert gone == []
        assert heap.run_finalizers() == 1
        assert gone == [1]


# ---- limits ----


def test_limits_of_guest_tenant_and_host(tables):
    plugin = tables.load(guest_file("handles"))
    tables.tenant("small", handles=10)
    limits = sandhost.Limits(handles=7)
    with plugin.spawn(limits=limits, tenant="small") as one, plugin.spawn(tenant="small") as two:
        with pytest.raises(sandhost.LimitExceeded, match="the guest's limit of 7 handles"):
            one.call("leak", 8)
        with pytest.raises(sandhost.LimitExceeded, match="its tenant's limit of 10 handles"):
            two.call("leak", 8)
    with sandhost.Host(cache=False, handles=2) as host:
        host.handles.new(1)
        host.handles.new(2)
        with pytest.raises(sandhost.LimitExceeded, match="the host's limit of 2 handles"):
            host.handles.new(3)


def test_the_memory_behind_handles_is_limited(plugin, host):
    with plugin.spawn(limits=sandhost.Limits(handle_memory=1000)) as guest:
        with pytest.raises(sandhost.OutOfMemory, match="the guest's limit is 1000"):
            host.handles.new(b"x" * 1001, guest=guest)
        items = guest.call("list_new")
        with pytest.raises(sandhost.OutOfMemory, match="the guest's limit is 1000"):
            while True:
                guest.call("list_push", items, 0)


@pytest.mark.parametrize("wrong", [{"handles": -1}, {"handles": "7"}, {"handle_memory": "x"}])
def test_limits_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(sandhost.ConfigError):
        sandhost.Limits(**wrong)


# ---- typing ----


def test_a_result_that_is_no_such_object_is_refused(host):
    @host.function("env", "open")
    def open_table(number: int) -> sandhost.Handle[Table]:
        return number  # type: ignore[return-value]

    host.function("env", "read", "(i64) -> i32")(lambda handle: 0)
    with host.load(guest_file("handles")).spawn() as guest:
        with pytest.raises(sandhost.HostCallError, match="returned 3"):
            guest.call("open", 3)
        assert host.handles.figures().live_cells == 0


def test_handles_are_i64(host):
    def f(table: sandhost.Handle[Table]) -> None: ...

    host.function("env", "f")(f)
    with pytest.raises(sandhost.ModuleError, match=r"\(Handle\[Table\]\)"):
        host.load(b'(module (import "env" "f" (func (param i32))))')


def test_an_unknown_import_of_the_handle_module_is_missing(host):
    for wat in (
        b'(module (import "sandhost" "retain" (func (param i32))))',
        b'(module (import "sandhost" "no_such" (func)))',
    ):
        with pytest.raises(sandhost.ModuleError, match="does not define"):
            host.load(wat)


# ---- the collector ----


def test_cycles_run_in_a_thread_of_their_own(plugin, host):
    heap = host.handles
    with plugin.spawn() as guest:
        items = guest.call("list_new")
        guest.call("list_push", items, items)
        guest.call("release", items)
        heap.run_cycle_async()
        assert heap.wait(60)
        figures = heap.figures()
        assert (figures.live_cells, figures.cycles, figures.phase) == (0, 1, "idle")


def test_one_cycle_at_a_time(host):
    heap = host.handles
    heap.begin_cycle()
    assert not heap.run_cycle_async()
    with pytest.raises(sandhost.SandhostError, match="under way"):
        heap.begin_cycle()
    assert heap.mark()
    heap.finish_mark()
    assert heap.figures().phase == "sweeping"
    assert heap.sweep()
    with pytest.raises(sandhost.SandhostError, match="not over"):
        heap.finish_mark()


def test_allocation_past_the_trigger_asks_for_one_cycle(plugin, host):
    heap, asked = host.handles, []
    heap.on_trigger = lambda: asked.append(heap.figures().live_bytes)
    heap.set_goal(2000, 1000, 0.0)
    with plugin.spawn() as guest:
        guest.call("leak", 100)
        assert heap.wants_cycle
        assert len(asked) == 1
        assert asked[0] >= 1000
        cycle(host)
        assert not heap.wants_cycle
        items = guest.call("list_new")
        assert len(asked) == 2, "from an import as well"
        assert items


def test_allocating_guests_help_to_mark(plugin, host):
    heap = host.handles
    with plugin.spawn() as guest:
        guest.call("leak", 20_000)
        heap.set_goal(2**40, 2**40, 1000.0)
        heap.begin_cycle()
        guest.call("leak", 200)
        assert heap.figures().assist_ns > 0
        while not heap.mark():
            pass
        heap.finish_mark()
        while not heap.sweep():
            pass


def test_a_guest_in_c_keeps_objects_on_the_hosts_side(tables, opened):
    with tables.load(guest_file("catalog")).spawn() as guest:
        guest.call("_initialize")
        for key in (1, 2**40):
            for number in range(10):
                guest.call("add", key, number + key % 7)
        assert guest.call("count", 2**40) == 10
        assert guest.call("total", 1) == sum(range(1, 11))
        guest.call("drop", 1)
        assert cycle(tables).live_cells == 12, "the map, a list and what is in it"
        assert len(alive(opened)) == 10
        assert guest.call("count", 1) == 0


def test_a_forked_child_has_no_handles(host):
    heap = host.handles
    handle = heap.new(1)
    child = os.fork()
    if child == 0:
        try:
            heap.get(handle)
        except sandhost.SandhostError:
            os._exit(0 if heap.figures().live_cells == 0 else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert heap.get(handle) == 1
    heap.release(handle)
    heap.run_finalizers()
