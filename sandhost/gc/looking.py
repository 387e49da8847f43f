"""Which trigger is due, and when to look again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .._log import get_logger
from .cycle import Cycles
from .guards import ForcedBudget
from .pacer import Pacer
from .protocol import Heap
from .triggers import Due, Trigger, Triggers, View

__all__ = ["Looking"]


class Looking:
    """Asks a collector's triggers, which may be the user's own: none of its locks is held meanwhile."""

    def __init__(
        self,
        triggers: Triggers,
        heap: Heap,
        pacer: Pacer,
        cycles: Cycles,
        clock: Callable[[], float],
    ) -> None:
        self._triggers, self._heap, self._pacer = triggers, heap, pacer
        self._cycles, self._clock = cycles, clock
        self._counting = threading.Lock()
        self.policy_errors = 0

    def view(self) -> View:
        """Return what triggers decide by. The collector's lock is held."""
        pacer = self._pacer
        return View(
            now_s=self._clock(),
            last_cycle_s=self._cycles.ended_s,
            cycles=self._cycles.count,
            live_bytes=self._heap.figures().live_bytes,
            marked_bytes=pacer.marked_bytes,
            goal_bytes=pacer.goal_bytes,
            trigger_bytes=pacer.trigger_bytes,
            limit_bytes=pacer.memory_limit_bytes,
            limit_trigger_bytes=pacer.limit_plan().trigger_bytes,
            limited=pacer.limited,
            growing=pacer.percent is not None,
        )

    def who_is_due(
        self, view: View, budget: ForcedBudget, *, paused: bool
    ) -> tuple[Due | None, float | None]:
        """Return the first that is due, and after how many seconds to look again; None: when woken."""
        due, waits = None, []
        for trigger in self._triggers:
            if paused and not trigger.even_paused:
                continue
            answer, wait_s = self._ask(trigger, view, budget)
            waits.append(wait_s)
            if answer and due is None:
                due = Due(trigger.label, None if answer is True else max(int(answer), 1))
        return due, min((wait for wait in waits if wait is not None), default=None)

    def _ask(
        self, trigger: Trigger, view: View, budget: ForcedBudget
    ) -> tuple[bool | int, float | None]:
        try:
            answer, wait_s = trigger.due(view), trigger.wait_s(view)
        except Exception:  # noqa: BLE001 - a user's policy may raise anything
            with self._counting:
                self.policy_errors += 1
            self._triggers.give_up(trigger)
            get_logger("sandhost.gc").exception(
                "a policy failed and is removed", label=trigger.label
            )
            return False, 0.0
        if answer and trigger.label == "limit" and view.now_s < self._cycles.rest_until_s:
            return False, self._cycles.rest_until_s - view.now_s
        if answer and trigger is self._triggers.explicit and budget.defer:
            left_s = budget.wait_s(view.now_s)
            if left_s > 0:
                return False, left_s
            budget.take(view.now_s)
        return answer, wait_s
