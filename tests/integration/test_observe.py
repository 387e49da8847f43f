"""Captures: all handles and guests of one instant, and what is counted for ever."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter

import pytest
from helpers import Background, guest_file, wait_until

import sandhost
from sandhost.observe import capture, path_to
from sandhost.observe.pprof import decode


class Table:
    """What guests hold."""


@pytest.fixture
def tables(host):
    """A host whose guests open tables."""

    @host.function("env", "open")
    def open_table(number: int) -> sandhost.Handle[Table]:
        return Table()

    @host.function("env", "read")
    def read(table: sandhost.Handle[Table]) -> int:
        return 0

    host.handles.kind(Table, size=100)
    return host


@pytest.fixture
def plugin(tables):
    return tables.load(guest_file("handles"), name="shop")


def counters(taken) -> dict[tuple[str | None, str | None, str, str], tuple[int, int]]:
    return {(s.tenant, s.plugin, s.kind, s.label): (s.allocs, s.frees) for s in taken.sites}


def adds_up(taken) -> None:
    """What is in use is what the counters of the same instant say, at each site and in all."""
    cells, space = Counter(), Counter()
    for group in taken.groups():
        cells[group.site] += group.cells
        space[group.site] += group.bytes
    for site in taken.sites:
        assert site.allocs - site.frees == cells[site]
        assert site.alloc_bytes - site.free_bytes == space[site]
    assert len(taken) == sum(cells.values()) == taken.figures.live_cells
    assert sum(space.values()) == taken.figures.live_bytes


def test_a_host_without_handles_is_captured(host):
    taken = capture(host, gc=True)
    assert len(taken) == 0
    assert taken.guests == []
    assert list(taken.groups()) == []
    assert taken.sites == ()
    assert taken.ages() == []
    assert host.handles_and_gc is None, "nothing was made for it"
    assert decode_of(taken).samples == ()


def decode_of(taken):
    from sandhost.observe.pprof import encode

    return decode(encode(taken.profile()))


def test_handles_and_guests_are_told_by_tenant_plugin_kind_and_label(plugin, host):
    with plugin.spawn(tenant="acme") as guest, plugin.spawn(tenant="other") as other:
        guest.call("leak", 7)
        listed = guest.call("list_new")
        guest.call("list_push", listed, guest.call("open", 1))
        other.call("leak", 3)
        mine = host.handles.new(object(), label="cache", size=9)
        taken = capture(host)
        adds_up(taken)
        assert counters(taken) == {
            ("acme", "shop", "Table", ""): (8, 0),
            ("acme", "shop", "list", ""): (1, 0),
            ("other", "shop", "Table", ""): (3, 0),
            (None, None, "object", "cache"): (1, 0),
        }
        rows = {row.id: row for row in taken.guests}
        assert {(r.tenant, r.plugin) for r in rows.values()} == {
            ("acme", "shop"),
            ("other", "shop"),
        }
        assert (rows[guest.id].handles, rows[other.id].handles) == (9, 3)
        assert rows[other.id].handle_bytes == 300
        shown = taken.handle(taken.find(mine))
        assert (shown.kind, shown.label, shown.size, shown.guest) == ("object", "cache", 9, 0)
        with pytest.raises(sandhost.InvalidHandle):
            taken.find(mine + 1)
        with pytest.raises(sandhost.ConfigError):
            taken.handle(len(taken))
        host.handles.release(mine)


def test_allocations_only_grow_and_what_is_in_use_falls_after_a_cycle(plugin, host):
    with plugin.spawn(tenant="acme") as guest:
        guest.call("churn", 50)
        circle = guest.call("list_new")
        guest.call("list_push", circle, circle)
        guest.call("release", circle)
        before = capture(host)
        assert counters(before)["acme", "shop", "list", ""] == (1, 0)
        after = capture(host, gc=True)
        assert after.cycle > before.cycle
        assert counters(after)["acme", "shop", "list", ""] == (1, 1)
        assert counters(after)["acme", "shop", "Table", ""] == (50, 50)
        adds_up(before), adds_up(after)
    gone = capture(host)
    assert gone.guests == []
    assert counters(gone) == counters(after), "of guests that are gone as well"


def test_the_way_from_a_root_is_found(plugin, host):
    heap = host.handles
    registry, entry = heap.new(object(), label="registry"), heap.new(Table())
    heap.link(registry, entry)
    heap.pin(registry)
    heap.release(registry), heap.release(entry)
    taken = capture(host, gc=True)
    way = path_to(taken, taken.find(entry))
    assert way.root == "pinned"
    assert [step.handle for step in way.steps] == [registry, entry]
    assert str(way) == (f"pinned, of the host: object [registry] {registry:#x} > Table {entry:#x}")
    (group,) = [g for g in taken.groups() if g.site.kind == "Table"]
    assert group.path == ("pinned", "object [registry]")
    heap.unpin(registry)
    assert len(capture(host, gc=True)) == 0


def test_a_long_way_is_cut_in_its_middle(host):
    heap = host.handles
    chain = [heap.new(object(), size=1) for _ in range(1000)]
    for one, next_one in itertools.pairwise(chain):
        heap.link(one, next_one)
        heap.release(next_one)
    taken = capture(host)
    way = path_to(taken, taken.find(chain[-1]), most=6)
    assert way.skipped == 994
    assert [step.handle for step in way.steps] == chain[:3] + chain[-3:]
    assert "… 994 more …" in str(way)
    assert max(len(group.path) for group in taken.groups()) == 2, "alike steps are one"
    heap.release(chain[0])


def test_what_only_guest_memory_holds_is_said_to_be_there(tables):
    plugin = tables.load(guest_file("hoarder"), name="hoarder")
    with plugin.spawn() as guest:
        guest.call("open_at", 64, 1)
        guest.call("churn", 100)
        guest.call("list_at", 72)
        guest.call("open_at", 80, 1)
        guest.call("push_at", 72, 80)
        guest.call("forget_at", 80)
        taken = capture(tables, gc=True)
        adds_up(taken)
        found = {(g.site.kind, g.path): g.cells for g in taken.groups()}
        assert found == {
            ("Table", ("in guest memory",)): 1,
            ("list", ("in guest memory",)): 1,
            ("Table", ("in guest memory", "list")): 1,
        }


def test_an_age_histogram_finds_who_holds_for_long(plugin, host):
    """Of the article: 4 KB held for 30 seconds by each connection, while all else lives for ms. Here 0.3 s."""
    with plugin.spawn(tenant="long") as long, plugin.spawn(tenant="short") as short:
        held = [host.handles.new(b"", guest=long, size=4096) for _ in range(20)]
        begun = time.monotonic()
        while time.monotonic() - begun < 0.3:
            short.call("churn", 20)
        short.call("leak", 20)
        taken = capture(host)
        old = [
            group
            for group in taken.groups()
            if group.age_ns[1] >= 0.3e9 and group.site.tenant is not None
        ]
        assert {group.site.tenant for group in old} == {"long"}
        assert sum(group.cells for group in old) == 20
        (bucket,) = taken.ages(tenant="long")
        assert bucket.from_ns <= 0.4e9
        assert bucket.below_ns >= 0.3e9
        assert (bucket.cells, bucket.bytes) == (20, 20 * 4096)
        ages = [taken.handle(taken.find(handle)).age_ns for handle in held]
        assert min(ages) >= 0.28e9
        assert sum(b.cells for b in taken.ages(tenant="short") if b.from_ns >= 0.25e9) == 0
        assert taken.ages(kind="nothing") == []


def test_a_capture_is_of_one_instant_while_guests_go_on(plugin, host):
    """Each thread moves tables between its two lists, and spawns and closes others in between."""
    over = threading.Event()

    def work(tenant: str) -> int:
        turns = 0
        while not over.is_set():
            with plugin.spawn(tenant=tenant) as guest:
                one, other = guest.call("list_new"), guest.call("list_new")
                for number in range(20):
                    guest.call("list_push", one, guest.call("open", number))
                for _ in range(20):
                    guest.call("list_push", other, guest.call("list_pop", one))
            turns += 1
        return turns

    threads = [Background(work, tenant) for tenant in ("a", "b")]
    try:
        for _ in range(50):
            taken = capture(host)
            adds_up(taken)
            there = {row.id for row in taken.guests}
            assert {taken.handle(k).guest for k in range(len(taken))} <= there | _ending(
                taken, there
            )
            handles = sum(row.handles for row in taken.guests)
            assert handles <= len(taken)
    finally:
        over.set()
    assert all(thread.result() > 0 for thread in threads)
    adds_up(capture(host))


def _ending(taken, there: set[int]) -> set[int]:
    """Guests that were on their way out: they have handles left, and no row."""
    owners = {taken.handle(k).guest for k in range(len(taken))} - there
    assert len(owners) <= 2
    return owners


def test_names_of_tenants_plugins_and_labels_stay_bounded_and_harmless(tables):
    evil = "\x1b[31m\n\x00\u202e" + "x" * 500
    plugin = tables.load(guest_file("handles"), name=evil)
    with plugin.spawn(tenant=evil) as guest:
        guest.call("leak", 1)
        for number in range(5000):
            tables.handles.release(tables.handles.new(None, label=f"{evil}{number}", size=1))
        taken = capture(tables)
        adds_up(taken)
        assert len(taken.sites) <= 4096
        assert sum(site.allocs for site in taken.sites) == 5001
        for site in taken.sites:
            for name in (site.tenant or "", site.plugin or "", site.label):
                assert name.isprintable()
                assert len(name) < 200
        assert all(name.isprintable() for s in decode_of(taken).samples for name in s.stack)


def test_a_heap_keeps_so_many_labels_and_counts_the_rest_as_others(host, monkeypatch):
    monkeypatch.setattr("sandhost.heap_labels._MOST", 4)
    heap = host.handles
    handles = [heap.new(None, label=label, size=1) for label in ("a", "b", "c", "d", "a", "others")]
    named = [heap.info(handle).label for handle in handles]
    assert named == ["a", "b", "others", "others", "a", "others"]
    counts = {site.label: site.allocs for site in capture(host).sites}
    assert counts == {"a": 2, "b": 1, "others": 3}
    for handle in handles:
        heap.release(handle)


def test_a_plugin_is_known_by_the_end_of_a_long_path(tables):
    plugin = tables.load(guest_file("handles"), name=f"/srv/{'deep/' * 15}shop.wasm")
    with plugin.spawn() as guest:
        guest.call("leak", 1)
        (site,) = capture(tables).sites
        assert site.plugin is not None
        assert site.plugin.startswith("…")
        assert site.plugin.endswith("/deep/shop.wasm")


def test_a_capture_is_written_for_pprof_and_for_speedscope(plugin, host, tmp_path):
    with plugin.spawn(tenant="acme") as guest:
        guest.call("leak", 5)
        taken = capture(host)
        taken.write(tmp_path / "now.pb.gz")
        profile = decode((tmp_path / "now.pb.gz").read_bytes())
        assert profile == taken.profile()
        assert [value.kind for value in profile.types] == [
            "alloc_objects",
            "alloc_space",
            "inuse_objects",
            "inuse_space",
        ]
        assert {s.stack for s in profile.samples} == {
            ("tenant acme", "plugin shop", "Table"),
            ("tenant acme", "plugin shop", "not released", "Table"),
        }
        assert [sum(column) for column in zip(*(s.values for s in profile.samples))] == [
            5,
            500,
            5,
            500,
        ]
        tags = dict(profile.samples[-1].tags)
        assert tags.pop("age") < 60e9
        assert tags == {
            "tenant": "acme",
            "plugin": "shop",
            "node": "0",
            "kind": "Table",
            "held": "not released",
        }
        taken.write(tmp_path / "now.json")
        assert b"speedscope" in (tmp_path / "now.json").read_bytes()


def test_a_capture_outlives_its_host(plugin, host):
    with plugin.spawn() as guest:
        guest.call("leak", 5)
        taken = capture(host)
    host.close()
    assert taken.handle(0).kind == "Table"
    assert path_to(taken, 4).root == "not released"


def test_a_forked_child_is_refused(plugin, host):
    with plugin.spawn() as guest:
        guest.call("leak", 5)
        pid = os.fork()
        if pid == 0:
            try:
                capture(host)
            except sandhost.SandhostError as error:
                os._exit(0 if "forked" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(capture(host)) == 5


def test_captures_of_several_threads_come_one_after_the_other(plugin, host):
    with plugin.spawn() as guest:
        guest.call("leak", 100)
        threads = [Background(lambda: [len(capture(host)) for _ in range(20)]) for _ in range(3)]
        assert [thread.result() for thread in threads] == [[100] * 20] * 3


def test_a_guest_that_ends_while_it_is_captured_is_there_or_not_but_never_half(plugin, host):
    over = threading.Event()

    def spawn_and_close() -> int:
        count = 0
        while not over.is_set():
            guests = [plugin.spawn(tenant="t") for _ in range(20)]
            for guest in guests:
                guest.call("leak", 3)
            for guest in guests:
                guest.close()
            count += 1
        return count

    thread = Background(spawn_and_close)
    try:
        for _ in range(200):
            taken = capture(host)
            ids = [row.id for row in taken.guests]
            assert ids == sorted(set(ids))
            assert all(row.handles in (0, 1, 2, 3) for row in taken.guests)
    finally:
        over.set()
    assert thread.result() > 0
    wait_until(lambda: capture(host).guests == [])
