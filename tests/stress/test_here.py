"""Calls on event loops, which keep Python's lock, beside threads that do all else: none waits for another for ever.

What native/here.c says of locks is what keeps this from standing still. A process that stands still with
Python's lock held cannot say so; so it is one of its own, which its parent ends.
"""

from __future__ import annotations

import os

from helpers import run_cleanly

SECONDS = float(os.environ.get("SANDHOST_STRESS_SECONDS", "2"))

PROGRAM = """
import asyncio, contextlib, faulthandler, random, signal, threading, time
from sandhost import Limits
from sandhost.observe import capture, guests_profile

SECONDS = {seconds}
faulthandler.dump_traceback_later(SECONDS + 40, exit=True)
HERE = b'''(module (memory (export "memory") 1 64)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "fill") (memory.fill (i32.const 0) (i32.const 7) (i32.const 65536)))
  (func (export "trap") unreachable)
  (func (export "spin") (loop (br 0))))'''
BESIDE = b'''(module (import "env" "now" (func $now (param i32) (result i32)))
  (import "env" "open" (func $open (result i64))) (memory (export "memory") 1)
  (func (export "ask") (param i32) (result i32) (call $now (local.get 0)))
  (func (export "churn") (param i32) (loop (drop (call $open))
    (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0))))
  (func (export "spin") (loop (br 0))))'''

host = sandhost.Host(cache=False, max_guests=16, memory_limit="64 MiB", workers=2)
host.function("env", "now", "(i32) -> i32")(lambda n: n + 1)

@host.function("env", "open")
def open_object() -> sandhost.Handle[list]:
    return [0]

host.gc.percent = 10
here, beside = host.load(HERE, name="here"), host.load(BESIDE, name="beside")
warmed = here.warm("fill")
until = time.monotonic() + SECONDS
wrong, done, shared = [], dict.fromkeys("loop guests loads looks hosts".split(), 0), []
EXPECTED = (sandhost.GuestCancelled, sandhost.GuestClosed, sandhost.GuestBusy, sandhost.LimitExceeded,
    sandhost.RegionFullError, sandhost.GuestTrap, sandhost.DeadlineExceeded, sandhost.GuestEvicted)

async def calls(chance, origin):
    while time.monotonic() < until:
        name, *arguments = chance.choice([("add", 2, 3)] * 9 + [("grow", 9), ("fill",), ("trap",), ("spin",)])
        with contextlib.suppress(*EXPECTED):
            limits = Limits(deadline=0.02)
            got = await origin.call_async(name, *arguments, limits=limits, tenant=chance.choice("abc"))
            assert name != "add" or got == 5
        done["loop"] += 1
        await asyncio.sleep(0)

def loop(chance):
    async def some():
        await asyncio.gather(*(calls(chance, origin) for origin in (here, here, warmed)))
    asyncio.run(some())

def guests(chance):
    while time.monotonic() < until:
        with contextlib.suppress(*EXPECTED), beside.spawn(limits=Limits(deadline=0.02), tenant="a") as guest:
            shared.append(guest)
            assert guest.call("ask", 4) == 5
            guest.call(*chance.choice([("ask", 1), ("churn", 50), ("churn", 50), ("spin",)]))
        with contextlib.suppress(IndexError, *EXPECTED):
            other = shared.pop(chance.randrange(4))
            chance.choice([other.cancel, other.close])()
        done["guests"] += 1

def loads(chance):
    while time.monotonic() < until:
        plugin = host.load(HERE.replace(b"65536", str(chance.randrange(9)).encode()))
        with contextlib.suppress(*EXPECTED):
            assert asyncio.run(plugin.call_async("add", 2, 3)) == 5
            plugin.warm("add", (1, 1)).close()
        done["loads"] += 1

def looks(chance):
    while time.monotonic() < until:
        chance.choice([host.stats, host.gc.collect, host.trim, lambda: capture(host), lambda: guests_profile(host)])()
        done["looks"] += 1

def hosts(chance):
    while time.monotonic() < until:
        with sandhost.Host(cache=False, max_guests=2) as other:
            assert other.load(HERE).call("add", 2, 3) == 5
        done["hosts"] += 1

def thread(work, seed):
    try:
        work(random.Random(seed))
    except BaseException as error:
        wrong.append(error)
        raise

signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
works = [loop, guests, guests, loads, looks, hosts]
threads = [threading.Thread(target=thread, args=(work, k)) for k, work in enumerate(works)]
for each in threads:
    each.start()
thread(loop, 7)  # the main thread, which runs signal handlers
for each in threads:
    each.join()
signal.setitimer(signal.ITIMER_REAL, 0)
warmed.close()
host.close()
assert not wrong and all(done.values()), (wrong, done)
print(done)
"""


def test_nobody_waits_for_ever_for_whoever_keeps_pythons_lock() -> None:
    said = run_cleanly(PROGRAM.format(seconds=SECONDS), timeout=SECONDS + 50)
    print(said)
