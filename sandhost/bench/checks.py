"""Hold what `close()` reports against what the kernel counts.

Twice, apart from the timed cycles and with nothing else running:

- guest by guest: the private pages of each memory just before close and just after, by
  /proc/self/pagemap. All pages that were there must be reported as returned, kept or deferred, and
  what is reported as returned must be gone.
- a batch of guests alive together: the process's private bytes before and after closing them all,
  by /proc/self/smaps_rollup. Here the peers are measured too, which report nothing.
"""

from __future__ import annotations

import ctypes
import gc
from dataclasses import asdict, dataclass

from ..guest import Guest
from ..regions import Reclaim
from .contenders import Contender, Ours
from .kernel import PAGEMAP, ROLLUP, private_pages, process_private_bytes
from .workload import OS_PAGE

__all__ = ["Check", "check", "held_pages"]


@dataclass
class Check:
    """What became of the memory of guests that ended."""

    guests: int = 0
    """Held against pagemap one by one; 0 for a peer, which reports nothing to hold."""
    mismatches: int = 0
    example: str | None = None
    """The first mismatch."""
    batch_guests: int = 0
    batch_private_bytes: int = 0
    """That the process had more with the guests alive than without."""
    batch_back_bytes: int = 0
    """Less after their close, by the kernel."""
    batch_reported_bytes: int | None = None
    """Returned, by the runtime."""

    def as_json(self) -> dict[str, object]:
        """Return it with the names of the kernel's files."""
        return {**asdict(self), "counted_by": [PAGEMAP, ROLLUP]}


def check(contender: Contender, guests: int, batch: int) -> Check:
    """Run both checks."""
    out = Check()
    if isinstance(contender, Ours):
        contender.trim()
        for _ in range(guests):
            _check_one(contender, out)
        contender.trim()
    contender.hold(1)()  # whatever is made once is there
    gc.collect()
    without = process_private_bytes()
    close_all = contender.hold(batch)
    before = process_private_bytes()
    out.batch_reported_bytes = close_all()
    after = process_private_bytes()
    out.batch_guests = batch
    out.batch_private_bytes = before - without
    out.batch_back_bytes = before - after
    return out


def _check_one(ours: Ours, out: Check) -> None:
    guest = ours.start()
    ranges = _ranges(guest)
    before = sum(private_pages(*r) for r in ranges)
    reclaim = guest.close()
    after = sum(private_pages(*r) for r in ranges)
    out.guests += 1
    wrong = _disagreement(reclaim, before, after)
    if wrong:
        out.mismatches += 1
        out.example = out.example or wrong


def _disagreement(reclaim: Reclaim, before: int, after: int) -> str | None:
    kept, deferred = reclaim.kept_bytes // OS_PAGE, reclaim.deferred_bytes // OS_PAGE
    accounted = reclaim.pages + kept + deferred
    if accounted != before:
        return f"the kernel counted {before} private pages before close, {accounted} are reported"
    if not kept <= after <= kept + deferred:
        return (
            f"the kernel counted {after} private pages after close; "
            f"{kept} are reported as kept, {deferred} as deferred"
        )
    return None


def held_pages(guest: Guest) -> int:
    """Return the private pages of a guest's memories, as the kernel counts them."""
    return sum(private_pages(*r) for r in _ranges(guest))


def _ranges(guest: Guest) -> list[tuple[int, int]]:
    """Return address and length of each memory of a guest."""
    out = []
    for index in range(len(guest.plugin.info.memories)):
        memory = guest.memory_at(index)
        view = memory.view(0, memory.size)
        first = ctypes.c_char.from_buffer(view) if len(view) else None
        if first is not None:
            out.append((ctypes.addressof(first), len(view)))
        del first
        view.release()
    return out
