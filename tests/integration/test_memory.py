"""A guest's memory from Python: bounds, signs, views that pin, and never a byte after the end."""

from __future__ import annotations

import array
import gc

import numpy
import pytest
from helpers import WASM_PAGE, Background, collected, guest_file, wait_until

import sandhost


@pytest.fixture
def plugin(host):
    return host.load(guest_file("no_max_memory"))


@pytest.fixture
def guest(plugin):
    with plugin.spawn() as guest:
        yield guest


def test_bytes_written_are_read_and_seen_by_the_guest(guest):
    guest.memory.write(100, b"hello")
    assert guest.memory.read(100, 5) == b"hello"
    assert guest.call("peek", 101) == ord("e")
    guest.call("poke", 101, ord("a"))
    assert guest.memory.read(100, 5) == b"hallo"


@pytest.mark.parametrize(
    "buffer",
    [bytearray(b"abcd"), memoryview(b"abcd"), array.array("i", [1]), numpy.ones(1, "<i4")],
)
def test_any_contiguous_buffer_can_be_written(guest, buffer):
    guest.memory.write(8, buffer)
    assert guest.memory.read(8, 4) == memoryview(buffer).tobytes()


@pytest.mark.parametrize("wrong", ["text", 7, None, memoryview(b"abcdef")[::2]])
def test_what_is_no_contiguous_buffer_is_a_type_error(guest, wrong):
    with pytest.raises(TypeError):
        guest.memory.write(0, wrong)


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (WASM_PAGE, 1),
        (WASM_PAGE - 1, 2),
        (0, WASM_PAGE + 1),
        (WASM_PAGE + 1, 0),
        (-1, 1),
        (-1, 2),
        (-WASM_PAGE, 1),
        (2**31, 1),
        (-(2**31), 1),
        (2**32, 1),
        (2**32 - 1, 2),
        (-(2**31) - 1, 1),
        (-(2**63), 1),
        (2**63, 1),
        (2**64, 1),
        (2**64 - 1, 2),
        (10**30, 1),
        (-(10**30), 1),
        (0, -1),
        (10, -5),
        (0, 2**32),
        (1, 2**64 - 1),
        (0, 10**30),
    ],
)
def test_nothing_outside_of_the_memory_is_reached(guest, address, length):
    memory = guest.memory
    for use in (memory.read, memory.view):
        with pytest.raises(sandhost.OutOfBounds):
            use(address, length)
    if 0 <= length <= 2 * WASM_PAGE:
        with pytest.raises(sandhost.OutOfBounds):
            memory.write(address, bytes(length))
    with pytest.raises(IndexError):
        memory.read(address, length)


def test_zero_bytes_are_within_up_to_the_end(guest):
    for address in (0, 5, WASM_PAGE):
        assert guest.memory.read(address, 0) == b""
        guest.memory.write(address, b"")
        with guest.memory.view(address, 0) as view:
            assert len(view) == 0


@pytest.mark.parametrize("wrong", [1.5, "0", None, b"0", [0]])
def test_addresses_and_lengths_are_integers(guest, wrong):
    for use in (guest.memory.read, guest.memory.view):
        with pytest.raises(TypeError):
            use(wrong, 1)
        with pytest.raises(TypeError):
            use(0, wrong)
    with pytest.raises(TypeError):
        guest.memory.write(wrong, b"x")


def test_a_negative_address_is_the_unsigned_one_of_the_same_bits(host):
    """An i32 pointer above 2 GiB comes out of a call as a negative number."""
    plugin = host.load(b'(module (memory (export "m") 32769))')
    with plugin.spawn(limits=sandhost.Limits(memory=None)) as guest:
        high = 2**31 + 5
        guest.memory.write(high, b"high")
        assert guest.memory.read(high - 2**32, 4) == b"high"
        with guest.memory.view(high - 2**32, 4) as view:
            assert bytes(view) == b"high"
        with pytest.raises(sandhost.OutOfBounds):
            guest.memory.read(-5, 1)


def test_a_memory_with_64_bit_addresses_takes_them_as_they_are(host):
    with host.load(guest_file("memory64")).spawn() as guest:
        assert guest.memory.read(8, 4) == b"wide"
        for address in (-1, -(2**31), 2**32, 2**64 - 1, 2**63):
            with pytest.raises(sandhost.OutOfBounds):
                guest.memory.read(address, 1)


def test_a_memory_of_one_byte_pages_ends_at_its_last_byte(host):
    with host.load(guest_file("one_byte_pages")).spawn() as guest:
        assert guest.memory.size == 100
        assert guest.memory.read(90, 10) == b"0123456789"
        with pytest.raises(sandhost.OutOfBounds):
            guest.memory.read(99, 2)
        assert guest.call("grow", 1) == 100
        assert guest.memory.read(100, 1) == b"\0"
        with pytest.raises(sandhost.GuestTrap):
            guest.call("peek", 101)


def test_several_memories_are_apart(host):
    with host.load(guest_file("multi_memory")).spawn() as guest:
        assert guest.memory_at(1).read(65536, 6) == b"second"
        assert guest.memory_at(2).read(16, 5) == b"third"
        guest.memory_at(1).write(0, b"x")
        assert guest.memory.read(0, 5) == b"first"
        with pytest.raises(sandhost.ConfigError, match="no memory 3"):
            guest.memory_at(3)


def test_a_guest_without_memory_says_so(host):
    with host.load(guest_file("add")).spawn() as guest:
        with pytest.raises(sandhost.ConfigError, match="0 memories"):
            guest.memory


def test_memory_grown_meanwhile_is_reached_at_once(guest):
    memory = guest.memory
    with memory.view(0, 4) as view:
        base = numpy.frombuffer(view, "u1")
        for pages in range(1, 20):
            assert memory.size == pages * WASM_PAGE
            with pytest.raises(sandhost.OutOfBounds):
                memory.read(pages * WASM_PAGE, 1)
            assert guest.call("grow", 1) == pages
            memory.write(pages * WASM_PAGE, b"new")
            assert guest.call("peek", pages * WASM_PAGE) == ord("n")
        guest.call("poke", 0, 9)
        assert base[0] == 9, "the view is still of the guest's memory"
        del base


# ---- views ----


def test_a_view_is_a_window_both_ways(guest):
    with guest.memory.view(10, 4) as view:
        view[:] = b"abcd"
        assert guest.call("peek", 12) == ord("c")
        guest.call("poke", 12, ord("x"))
        assert bytes(view) == b"abxd"
        assert not view.readonly


def test_a_view_pins_the_guest_until_it_is_released(host, plugin):
    guest = plugin.spawn()
    with guest.memory.view(0, 4) as view:
        for _ in range(3):
            with pytest.raises(sandhost.GuestBusy, match="views"):
                guest.close()
        view[:] = b"abcd"
        assert guest.memory.read(0, 4) == b"abcd", "the guest goes on as before"
        assert guest.call("peek", 0) == ord("a")
    del view
    guest.close()
    assert host.stats().regions_live == 0


def test_many_views_pin_until_the_last_one_is_gone(plugin):
    guest = plugin.spawn()
    views = [guest.memory.view(0, 8) for _ in range(10)]  # equal contents, each its own
    while views:
        with pytest.raises(sandhost.GuestBusy, match=f"{len(views)} views"):
            guest.close()
        views.pop()
        gc.collect()
    guest.close()


def test_what_was_made_from_a_view_pins_as_well(plugin):
    guest = plugin.spawn()
    array_ = numpy.frombuffer(guest.memory.view(0, 16), "<i4")
    part = array_[1:3]
    del array_
    collected()
    with pytest.raises(sandhost.GuestBusy):
        guest.close()
    part[0] = 0x01020304
    assert guest.memory.read(4, 4) == b"\x04\x03\x02\x01"
    del part
    collected()
    guest.close()


def test_a_view_keeps_its_guest_alive(host, plugin):
    guest = plugin.spawn()
    view = guest.memory.view(0, 4)
    del guest
    collected()
    assert host.stats().guests_live == 1
    view[:] = b"abcd"
    others = [plugin.spawn() for _ in range(20)]
    for other in others:
        assert other.memory.read(0, 4) == bytes(4)
        other.memory.write(0, b"zzzz")
        other.close()
    assert bytes(view) == b"abcd"
    with pytest.warns(ResourceWarning):
        del view
        collected()
    assert host.stats().guests_live == 0


def test_a_view_of_a_guest_in_a_cycle_is_freed_with_it(host, plugin):
    guest = plugin.spawn()
    view = guest.memory.view(0, 4)
    cycle = [guest, view]
    cycle.append(cycle)
    del guest, view
    with pytest.warns(ResourceWarning):
        del cycle
        collected()
        collected()
    assert host.stats().guests_live == 0


def test_views_of_a_guest_that_a_failed_start_function_left_behind_stay_safe(host):
    kept = []

    def f(guest: sandhost.Guest) -> None:
        kept.append((guest, guest.memory.view(0, 4)))
        kept[-1][1][:] = b"kept"
        raise LookupError

    host.function("env", "f")(f)
    plugin = host.load(b"""(module (import "env" "f" (func $f)) (memory (export "memory") 1)
        (func $s (call $f)) (start $s))""")
    for _ in range(3):
        with pytest.raises(LookupError):
            plugin.spawn()
    others = host.load(guest_file("secrets"))
    for _ in range(5):
        with others.spawn() as other:
            other.call("write", 0x77)
    assert [bytes(view) for _, view in kept] == [b"kept"] * 3
    for pair in kept:
        uses = [pair[0].stats, lambda g=pair[0]: g.memory.read(0, 4), lambda g=pair[0]: g.call("x")]
        for use in uses:
            with pytest.raises(sandhost.SandhostError):
                use()
    del pair, uses, use
    assert host.stats().regions_live == 3
    kept.clear()
    collected()
    assert host.stats().regions_live == 0


# ---- the end of the host ----


def test_a_host_closes_with_guests_alive_and_their_memory_mapped():
    host = sandhost.Host(cache=False, max_guests=16)
    plugin = host.load(guest_file("secrets"))
    guests = [plugin.spawn() for _ in range(8)]
    memories = [guest.memory for guest in guests[:4]]
    host.close()
    host.close()
    assert host.stats().regions_live == 0
    for memory in memories:
        with pytest.raises(sandhost.GuestClosed):
            memory.read(0, 1)
    for guest in guests:
        with pytest.raises(sandhost.GuestClosed):
            guest.call("size")
        with pytest.raises(sandhost.GuestClosed):
            guest.memory
        guest.close()
        assert guest.closed
    with pytest.raises(sandhost.GuestClosed):
        plugin.spawn()
    with pytest.raises(sandhost.GuestClosed):
        host.load(guest_file("add"))
    with pytest.raises(sandhost.GuestClosed):
        host.tenant("new")


def test_a_host_with_views_alive_says_so_and_closes_after():
    host = sandhost.Host(cache=False, max_guests=16)
    plugin = host.load(guest_file("secrets"))
    guest, other = plugin.spawn(), plugin.spawn()
    view = guest.memory.view(0, 4)
    with pytest.raises(sandhost.GuestBusy):
        host.close()
    with pytest.raises(sandhost.GuestClosed):
        plugin.spawn()
    view[:] = b"safe"
    assert bytes(view) == b"safe"
    del view
    host.close()
    assert host.stats().guests_live == 0
    guest.close(), other.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_a_host_that_closes_cancels_the_calls_of_other_threads(mapped):
    host = sandhost.Host(cache=False, max_guests=16)
    plugin = host.load(guest_file("spin"))
    guests = [plugin.spawn() for _ in range(4)]
    if mapped:
        for guest in guests:
            guest.memory.write(0, b"x")
    calls = [Background(guest.call, "spin") for guest in guests]
    wait_until(lambda: all(guest.stats().running for guest in guests))
    host.close()
    for call in calls:
        with pytest.raises((sandhost.GuestCancelled, sandhost.GuestClosed)):
            call.result()
    assert host.stats().guests_live == 0
    for guest in guests:
        guest.close()


def test_two_threads_close_one_guest():
    with sandhost.Host(cache=False, max_guests=64) as host:
        plugin = host.load(guest_file("secrets"))
        for _ in range(200):
            guest = plugin.spawn()
            guest.memory.write(0, b"x")
            both = [Background(guest.close) for _ in range(2)]
            results = []
            for one in both:
                try:
                    results.append(one.result())
                except sandhost.SandhostError as error:
                    assert isinstance(error, (sandhost.GuestBusy, sandhost.GuestClosed))
            assert results
            guest.close()
        assert host.stats().regions_live == 0
        assert host.stats().quarantined_slots == 0
