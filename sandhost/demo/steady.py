"""A load that goes on: a host that four tenants keep busy, for whoever wants to see what one looks like.

Two threads spawn, call and keep guests in waves of twelve seconds; one tenant is greedy, and now and
then one misbehaves. A last guest opens objects and forgets them, so that the collector has work.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from types import TracebackType

from ..bench.kernel import resident_bytes
from ..bench.workload import guest_bytes
from ..errors import GuestClosed, SandhostError
from ..guest import Guest
from ..heap_kinds import Handle
from ..host import Host
from ..limits import Limits
from ..plugin import Plugin
from .cast import count_words, dirty_pages

__all__ = ["SteadyLoad"]

_ROOM = 160 << 20
"""What the process may grow by: the crest of a wave is above the first level of pressure."""
_WAVE_S = 12.0
_MOST_HELD = 110
_TENANTS = {"acme": 4, "globex": 2, "initech": 1, "mallory": 1}
_MISDEED_S = 0.5
_PAUSE_S = 0.004
_LIMITS = Limits(memory="16 MiB", deadline=0.05)
_HOARD = Limits(memory="4 MiB", deadline=1.0)
_WORK = (("bench", dirty_pages), ("bench", dirty_pages), ("wordcount", count_words))
_TABLE = """(module
  (import "db" "open" (func $open (param i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "open") (param $times i32) (local $k i32)
    (loop $next
      (i64.store (i32.and (i32.mul (local.get $k) (i32.const 8)) (i32.const 4095))
        (call $open (local.get $k)))
      (br_if $next (i32.lt_u (local.tee $k (i32.add (local.get $k) (i32.const 1)))
        (local.get $times))))))"""


class _Row:
    """What guests of the load hold."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class SteadyLoad:
    """A host and its load, until the `with` block ends."""

    def __init__(self) -> None:
        self.host = Host(
            process_limit=resident_bytes() + _ROOM, memory_limit="1 GiB", warm_total="24 MiB"
        )
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._began_s = time.monotonic()
        self._plugins: dict[str, Plugin] = {}

    def __enter__(self) -> SteadyLoad:
        host = self.host
        host.handles.kind(_Row, size=4000)

        @host.function("db", "open")
        def open_row(number: int) -> Handle[_Row]:
            return _Row(number)

        for name in ("bench", "wordcount", "spin", "grow_forever"):
            self._plugins[name] = host.load(guest_bytes(name), name=name)
        table = host.load(_TABLE.encode(), name="rows")
        for name, weight in _TENANTS.items():
            limit = "24 MiB" if name == "mallory" else None
            host.tenant(name, memory_limit=limit, weight=float(weight))
        jobs = [(self._serve, 1), (self._serve, 2)]
        self._threads = [
            threading.Thread(target=job, args=(seed,), name=f"demo-{seed}", daemon=True)
            for job, seed in jobs
        ]
        self._threads.append(
            threading.Thread(target=self._open, args=(table,), name="demo-rows", daemon=True)
        )
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.host.close()

    def _serve(self, seed: int) -> None:
        chance, held = random.Random(seed), deque[Guest]()
        names, weights = list(_TENANTS), list(_TENANTS.values())
        misdeed_s = 0.0
        while not self._stop.wait(_PAUSE_S):
            now_s = time.monotonic() - self._began_s
            tenant = chance.choices(names, weights)[0]
            try:
                name, work = chance.choice(_WORK)
                guest = self._plugins[name].spawn(limits=_LIMITS, tenant=tenant)
                held.append(guest)
                work(guest, chance)
                if now_s >= misdeed_s:
                    misdeed_s = now_s + _MISDEED_S
                    self._misbehave(chance)
            except SandhostError:
                pass  # refused, or ended under pressure: that is what is to be seen
            wanted = _MOST_HELD * (1.15 - math.cos(2 * math.pi * now_s / _WAVE_S)) / 2.15
            while len(held) > wanted:
                held.popleft().close()
        while held:
            held.popleft().close()

    def _misbehave(self, chance: random.Random) -> None:
        name, function = chance.choice(
            (("spin", "spin"), ("grow_forever", "until_refused_touching"))
        )
        with self._plugins[name].spawn(limits=_LIMITS, tenant="mallory") as guest:
            guest.call(function)

    def _open(self, plugin: Plugin) -> None:
        guest = None
        while not self._stop.wait(0.02):
            try:
                if guest is None:
                    guest = plugin.spawn(limits=_HOARD, tenant="globex")
                guest.call("open", 25)
            except GuestClosed:  # ended under pressure
                guest = None
            except SandhostError:
                pass
        if guest is not None:
            guest.close()
