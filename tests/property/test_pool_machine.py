"""A host against a model of it: Hypothesis spawns, writes, grows, fails and closes in any order.

The model is a list of guests, each with the bytes it must hold. What a guest sees is its initial data,
zeros, and what it wrote itself, and nothing else; figures are sums over the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import POLICIES, WASM_PAGE, examples, failing, guest_file

import sandhost

SHAPES = [  # wasm pages at first and at most, initial data by address
    (1, 1, {}),
    (1, 8, {0: b"first"}),
    (3, 20, {WASM_PAGE - 3: b"across a border", 2 * WASM_PAGE: b"x" * 5000}),
    (0, 4, {}),
    (17, 17, {17 * WASM_PAGE - 1: b"e"}),
]
LIMIT = 24 * WASM_PAGE  # of a tenant
MOST = 6  # guests


def module(pages: int, most: int, data: dict[int, bytes]) -> bytes:
    segments = "".join(
        '(data (i32.const {}) "{}")'.format(at, "".join(f"\\{b:02x}" for b in content))
        for at, content in data.items()
    )
    return f"""(module (memory (export "m") {pages} {most}) {segments}
      (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
      (func (export "fill") (param i32 i32 i32)
        (memory.fill (local.get 0) (local.get 1) (local.get 2)))
      (func (export "trap_after") (param i32 i32)
        (memory.fill (i32.const 0) (local.get 1) (local.get 0)) unreachable)
      (func (export "spin_after") (param i32 i32)
        (memory.fill (i32.const 0) (local.get 1) (local.get 0))
        (loop $again (br $again))))""".encode()


def difference(found: bytes, wanted: bytearray) -> int | None:
    """Return the address of the first byte that differs. (pytest would draw both, for minutes.)"""
    if found == wanted:
        return None
    pairs = enumerate(zip(found, wanted, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(found), len(wanted)))


class Modelled:
    """A guest and the bytes it must hold."""

    def __init__(self, guest: sandhost.Guest, shape: int, tenant: str) -> None:
        self.guest, self.shape, self.tenant = guest, shape, tenant
        pages, self.most, data = SHAPES[shape]
        self.bytes = bytearray(pages * WASM_PAGE)
        for at, content in data.items():
            self.bytes[at : at + len(content)] = content


class Machine(RuleBasedStateMachine):
    policy = "warm"
    guests = Bundle("guests")

    @initialize()
    def make_host(self) -> None:
        self.host = sandhost.Host(
            cache=False,
            max_guests=MOST,
            reclaim=self.policy,
            warm_guest="128 KiB",
            warm_total="512 KiB",
        )
        self.plugins = [self.host.load(module(*shape)) for shape in SHAPES]
        self.failing = [self.host.load(guest_file(n)) for n in ("start_trap", "oob_data")]
        for name in "ab":
            self.host.tenant(name, memory_limit=LIMIT)
        self.live: list[Modelled] = []
        self.spawned = 0

    def used(self, tenant: str) -> int:
        return sum(len(m.bytes) for m in self.live if m.tenant == tenant)

    @rule(target=guests, shape=st.integers(0, len(SHAPES) - 1), tenant=st.sampled_from("ab"))
    def spawn(self, shape, tenant):
        too_much = self.used(tenant) + SHAPES[shape][0] * WASM_PAGE > LIMIT
        try:
            guest = self.plugins[shape].spawn(tenant=tenant)
        except sandhost.OutOfMemory:
            assert too_much
            return multiple()
        except sandhost.RegionFullError:
            assert len(self.live) == MOST
            return multiple()
        assert not too_much
        assert len(self.live) < MOST
        modelled = Modelled(guest, shape, tenant)
        self.live.append(modelled)
        self.spawned += 1
        assert difference(guest.memory.read(0, guest.memory.size), modelled.bytes) is None
        return modelled

    @rule(which=st.integers(0, 1), tenant=st.sampled_from("ab"))
    def fail_to_spawn(self, which, tenant):
        with pytest.raises((sandhost.GuestTrap, sandhost.OutOfMemory, sandhost.RegionFullError)):
            self.failing[which].spawn(tenant=tenant)

    @rule(
        modelled=guests,
        share=st.floats(0, 1),
        length=st.integers(0, 9000),
        byte=st.integers(1, 255),
    )
    def write(self, modelled, share, length, byte):
        at = int(share * len(modelled.bytes))
        length = min(length, len(modelled.bytes) - at)
        modelled.guest.memory.write(at, bytes([byte]) * length)
        modelled.bytes[at : at + length] = bytes([byte]) * length

    @rule(modelled=guests, byte=st.integers(1, 255))
    def fill_all(self, modelled, byte):
        modelled.guest.call("fill", 0, byte, len(modelled.bytes))
        modelled.bytes[:] = bytes([byte]) * len(modelled.bytes)

    @rule(modelled=guests, pages=st.integers(0, 9))
    def grow(self, modelled, pages):
        before = len(modelled.bytes) // WASM_PAGE
        fits = before + pages <= modelled.most
        fits = fits and self.used(modelled.tenant) + pages * WASM_PAGE <= LIMIT
        assert modelled.guest.call("grow", pages) == (before if fits else -1)
        if fits:
            modelled.bytes += bytes(pages * WASM_PAGE)

    @rule(modelled=guests, pages=st.integers(1, 3))
    def grow_when_the_os_refuses(self, modelled, pages):
        before = len(modelled.bytes) // WASM_PAGE
        with failing("MPROTECT", times=5):
            assert modelled.guest.call("grow", pages) == -1
        assert modelled.guest.call("grow", 0) == before

    @rule(modelled=guests, share=st.floats(0, 1), killed=st.booleans())
    def die_in_a_call(self, modelled, share, killed):
        length = int(share * len(modelled.bytes))
        modelled.bytes[:length] = b"\xdd" * length
        if not killed:
            with pytest.raises(sandhost.GuestTrap):
                modelled.guest.call("trap_after", length, 0xDD)
            return
        import threading

        done = threading.Event()

        def cancel() -> None:
            while not done.wait(0.0005):
                modelled.guest.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        try:
            with pytest.raises(sandhost.GuestCancelled):
                modelled.guest.call("spin_after", length, 0xDD)
        finally:
            done.set()
            canceller.join()

    @rule(modelled=guests)
    def read_all(self, modelled):
        assert (
            difference(modelled.guest.memory.read(0, len(modelled.bytes)), modelled.bytes) is None
        )

    @rule(modelled=guests)
    def try_to_close_under_a_view(self, modelled):
        with modelled.guest.memory.view(0, min(10, len(modelled.bytes))) as view:
            with pytest.raises(sandhost.GuestBusy):
                modelled.guest.close()
            assert bytes(view) == modelled.bytes[:10]
        del view

    @rule(modelled=consumes(guests), broken=st.sampled_from([None, None, None, "PAGEMAP_SCAN"]))
    def close(self, modelled, broken):
        self.live.remove(modelled)
        if broken:
            with failing(broken):
                reclaim = modelled.guest.close()
        else:
            reclaim = modelled.guest.close()
        assert reclaim.policy == self.policy
        assert reclaim is modelled.guest.close()
        if self.policy == "immediate":
            assert (reclaim.kept_bytes, reclaim.deferred_bytes) == (0, 0)
        with pytest.raises(sandhost.GuestClosed):
            modelled.guest.call("grow", 0)

    @rule()
    def trim(self):
        self.host.trim()
        assert self.host.stats().warm_bytes == 0

    @invariant()
    def figures_are_sums_over_the_model(self):
        if not hasattr(self, "host"):
            return
        stats = self.host.stats()
        assert stats.guests_live == stats.regions_live == len(self.live)
        assert stats.committed_bytes == sum(len(m.bytes) for m in self.live)
        assert stats.spawns == self.spawned
        assert stats.quarantined_slots == 0
        for name in "ab":
            assert self.host.tenant(name).memory_bytes == self.used(name)
        assert len({m.guest.memory._base for m in self.live}) == len(self.live)

    def teardown(self):
        if not hasattr(self, "host"):
            return
        for modelled in self.live:
            assert (
                difference(modelled.guest.memory.read(0, len(modelled.bytes)), modelled.bytes)
                is None
            )
            modelled.guest.close()
        self.live.clear()
        self.host.trim()
        stats = self.host.stats()
        assert (stats.regions_live, stats.committed_bytes, stats.warm_bytes) == (0, 0, 0)
        self.host.close()


def machine(policy: str) -> type:
    case = type(f"Machine_{policy}", (Machine,), {"policy": policy}).TestCase
    case.settings = settings(
        max_examples=examples(40),
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return case


Immediate, Warm, Lazy = (machine(policy) for policy in POLICIES)


class Forgetful(Modelled):
    """A model that is wrong in one byte: as a pool would be that skips a page at its reset."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        if self.bytes:
            self.bytes[-1] ^= 1


def test_the_machine_notices_a_byte_that_is_not_there(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Modelled", Forgetful)
    with pytest.raises(AssertionError):
        steps = Machine()
        steps.make_host()
        try:
            Machine.spawn(steps, shape=1, tenant="a")
        finally:
            steps.host.close()
