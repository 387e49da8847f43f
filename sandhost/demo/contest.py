"""The same small guest, by us and by the peers, in turn: what their figures are in this run."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..bench.contenders import Contender, Ours, Samples
from ..bench.peers import PEERS, available, open_peer
from ..bench.sweep import block
from ..bench.workload import built_in

__all__ = ["OPERATIONS", "PAGES", "Contest", "percentile", "run_contest"]

OPERATIONS = ("spawn", "call", "unload", "cycle")
PAGES = 16
_ROUNDS = 5
_SHARE_OF_FIRST = 0.05


@dataclass
class Contest:
    """Durations in ns by contender, then operation, sorted."""

    sorted_ns: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def ratio(self, contender: str, other: str, operation: str) -> float:
        """Return how many times the median of `other` exceeds that of `contender`."""
        ours, theirs = (self.sorted_ns[name][operation] for name in (contender, other))
        return percentile(theirs, 50) / percentile(ours, 50)


def percentile(ascending: Sequence[int], percent: float) -> int:
    """Return the value that `percent` of the samples did not exceed."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def run_contest(seconds: float, step: Callable[[], None]) -> Contest:
    """Run cycles of spawn, call and close, all contenders in turn, `seconds` in all.

    `step` is called after every block.
    """
    contest = Contest()
    workload = built_in(PAGES)
    contenders: list[Contender] = [Ours("warm", workload), Ours("immediate", workload)]
    for peer in PEERS:
        if available(peer):
            contenders.append(open_peer(peer, workload))
        else:
            contest.left_out[peer] = f"not installed: pip install {peer}"
    samples = {contender.name: Samples() for contender in contenders}
    block_s = seconds / _ROUNDS / len(contenders)
    gc.collect()
    gc.freeze()
    try:
        for contender in contenders:
            block(contender, 1, block_s * _SHARE_OF_FIRST)
        for turn in range(_ROUNDS):
            for number in range(len(contenders)):
                contender = contenders[(number + turn) % len(contenders)]
                samples[contender.name].extend(block(contender, 1, block_s)[0])
                step()
    finally:
        gc.unfreeze()
        for contender in contenders:
            contender.close()
    contest.sorted_ns = {
        name: {operation: sorted(taken.of(operation)) for operation in OPERATIONS}
        for name, taken in samples.items()
    }
    return contest
