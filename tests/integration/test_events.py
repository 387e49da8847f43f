"""Events: what happens is told as it was, to whoever listens; and logs keep their upper bound."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from helpers import DEADLINE, WASM_PAGE, Background, failing, guest_file, run_cleanly

import sandhost
from sandhost.events import KINDS, Close, Commit, Refused, Spawn, Trap

EVERY = tuple(KINDS)


def kinds(events):
    return [event.kind for event in events]


def only(events, kind):
    found = [event for event in events if event.kind == kind]
    assert len(found) == 1, events
    return found[0]


# ---- what is told -----------------------------------------------------------------------------------------------


def test_nobody_listens_to_begin_with(host):
    host.load(guest_file("add")).call("add", 2, 3)
    assert host.events.kinds == frozenset()
    assert host.events.read() == []
    assert host.events.lost == {}


def test_a_life_is_told_from_spawn_to_close(host):
    host.events.enable()
    plugin = host.load(guest_file("no_max_memory"), name="grower")
    before_ns = time.monotonic_ns()
    guest = plugin.spawn(tenant="acme")
    guest.call("grow", 3)
    guest.call("poke", 5, 6)
    guest_id = guest.id
    reclaim = guest.close()
    after_ns = time.monotonic_ns()
    spawn, commit, reset, close = host.events.read()
    assert (spawn.kind, commit.kind, reset.kind, close.kind) == (
        "spawn",
        "commit",
        "reset",
        "close",
    )
    for event in (spawn, commit, reset, close):
        assert event[2:5] == (guest_id, "grower", "acme")
        assert before_ns <= event.ns <= after_ns
    assert isinstance(spawn, Spawn)
    assert spawn.committed_bytes == WASM_PAGE
    assert not spawn.forked
    assert 0 < spawn.took_ns < after_ns - before_ns
    assert isinstance(commit, Commit)
    assert (commit.bytes, commit.size_bytes) == (3 * WASM_PAGE, 4 * WASM_PAGE)
    assert isinstance(close, Close)
    told = (close.returned_bytes, close.kept_bytes, close.deferred_bytes)
    assert told == (reclaim.bytes, reclaim.kept_bytes, reclaim.deferred_bytes)
    assert (reset.returned_bytes, reset.kept_bytes, reset.deferred_bytes) == told
    assert (reset.policy, reset.took_ns) == (reclaim.policy, reclaim.ns)
    assert host.events.read() == []


def test_a_fork_says_so(host):
    with host.load(guest_file("stateful")).spawn() as guest:
        snapshot = guest.snapshot()
    host.events.enable("spawn")
    snapshot.spawn().close()
    assert only(host.events.read(), "spawn").forked


def test_the_id_is_the_guests(host):
    host.events.enable("spawn")
    with host.load(guest_file("add")).spawn() as guest:
        assert host.events.read()[0].guest == guest.id


def test_how_a_call_ended_is_told(host):
    host.events.enable("trap", "deadline", "cancel")
    with host.load(guest_file("unreachable"), name="u").spawn() as guest:
        with pytest.raises(sandhost.GuestTrap) as raised:
            guest.call("trap")
    trap = only(host.events.read(), "trap")
    assert isinstance(trap, Trap)
    assert trap.code == raised.value.code == "unreachable"
    plugin = host.load(guest_file("spin"))
    with plugin.spawn(limits=sandhost.Limits(deadline=DEADLINE)) as guest:
        with pytest.raises(sandhost.DeadlineExceeded):
            guest.call("spin")
    assert only(host.events.read(), "deadline").limit_ns == round(DEADLINE * 1e9)
    with plugin.spawn() as guest:
        call = Background(guest.call, "spin")
        while not guest.cancel():
            time.sleep(0.001)
        with pytest.raises(sandhost.GuestCancelled):
            call.result()
        assert only(host.events.read(), "cancel").guest == guest.id


def refusals(host):
    return [(event.what, event.whose, event.limit) for event in host.events.read()]


def test_a_refusal_says_which_limit_it_was():
    with sandhost.Host(cache=False, max_guests=2, memory_limit=24 * WASM_PAGE) as host:
        host.events.enable("refused")
        plugin = host.load(guest_file("no_max_memory"))
        with plugin.spawn(limits=sandhost.Limits(memory=2 * WASM_PAGE)) as guest:
            assert guest.call("grow", 2) == -1
            event = only(host.events.read(), "refused")
            assert isinstance(event, Refused)
            assert event.guest == guest.id
            assert (event.what, event.whose) == ("memory", "guest")
            assert (event.wanted, event.limit) == (3 * WASM_PAGE, 2 * WASM_PAGE)
        host.tenant("small", memory_limit=4 * WASM_PAGE)
        with plugin.spawn(tenant="small") as guest:
            assert guest.call("grow", 4) == -1
            assert refusals(host) == [("memory", "tenant", 4 * WASM_PAGE)]
        with plugin.spawn() as guest, plugin.spawn():
            assert guest.call("grow", 24) == -1
            assert refusals(host) == [("memory", "host", 24 * WASM_PAGE)]
            with pytest.raises(sandhost.RegionFullError):
                plugin.spawn()
            assert refusals(host) == [("regions", "host", 2)]
        with host.load(guest_file("spin"), fuel=True).spawn(
            limits=sandhost.Limits(fuel=1000)
        ) as guest:
            with pytest.raises(sandhost.OutOfFuel):
                guest.call("spin")
        assert refusals(host) == [("fuel", "guest", 1000)]
        with pytest.raises(sandhost.LimitExceeded):
            host.load(guest_file("many_tables")).spawn(limits=sandhost.Limits(table_elements=63))
        assert refusals(host) == [("table", "guest", 63)]


def test_what_upkeep_gives_back_is_told_as_its_last_guests(host):
    host.events.enable("decommit", "close")
    with host.load(guest_file("no_max_memory"), name="warm").spawn() as guest:
        guest.call("poke", 0, 1)
    close = only(host.events.read(), "close")
    assert close.kept_bytes > 0
    host.trim()
    decommit = only(host.events.read(), "decommit")
    assert decommit.bytes == close.kept_bytes
    assert (decommit.guest, decommit.plugin) == (close.guest, "warm")


def test_a_region_that_cannot_be_reset_is_told():
    with sandhost.Host(cache=False, max_guests=4, reclaim="immediate") as host:
        host.events.enable("quarantine")
        guest = host.load(guest_file("no_max_memory")).spawn()
        guest.call("poke", 0, 1)
        with failing("MADVISE"):
            guest.close()
        assert only(host.events.read(), "quarantine").bytes == WASM_PAGE


# ---- handles and the collector ----------------------------------------------------------------------------------


@pytest.fixture
def opener(host):
    host.gc.close()  # cycles are the test's

    @host.function("env", "open")
    def open_it(number: int) -> sandhost.Handle[object]:
        return object()

    @host.function("env", "read")
    def read(thing: sandhost.Handle[object]) -> int:
        return 0

    return host.load(guest_file("handles"), name="opener")


def test_handles_are_told_only_when_they_are_named(host, opener):
    host.events.enable()
    assert not {"handle_alloc", "handle_free"} & host.events.kinds
    with opener.spawn() as guest:
        guest.call("churn", 3)
        assert not {"handle_alloc", "handle_free"} & set(kinds(host.events.read()))
        host.events.enable("handle_alloc", "handle_free")
        guest.call("churn", 3)
        handles = [event for event in host.events.read() if event.kind.startswith("handle")]
    assert kinds(handles) == ["handle_alloc", "handle_free"] * 3
    for born, gone in zip(handles[::2], handles[1::2]):
        assert born.handle == gone.handle
        assert born.bytes == gone.bytes > 0
        assert born[2:5] == (guest_of(handles), "opener", None)


def guest_of(events):
    (guest,) = {event.guest for event in events}
    return guest


def test_the_handles_of_a_guest_go_with_it(host, opener):
    host.events.enable("handle_alloc", "handle_free")
    with opener.spawn(tenant="t") as guest:
        guest.call("leak", 5)
        born = host.events.read()
    gone = host.events.read()
    assert kinds(born) == ["handle_alloc"] * 5
    assert kinds(gone) == ["handle_free"] * 5
    assert {event.handle for event in born} == {event.handle for event in gone}
    assert {event.tenant for event in born + gone} == {"t"}


def test_a_refused_handle_is_told(host, opener):
    host.events.enable("refused")
    with opener.spawn(limits=sandhost.Limits(handles=3)) as guest:
        with pytest.raises(sandhost.LimitExceeded):
            guest.call("leak", 4)
    assert refusals(host) == [("handles", "guest", 3)]


def test_a_cycle_is_told_from_begin_to_end(host, opener):
    heap = host.handles
    kept = heap.new(object(), size=100)
    heap.new(object(), size=1000)
    heap.release(heap.new(object(), size=10))
    host.events.enable("cycle_begin", "mark_done", "cycle_end")
    heap.begin_cycle()
    while not heap.mark():
        pass
    heap.finish_mark()
    while not heap.sweep():
        pass
    begin, marked, end = host.events.read()
    assert kinds((begin, marked, end)) == ["cycle_begin", "mark_done", "cycle_end"]
    assert begin.cycle == marked.cycle == end.cycle
    assert (begin.live_bytes, begin.live_handles) == (1100, 2)
    assert (end.live_bytes, end.live_handles) == (1100, 2)
    assert marked.took_ns == heap.figures().marking_ns
    heap.release(kept)


# ---- reading ----------------------------------------------------------------------------------------------------


def test_kinds_are_chosen_one_by_one(host):
    plugin = host.load(guest_file("add"))
    host.events.enable("spawn")
    host.events.enable("close")
    plugin.spawn().close()
    host.events.disable("spawn")  # what was recorded stays
    plugin.spawn().close()
    assert kinds(host.events.read()) == ["spawn", "close", "close"]
    host.events.disable()
    plugin.spawn().close()
    assert host.events.read() == []
    host.events.enable()
    assert host.events.kinds == set(KINDS) - {"handle_alloc", "handle_free"}


@pytest.mark.parametrize("use", ["enable", "disable"])
def test_a_kind_that_there_is_not_is_refused(host, use):
    with pytest.raises(sandhost.ConfigError, match="no event 'birth'; choose of spawn"):
        getattr(host.events, use)("birth")
    assert host.events.kinds == frozenset()


def test_what_is_lost_is_counted_exactly(host):
    plugin = host.load(guest_file("add"))
    host.events.enable("spawn", "close")
    lives = 10_000  # one thread, and so one ring, of 8,192 records
    for _ in range(lives):
        plugin.call("add", 1, 2)
    events = host.events.read()
    lost = host.events.lost
    assert len(events) == 8192
    assert set(lost) == {"spawn", "close"}
    assert lost["spawn"] + kinds(events).count("spawn") == lives
    assert lost["close"] + kinds(events).count("close") == lives
    plugin.call("add", 1, 2)
    assert kinds(host.events.read()) == ["spawn", "close"]


def test_all_threads_are_heard_and_their_events_are_in_order(host):
    plugin = host.load(guest_file("add"))
    host.events.enable("spawn", "close")

    def live():
        for _ in range(200):
            plugin.call("add", 1, 2)

    threads = [Background(live) for _ in range(8)]
    for thread in threads:
        thread.result()
    events = host.events.read()
    assert kinds(events).count("spawn") == kinds(events).count("close") == 1600
    assert [event.ns for event in events] == sorted(event.ns for event in events)


def test_following_ends_with_the_host_and_misses_nothing():
    host = sandhost.Host(cache=False, max_guests=4)
    plugin = host.load(guest_file("add"))
    host.events.enable("spawn", "close")
    follower = Background(lambda: list(host.events.follow(poll_s=0.001)))
    for _ in range(50):
        plugin.call("add", 1, 2)
    guest = plugin.spawn()
    host.close()  # which ends it
    assert kinds(follower.result()) == ["spawn", "close"] * 51
    guest.close()


def test_who_stops_following_leaves_the_rest(host):
    plugin = host.load(guest_file("add"))
    host.events.enable("spawn", "close")
    plugin.call("add", 1, 2)
    plugin.call("add", 1, 2)
    for event in host.events.follow():
        assert event.kind == "spawn"
        break
    assert kinds(host.events.read()) == ["close", "spawn", "close"]


def test_following_may_end_after_a_while_of_silence(host):
    host.events.enable()
    assert list(host.events.follow(poll_s=0.001, timeout_s=0.01)) == []


def test_following_nothing_is_refused_at_once(host):
    with pytest.raises(sandhost.ConfigError, match="enable"):
        host.events.follow()


def test_without_memory_for_the_rings_nobody_listens(host):
    with failing("MMAP"):
        with pytest.raises(sandhost.NativeError):
            host.events.enable()
    assert host.events.kinds == frozenset()
    host.load(guest_file("add")).call("add", 1, 2)
    assert host.events.read() == []


def test_events_outlive_the_plugin_and_the_host():
    with sandhost.Host(cache=False, max_guests=4) as host:
        host.events.enable("close")
        host.load(guest_file("add"), name="gone").call("add", 1, 2)
    assert only(host.events.read(), "close").plugin == "gone"


def test_names_are_kept_of_what_is_there_and_of_some_that_went(host, monkeypatch):
    monkeypatch.setattr("sandhost.loader._MOST_GONE", 2)
    module = guest_file("add")
    first = host.load(module, name="first")
    for number in range(4):
        host.load(module, name=f"gone {number}")
    plugins, _ = host.names()
    assert list(plugins.values()) == ["first", "gone 2", "gone 3"]
    with first.spawn():
        assert [guest.plugin for guest in host.guests()] == ["first"]
    assert host.events.read() == []


# ---- logging ----------------------------------------------------------------------------------------------------


def lines(caplog):
    return [record for record in caplog.records if record.name == "sandhost.events"]


def trapping(host, times):
    with host.load(guest_file("unreachable"), name="u\nWARNING all is well").spawn() as guest:
        for _ in range(times):
            with pytest.raises(sandhost.GuestTrap):
                guest.call("trap")


def test_chosen_kinds_are_logged_at_their_levels(host, caplog):
    caplog.set_level(logging.DEBUG, "sandhost.events")
    host.events.log({"trap": "warning", "close": "debug"})
    trapping(host, 1)
    host.events.log({})  # ends it, and logs what is left
    trap, close = lines(caplog)
    assert (trap.levelname, close.levelname) == ("WARNING", "DEBUG")
    assert trap.getMessage().startswith("trap ns=")
    assert trap.code == "unreachable"
    assert "\n" not in trap.getMessage()
    trapping(host, 1)
    assert len(lines(caplog)) == 2
    assert host.events.read() == []  # nobody asked for them here


def test_logging_and_reading_do_not_take_from_each_other(host, caplog):
    host.events.enable("spawn", "trap")
    host.events.log({"trap": "warning"})
    trapping(host, 3)
    host.events.log({})
    assert [record.getMessage().split()[0] for record in lines(caplog)] == ["trap"] * 3
    assert kinds(host.events.read()) == ["spawn", "trap", "trap", "trap"]


def test_a_guest_cannot_flood_the_log(host, caplog):
    host.events.log({"trap": "warning"}, per_second=2)
    began = time.monotonic()
    trapping(host, 500)
    seconds = int(time.monotonic() - began) + 2  # that it may have touched
    suppressed = host.events.suppressed
    host.events.log({})
    told = [record for record in lines(caplog) if record.getMessage().startswith("trap ")]
    left_out = [record for record in lines(caplog) if record.getMessage().startswith("events not")]
    assert 2 <= len(told) <= 2 * seconds
    assert all(record.kind == "trap" for record in left_out)
    assert len(told) + sum(record.count for record in left_out) == 500
    assert suppressed.get("trap", 0) <= 500 - len(told)


def test_what_was_lost_is_logged(host, caplog):
    plugin = host.load(guest_file("add"))
    host.events.log({"spawn": "debug"})
    with host.events._lock:  # the thread cannot look
        for _ in range(9000):
            plugin.call("add", 1, 2)
    host.events.log({})
    lost = [record for record in lines(caplog) if record.getMessage().startswith("events lost")]
    assert sum(record.count for record in lost) == host.events.lost["spawn"] > 0


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ({"birth": "info"}, {}, "no event 'birth'"),
        ({"trap": "loud"}, {}, "the level of trap is 'loud'"),
        ({"trap": "info"}, {"per_second": 0}, "per_second is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(host, levels, options, message):
    with pytest.raises(sandhost.ConfigError, match=message):
        host.events.log(levels, **options)


def test_a_handler_that_raises_does_not_end_logging(host, monkeypatch):
    raised, told = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.append(arguments))

    def refuse(record):
        if not raised:
            raise OSError("the disk is full")
        told.set()
        return True

    logger = logging.getLogger("sandhost.events")
    logger.addFilter(refuse)
    try:
        host.events.log({"trap": "warning"})
        trapping(host, 1)
        while not raised:
            time.sleep(0.01)
        trapping(host, 1)
        assert told.wait(10)
    finally:
        logger.removeFilter(refuse)
    assert raised[0].exc_type is OSError


def log_threads():
    return [thread for thread in threading.enumerate() if thread.name == "sandhost-events"]


def test_the_thread_is_there_only_while_it_logs(host):
    host.events.enable()
    assert log_threads() == []
    host.events.log({"trap": "info"})
    host.events.log({"trap": "debug"})
    assert len(log_threads()) == 1
    host.events.log({})
    assert log_threads() == []


def test_closing_the_host_logs_what_is_left_and_ends_the_thread(caplog):
    caplog.set_level(logging.DEBUG, "sandhost.events")
    with sandhost.Host(cache=False, max_guests=4) as host:
        host.events.log({"close": "info"})
        guest = host.load(guest_file("add")).spawn()
    assert log_threads() == []
    assert [record.getMessage().split()[0] for record in lines(caplog)] == ["close"]
    guest.close()


def test_a_host_that_is_left_open_logs_until_the_process_ends():
    out = run_cleanly("""
        import logging
        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
        host = sandhost.Host(cache=False, max_guests=4)
        host.events.log({"trap": "error"})
        try:
            host.load(guest_file("unreachable")).call("trap")
        except sandhost.GuestTrap:
            pass
    """)
    assert out.startswith("ERROR trap ")


def test_the_child_of_a_fork_has_no_events():
    run_cleanly("""
        import os
        host = sandhost.Host(cache=False, max_guests=4)
        plugin = host.load(guest_file("add"))
        host.events.enable()
        host.events.log({"spawn": "info"})
        plugin.call("add", 1, 2)
        child = os.fork()
        if not child:
            status = 1
            try:
                assert host.events.read() == []
                assert list(host.events.follow()) == []
                try:
                    host.events.enable("trap")
                except sandhost.SandhostError as error:
                    assert "fork" in str(error)
                    host.close()
                    status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert [event.kind for event in host.events.read()] == ["spawn", "close"]
        host.close()
    """)


def test_importing_sandhost_does_not_import_events():
    run_cleanly("""
        assert "sandhost.events" not in sys.modules
        with sandhost.Host(cache=False, max_guests=4) as host:
            host.load(guest_file("add")).call("add", 1, 2)
        assert "sandhost.events" not in sys.modules
    """)
