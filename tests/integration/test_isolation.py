"""Promises 1, 2 and 5: no guest reads another's bytes, no slot has two guests, no fault leaves one.

The last tests break a promise on purpose, to show that the others would notice.
"""

from __future__ import annotations

import random

import pytest
from helpers import (
    WASM_PAGE,
    Background,
    balanced,
    failing,
    guest_file,
    run_cleanly,
    run_python,
    wait_until,
)

import sandhost
from sandhost import Limits

MIB = 2**20


def module(pages: int, most: int, data: dict[int, bytes] | None = None) -> bytes:
    """A guest of some size with data at some offsets."""
    segments = "".join(
        f'(data (i32.const {at}) "{"".join(f"{chr(92)}{b:02x}" for b in bytes_)}")'
        for at, bytes_ in (data or {}).items()
    )
    return f"""(module (memory (export "memory") {pages} {most}) {segments}
        (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))""".encode()


def check_fresh(guest, data) -> None:
    """Assert that a guest's memory is its data and zeros, from both sides."""
    memory = guest.memory.read(0, guest.memory.size)
    expected = bytearray(len(memory))
    for at, bytes_ in data.items():
        expected[at : at + len(bytes_)] = bytes_
    assert memory == bytes(expected)


@pytest.mark.parametrize("seed", range(3))
def test_no_byte_of_one_guest_is_seen_by_another(any_host, seed):
    rng = random.Random(seed)
    kinds = []
    for pages, most in [(1, 1), (1, 40), (4, 64), (17, 17), (33, 80)]:
        for data in ({}, {5: b"five", pages * WASM_PAGE - 9: b"last nine"}, {0: b"x" * 5000}):
            kinds.append((any_host.load(module(pages, most, data)), data))
    traps = [any_host.load(guest_file(n)) for n in ("oob_data", "start_trap", "oob_elem")]
    spinner = any_host.load(guest_file("spin"))
    live: list[sandhost.Guest] = []
    for _ in range(150):
        what = rng.random()
        if what < 0.15:
            with pytest.raises(sandhost.GuestTrap):
                rng.choice(traps).spawn(tenant=rng.choice("abc"))
        elif what < 0.2:
            with spinner.spawn(limits=Limits(deadline=0.005)) as guest:
                with pytest.raises(sandhost.DeadlineExceeded):
                    guest.call("spin_dirtying")
        elif what < 0.5 and live:
            live.pop(rng.randrange(len(live))).close()
        elif what < 0.55:
            any_host.trim()
        else:
            plugin, data = rng.choice(kinds)
            guest = plugin.spawn(tenant=rng.choice("abc"))
            check_fresh(guest, data)
            for _ in range(rng.randrange(4)):
                before = guest.memory.size
                if guest.call("grow", rng.choice((1, 3, 16))) != -1:
                    fresh = guest.memory.read(before, guest.memory.size - before)
                    assert fresh == bytes(len(fresh)), "grown memory is zero"
            size = guest.memory.size
            for _ in range(rng.randrange(6)):
                start = rng.randrange(size)
                guest.memory.write(start, b"\xa5" * rng.randrange(min(size - start, 70_000) + 1))
            if rng.random() < 0.2:
                guest.memory.write(0, b"\xa5" * size)
            live.append(guest)
    for guest in live:
        guest.close()


def test_secrets_of_another_tenant_are_never_found_whatever_the_sizes(any_host):
    plugin = any_host.load(guest_file("secrets"))
    for k in range(30):
        with plugin.spawn(tenant=f"t{k % 3}") as guest:
            assert guest.call("scan", 0) == 0
            guest.call("grow", (k * 7) % 30)
            assert guest.call("scan", 0) == 0
            guest.call("write", 0xA5)
            assert guest.call("scan", 0xA5) == 0


def test_memory_is_reset_when_instantiation_fails(any_host):
    trap, spin = any_host.load(guest_file("start_trap")), any_host.load(guest_file("start_spin"))
    secrets = any_host.load(guest_file("secrets"))
    for _ in range(10):
        with pytest.raises(sandhost.GuestTrap):
            trap.spawn()
        with pytest.raises(sandhost.DeadlineExceeded):
            spin.spawn(limits=Limits(deadline=0.002))
        with secrets.spawn() as guest:
            assert guest.call("scan", 0) == 0


def test_memory_is_reset_after_a_call_that_was_killed_in_the_middle_of_a_store(any_host):
    spin = any_host.load(guest_file("spin"))
    fresh = any_host.load(module(16, 16))
    for _ in range(10):
        guest = spin.spawn()
        call = Background(guest.call, "spin_dirtying")
        wait_until(lambda g=guest: g.cancel())
        with pytest.raises(sandhost.GuestCancelled):
            call.result()
        guest.close()
        with fresh.spawn() as next_guest:
            check_fresh(next_guest, {})


def test_initial_data_is_whole_for_each_guest_after_others_overwrote_it(any_host):
    data = {3: b"three", 4000: b"y" * 500, 65530: b"border"}
    plugin = any_host.load(module(2, 4, data))
    for k in range(20):
        with plugin.spawn(tenant=str(k % 2)) as one, plugin.spawn() as two:
            for guest in (one, two):
                check_fresh(guest, data)
                guest.memory.write(0, b"\xee" * guest.memory.size)


def test_plugins_that_come_and_go_never_see_each_others_data(any_host):
    for k in range(20):
        data = {0: bytes([k + 1]) * (4096 * (k % 5) + 1)}
        plugin = any_host.load(module(1, 2, data))
        with plugin.spawn() as guest:
            check_fresh(guest, data)
        del plugin, guest


def test_bss_that_was_filled_is_zero_for_the_next(any_host):
    plugin = any_host.load(guest_file("bss"))
    zeros = bytes(16 * MIB)
    for k in range(4):
        with plugin.spawn(tenant="xy"[k % 2]) as guest:
            assert guest.memory.read(0, 16 * MIB) == zeros
            guest.call("fill", k * MIB, (16 - k) * MIB, 0xFF)


def test_a_slot_is_used_by_one_guest_at_a_time(any_host):
    plugin = any_host.load(guest_file("secrets"))
    guests = [plugin.spawn() for _ in range(100)]
    bases = {guest.memory._base for guest in guests}
    assert len(bases) == 100
    for number, guest in enumerate(guests):
        guest.call("write", number)
    for number, guest in enumerate(guests):
        assert guest.call("scan", number) == 0
        guest.close()
        guest.close()
    assert balanced(any_host).guests_peak == 100


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("load8", (-1,)),
        ("load8", (WASM_PAGE,)),
        ("load64", (WASM_PAGE - 7,)),
        ("load128_low", (WASM_PAGE - 15,)),
        ("store8", (WASM_PAGE, 1)),
        ("store64", (WASM_PAGE - 1, 1)),
        ("store64", (-8, 1)),
        ("load8_2gib", (0,)),
        ("load8_2gib", (2**31 - 1,)),
        ("load8_4gib", (0,)),
        ("load8_4gib", (-1,)),
        ("store64_4gib", (-1, -1)),
        ("fill", (1, 7, WASM_PAGE)),
        ("fill", (WASM_PAGE, 7, -1)),
        ("copy", (1, 0, WASM_PAGE)),
        ("copy", (0, -1, 2)),
    ],
)
def test_an_access_out_of_bounds_traps_and_touches_nobody(any_host, name, arguments):
    plugin = any_host.load(guest_file("oob"))
    with plugin.spawn() as before, plugin.spawn() as guest, plugin.spawn() as after:
        guest.memory.write(0, b"\x11" * WASM_PAGE)
        for _ in range(3):
            with pytest.raises(sandhost.GuestTrap) as caught:
                guest.call(name, *arguments)
            assert caught.value.code == "memory_out_of_bounds"
        assert guest.memory.read(0, WASM_PAGE) == b"\x11" * WASM_PAGE, "nothing of it was done"
        for neighbour in (before, after):
            check_fresh(neighbour, {})
        assert guest.call("grow", 1) == 1
        guest.call("store8", 2 * WASM_PAGE - 1, 5)
        with pytest.raises(sandhost.GuestTrap):
            guest.call("load8", 2 * WASM_PAGE)


@pytest.mark.parametrize(
    ("guest", "name", "arguments", "code"),
    [
        ("unreachable", "trap", (), "unreachable"),
        ("div_zero", "div", (1, 0), "integer_division_by_zero"),
        ("div_zero", "rem", (1, 0), "integer_division_by_zero"),
        ("div_zero", "div", (-(2**31), -1), "integer_overflow"),
        ("div_zero", "truncate", (1e300,), "integer_overflow"),
        ("div_zero", "truncate", (float("nan"),), "bad_conversion_to_integer"),
        ("recurse", "recurse", (1,), "stack_overflow"),
    ],
)
def test_every_fault_is_the_guests_own(host, guest, name, arguments, code):
    plugin = host.load(guest_file(guest))
    with plugin.spawn() as faulting, plugin.spawn() as other:
        for _ in range(3):
            with pytest.raises(sandhost.GuestTrap) as caught:
                faulting.call(name, *arguments)
            assert caught.value.code == code
        with pytest.raises(sandhost.GuestTrap):
            other.call(name, *arguments)
    assert plugin.stats().traps == 4


# ---- signal handlers installed behind our back ----

TRAPS = """
    import faulthandler, signal
    host = sandhost.Host(cache=False, max_guests=16)
    wanted = {"unreachable": ("trap",), "oob": ("load8", -1), "div_zero": ("div", 1, 0),
              "recurse": ("recurse", 1)}
    plugins = {name: host.load(guest_file(name)) for name in wanted}
    def trap_all():
        for name, call in wanted.items():
            with plugins[name].spawn() as guest:
                try:
                    guest.call(*call)
                except sandhost.GuestTrap:
                    continue
                raise AssertionError(name)
"""


@pytest.mark.parametrize(
    "late",
    [
        "faulthandler.enable()",
        "faulthandler.enable(); faulthandler.disable(); faulthandler.enable()",
        "faulthandler.enable(); trap_all(); faulthandler.disable()",
        "signal.signal(signal.SIGSEGV, lambda *_: print('python handler'))",
        "signal.signal(signal.SIGSEGV, signal.SIG_DFL)",
        "signal.signal(signal.SIGSEGV, signal.SIG_IGN)",
        "signal.signal(signal.SIGFPE, lambda *_: print('python handler'))",
        "signal.signal(signal.SIGILL, lambda *_: print('python handler'))",
        "signal.signal(signal.SIGBUS, lambda *_: print('python handler'))",
        "signal.signal(signal.SIGILL, signal.SIG_DFL)",
        "signal.signal(signal.SIGFPE, signal.SIG_DFL)",
        "faulthandler.register(signal.SIGUSR1)",
    ],
)
@pytest.mark.parametrize("before", ["", "trap_all()"])
def test_a_trap_stays_a_trap_under_handlers_installed_late(late, before):
    run_cleanly(f"{TRAPS}\n    {before}\n    {late}\n    trap_all(); trap_all()", timeout=20)


def test_a_trap_stays_a_trap_when_handlers_change_between_calls_of_one_guest():
    run_cleanly(
        TRAPS
        + """
    with plugins["div_zero"].spawn() as guest:
        for _ in range(8):
            for number in (signal.SIGFPE, signal.SIGILL, signal.SIGSEGV):
                signal.signal(number, lambda *_: None)
                try:
                    guest.call("div", 1, 0)
                    raise AssertionError
                except sandhost.GuestTrap:
                    pass
    """,
        timeout=20,
    )


def test_a_fault_of_the_host_still_reaches_the_handler_installed_late():
    done = run_python(
        TRAPS
        + """
    faulthandler.enable()
    trap_all()
    import ctypes
    ctypes.string_at(0)
    """
    )
    assert done.returncode != 0
    assert "Segmentation fault" in done.stderr


def test_a_fault_in_a_host_function_is_the_hosts_not_a_trap():
    done = run_python(
        TRAPS
        + """
    import ctypes
    faulthandler.enable()
    @host.function("env", "nop")
    def nop() -> None:
        ctypes.string_at(0)
    host.function("env", "inc", "(i32) -> i32")(lambda n: n)
    host.load(guest_file("hostcall")).spawn().call("call_nop", 1)
    print("survived")
    """
    )
    assert "survived" not in done.stdout
    assert "Segmentation fault" in done.stderr


# ---- the checks above can fail ----


def test_the_check_of_fresh_memory_notices_a_single_byte(host):
    with host.load(module(1, 1, {3: b"abc"})).spawn() as guest:
        check_fresh(guest, {3: b"abc"})
        guest.memory.write(40_000, b"\1")
        with pytest.raises(AssertionError):
            check_fresh(guest, {3: b"abc"})


@pytest.mark.parametrize("policy", ["immediate", "warm", "lazy"])
def test_a_slot_that_cannot_be_reset_is_never_used_again(policy):
    """With every way to forget it closed, the slot of a guest is lost, not handed on."""
    with sandhost.Host(cache=False, max_guests=8, reclaim=policy, warm_guest=0) as host:
        plugin = host.load(guest_file("secrets"))
        guest = plugin.spawn()
        base = guest.memory._base
        guest.call("write", 0xA5)
        with failing("MADVISE", times=1000), failing("PAGEMAP_SCAN", times=1000):
            guest.close()
        assert host.stats().quarantined_slots == 1
        for _ in range(20):
            with plugin.spawn() as other:
                assert other.memory._base != base
                assert other.call("scan", 0) == 0
                other.call("write", 0x5A)
