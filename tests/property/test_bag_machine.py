"""Bags against a naive model: lists, emptied from their end.

Things go in, in any order, into bags that hold bags; releases succeed, fail, add more, hang or resist; bags are
closed, closed again, and cancelled while they close. What the model says is released, in that order, and once.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import examples
from helpers.virtual_time import VirtualTimeLoop

from sandhost.serve.bag import BagClosed, Bags, ResourceBag

TIMEOUT_S = 1.0
KINDS = {
    "at once": None,
    "later": None,
    "fails": ValueError,
    "fails later": ValueError,
    "cancels itself": asyncio.CancelledError,
    "interrupts": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "hangs": TimeoutError,
    "resists": TimeoutError,
}
SLOW = ("hangs", "resists")


class Model:
    """A bag as it should be."""

    def __init__(self, bag: ResourceBag) -> None:
        self.bag = bag
        self.entries: list[
            tuple[str, object]
        ] = []  # ("thing", (kind, number)), ("more", [...]), ("bag", Model)
        self.closed = self.slow = self.nested = False
        self.failures: list[type[BaseException]] = []


class Machine(RuleBasedStateMachine):
    bags = Bundle("bags")

    @initialize()
    def begin(self) -> None:
        self.loop = VirtualTimeLoop()
        self.counts = Bags(TIMEOUT_S)
        self.log: list[int] = []
        self.expected: list[int] = []
        self.models: list[Model] = []
        self.number = self.added = 0
        self.timed_out = self.abandoned = 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for model in self.models:
                self.close(model, None)
            assert self.counts.stats().live == 0
            assert all(model.bag.closed and not len(model.bag) for model in self.models)
            for task in asyncio.all_tasks(self.loop):
                self.loop.run_until_complete(asyncio.wait({task}))
            self.loop.close()

    # ---- the real thing ----

    def release_of(self, kind: str, number: int):
        def now(_: object) -> None:
            self.log.append(number)
            error = KINDS[kind]
            if error is not None:
                raise error

        async def later(_: object) -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            now(_)

        async def hangs(_: object) -> None:
            self.log.append(number)
            await asyncio.sleep(3600)

        async def resists(_: object) -> None:
            self.log.append(number)
            end = self.loop.time() + 60
            while self.loop.time() < end:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass

        known = {"later": later, "fails later": later, "hangs": hangs, "resists": resists}
        return known.get(kind, now)

    # ---- the model ----

    def expect(self, model: Model) -> None:
        if model.closed:
            return
        model.closed = True
        while model.entries:
            what, value = model.entries.pop()
            if what == "bag":
                self.expect(value)
            elif what == "more":
                for number in value:
                    model.entries.append(("thing", ("at once", number)))
                    self.added += 1
            else:
                kind, number = value
                self.expected.append(number)
                error = KINDS[kind]
                if error is not None:
                    model.failures.append(error)
                self.timed_out += kind in SLOW
                self.abandoned += kind == "resists"

    def interrupts(self, model: Model, seen: set[int]) -> bool:
        """Whether a release of it raises what must come out: its own, not those of bags within."""
        return any(what == "thing" and value[0] == "interrupts" for what, value in model.entries)

    # ---- rules ----

    @rule(target=bags)
    def new_bag(self) -> Model:
        model = Model(self.counts.new())
        self.models.append(model)
        return model

    @rule(model=bags, kind=st.sampled_from(sorted(KINDS)))
    def add(self, model: Model, kind: str) -> None:
        if (kind in SLOW or kind == "interrupts") and (model.nested or model.closed):
            return  # a bag within a bag would be out of time, and that is another story
        self.number += 1
        self.added += 1
        if model.closed:
            if KINDS[kind] is not None or kind == "later":
                kind = "at once"
            with pytest.raises(BagClosed):
                model.bag.add(self, self.with_number(kind, self.number))
            self.expected.append(self.number)
            return
        model.bag.add(self, self.with_number(kind, self.number))
        model.entries.append(("thing", (kind, self.number)))
        model.slow = model.slow or kind in SLOW or kind == "interrupts"

    def with_number(self, kind: str, number: int):
        return self.release_of(kind, number)

    @rule(model=bags, count=st.integers(1, 3))
    def add_what_adds_more(self, model: Model, count: int) -> None:
        if model.closed:
            return
        numbers = list(range(self.number + 1, self.number + 1 + count))
        self.number += count
        self.added += 1

        def more(bag: ResourceBag) -> None:
            for number in numbers:
                bag.add(self, self.release_of("at once", number))

        model.bag.add(model.bag, more)
        model.entries.append(("more", numbers))

    @rule(outer=bags, inner=bags)
    def add_a_bag(self, outer: Model, inner: Model) -> None:
        if outer.closed or inner.slow:
            return
        inner.nested = True
        self.added += 1
        outer.bag.add(inner.bag)
        outer.entries.append(("bag", inner))

    @rule(model=bags, cancel_after=st.one_of(st.none(), st.integers(0, 12)))
    def close(self, model: Model, cancel_after: int | None) -> None:
        interrupted = not model.closed and self.interrupts(model, set())

        async def request() -> None:
            async with model.bag:
                pass

        async def main() -> str:
            task = asyncio.ensure_future(request())
            if cancel_after is not None:
                await asyncio.sleep(0)
                for _ in range(cancel_after):
                    await asyncio.sleep(0)
                task.cancel()
                for _ in range(cancel_after):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait({task})
            if task.cancelled():
                return "cancelled"
            return "interrupted" if task.exception() is not None else "done"

        # A task that ends with KeyboardInterrupt ends the loop's run: that is asyncio's way.
        try:
            outcome = self.loop.run_until_complete(main())
        except KeyboardInterrupt:
            outcome = "interrupted"
        self.expect(model)
        if interrupted:
            assert outcome == "interrupted"
        elif cancel_after is None:
            assert outcome == "done"
        else:
            assert outcome in ("done", "cancelled")
        assert model.bag.closed

    @invariant()
    def as_the_model_says(self) -> None:
        if not hasattr(self, "loop"):
            return
        assert self.log == self.expected
        for model in self.models:
            assert [type(failure.error) for failure in model.bag.failures] == model.failures
            assert model.bag.closed == model.closed
        stats = self.counts.stats()
        assert stats.opened == len(self.models)
        assert stats.live == sum(not model.closed for model in self.models)
        assert stats.added == self.added
        held = sum(len(model.entries) for model in self.models)
        assert stats.added - stats.released == held
        assert stats.failed == sum(len(model.failures) for model in self.models)
        assert (stats.timed_out, stats.abandoned) == (self.timed_out, self.abandoned)


TestBags = Machine.TestCase
TestBags.settings = settings(max_examples=examples(200), stateful_step_count=30)
