"""A page pool against a model of it, and a pool that is broken as such pools are: Hypothesis tells them apart.

The model is a list of buffers that are out, each with the bytes it must hold, and a queue of those that
are free. The broken pool is a ring of pages that goes round and hands out the next one, in use or not.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import PAGE, examples

import sandhost
from sandhost import PagePool

COUNT, SIZE = 3, 2 * PAGE


class Modelled:
    """A buffer that is out, its bytes, and the views that are alive."""

    def __init__(self, buffer: Any, clean: int) -> None:
        self.buffer = buffer
        self.bytes = bytearray([clean]) * SIZE
        self.views: list[memoryview] = []
        self.extent = 0


class Machine(RuleBasedStateMachine):
    make: Callable[[], Any] = staticmethod(lambda: PagePool(SIZE, COUNT))
    clean = 0

    @initialize()
    def make_pool(self) -> None:
        self.pool = type(self).make()
        self.out: list[Modelled] = []
        self.ended: list[Any] = []
        self.peak = self.acquired = self.refused = 0
        self.free = deque([0] * COUNT)
        """What is resident in each free buffer, oldest first."""
        self.resident: dict[int, int] = {}

    def one(self, data: st.DataObject) -> Modelled:
        return data.draw(st.sampled_from(self.out))

    @rule(look=st.booleans())
    def acquire(self, look: bool) -> None:
        buffer = self.pool.try_acquire()
        if len(self.out) == COUNT:
            assert buffer is None
            self.refused += 1
            with pytest.raises(sandhost.PoolEmpty):
                self.pool.acquire(timeout=0)
            self.refused += 1
            return
        assert buffer is not None
        modelled = Modelled(buffer, self.clean)
        self.out.append(modelled)
        self.acquired += 1
        self.peak = max(self.peak, len(self.out))
        self.resident[id(modelled)] = self.free.popleft()
        if self.clean:  # it was filled with poison as a whole
            self.resident[id(modelled)] = SIZE
        if look:
            assert bytes(buffer.view()) == modelled.bytes
            modelled.extent = SIZE

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(), start=st.integers(0, SIZE), share=st.floats(0, 1), byte=st.integers(1, 255)
    )
    def write(self, data, start, share, byte):
        modelled = self.one(data)
        length = int(share * (SIZE - start))
        with modelled.buffer.view(start, length) as view:
            assert bytes(view) == modelled.bytes[start : start + length]
            view[:] = bytes([byte]) * length
        modelled.bytes[start : start + length] = bytes([byte]) * length
        modelled.extent = max(modelled.extent, start + length)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), keep=st.booleans())
    def hold_or_drop_views(self, data, keep):
        modelled = self.one(data)
        if keep:
            modelled.views.append(modelled.buffer.view(0, 8))
            modelled.extent = max(modelled.extent, 8)
        else:
            modelled.views.clear()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def release(self, data):
        modelled = self.one(data)
        if modelled.views:
            with pytest.raises(sandhost.BufferBusy):
                self.pool.release(modelled.buffer)
            return
        self.pool.release(modelled.buffer)
        self.out.remove(modelled)
        self.ended.append(modelled.buffer)
        pages = -(-modelled.extent // PAGE) * PAGE
        self.free.append(max(self.resident.pop(id(modelled)), pages))

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def misuse(self, data):
        stale = data.draw(st.sampled_from(self.ended))
        with pytest.raises(sandhost.InvalidBuffer):
            self.pool.release(stale)
        with pytest.raises(sandhost.InvalidBuffer):
            stale.view()

    @rule()
    def trim(self):
        assert self.pool.trim() == sum(self.free)
        self.free = deque([0] * len(self.free))

    @precondition(lambda self: self.out)
    @rule()
    def close_too_early(self):
        with pytest.raises(sandhost.BufferBusy):
            self.pool.close()

    @invariant()
    def bytes_are_those_of_their_user(self):
        for modelled in getattr(self, "out", []):
            view = modelled.buffer.view(0, modelled.extent)
            assert bytes(view) == modelled.bytes[: modelled.extent]

    @invariant()
    def figures_are_those_of_the_model(self):
        if not hasattr(self, "pool"):
            return
        stats = self.pool.stats()
        assert (stats.in_use, stats.free) == (len(self.out), COUNT - len(self.out))
        assert (stats.peak, stats.acquired) == (self.peak, self.acquired)
        assert stats.refused == self.refused
        assert stats.resident_bytes == sum(self.free) + sum(
            max(m.extent, self.resident[id(m)]) for m in self.out
        )

    def teardown(self):
        for modelled in getattr(self, "out", []):
            modelled.views.clear()
            self.pool.release(modelled.buffer)
        if hasattr(self, "pool"):
            self.out.clear()
            self.pool.close()


class PoisonMachine(Machine):
    make = staticmethod(lambda: PagePool(SIZE, COUNT, clean="poison"))
    clean = 0xDB


for case in (Machine.TestCase, PoisonMachine.TestCase):
    case.settings = settings(
        max_examples=examples(60),
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
TestZero, TestPoison = Machine.TestCase, PoisonMachine.TestCase


# ---- pools that are broken ----


class GoesRound(PagePool):
    """A ring that hands out its next page, whoever has it."""

    def __init__(self) -> None:
        super().__init__(SIZE, COUNT)
        self._all = [super(GoesRound, self).acquire() for _ in range(COUNT)]
        self._next = 0

    def try_acquire(self) -> sandhost.Buffer | None:
        self._next += 1
        return self._all[self._next % COUNT]

    def release(self, buffer: sandhost.Buffer) -> None:
        with buffer.view() as view:
            view[:] = bytes(SIZE)


class DoesNotClean(PagePool):
    """What one user has left the next one finds."""

    def __init__(self) -> None:
        super().__init__(SIZE, COUNT)
        self._left: bytes | None = None

    def try_acquire(self) -> sandhost.Buffer | None:
        buffer = super().try_acquire()
        if buffer is not None and self._left is not None:
            buffer.view()[:] = self._left
        return buffer

    def release(self, buffer: sandhost.Buffer) -> None:
        left = bytes(buffer.view())
        super().release(buffer)
        self._left = left


class ByteMachine(Machine):
    """Looks at bytes only, so that a broken pool does not fail by its figures."""

    def figures_are_those_of_the_model(self):
        pass

    def misuse(self):
        pass

    def trim(self):
        pass

    def close_too_early(self):
        pass

    def teardown(self):
        out = [modelled.buffer for modelled in getattr(self, "out", [])]
        for modelled in getattr(self, "out", []):
            modelled.views.clear()
        for buffer in {*out, *getattr(getattr(self, "pool", None), "_all", [])}:
            buffer._left = True  # the error's traceback may hold views, and goes later
            buffer._pool.take_back(buffer)


@pytest.mark.parametrize("broken", [GoesRound, DoesNotClean])
def test_a_pool_that_is_broken_is_found_out(broken: type) -> None:
    case = type("Broken", (ByteMachine,), {"make": staticmethod(broken)})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            case,
            settings=settings(
                max_examples=200,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
