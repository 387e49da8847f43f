"""Threads that are released together and do everything at once, by a seed.

Short by default. SANDHOST_STRESS_SECONDS makes it longer, SANDHOST_STRESS_SEED repeats a run as far
as the scheduler allows.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time

import pytest
from helpers import POLICIES, balanced, collected, guest_file, open_files

import sandhost
from sandhost import Limits

SECONDS = float(os.environ.get("SANDHOST_STRESS_SECONDS", "2"))
SEED = int(os.environ.get("SANDHOST_STRESS_SEED", "0")) or random.randrange(1, 2**32)

EXPECTED = (
    sandhost.GuestBusy,
    sandhost.GuestClosed,
    sandhost.GuestCancelled,
    sandhost.LimitExceeded,
    sandhost.RegionFullError,
    sandhost.GuestTrap,
)


class Players:
    """Threads that act on shared guests until time is up. What nobody expects stops all of them."""

    def __init__(self, host: sandhost.Host, seconds: float) -> None:
        self.host = host
        self.until = time.monotonic() + seconds
        self.shared: queue.SimpleQueue[sandhost.Guest] = queue.SimpleQueue()
        self.wrong: list[BaseException] = []
        self.acts = 0
        host.function("env", "nop")(self.host_function)
        host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
        names = ("secrets", "bench", "spin", "grow_forever", "hostcall", "echo", "start_trap")
        self.plugins = {name: host.load(guest_file(name)) for name in names}

    def host_function(self, guest: sandhost.Guest) -> None:
        with self.plugins["secrets"].spawn() as inner:
            assert inner.call("scan", 0) == 0
            inner.call("write", 3)

    def play(self, count: int, seed: int) -> None:
        start = threading.Barrier(count)
        threads = [
            threading.Thread(target=self.one_thread, args=(start, random.Random(seed + k)))
            for k in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS + 60)
            assert not thread.is_alive(), "a thread is stuck"
        while not self.shared.empty():
            self.shared.get().close()
        if self.wrong:
            raise self.wrong[0]

    def one_thread(self, start: threading.Barrier, rng: random.Random) -> None:
        start.wait()
        acts = [
            self.fresh_guest,
            self.hand_on,
            self.hand_on,
            self.use_shared,
            self.use_shared,
            self.spin,
            self.grow,
            self.call_host,
            self.command,
            self.failed_spawn,
            self.close_shared,
            self.trim,
        ]
        while time.monotonic() < self.until and not self.wrong:
            self.acts += 1
            try:
                rng.choice(acts)(rng)
            except EXPECTED:
                pass
            except BaseException as error:
                self.wrong.append(error)

    def fresh_guest(self, rng: random.Random) -> None:
        with self.plugins["secrets"].spawn(tenant=rng.choice("abc")) as guest:
            assert guest.call("scan", 0) == 0, "another guest's byte"
            byte = rng.randrange(1, 256)
            guest.call("grow", rng.randrange(4))
            guest.call("write", byte)
            assert guest.call("scan", byte) == 0

    def hand_on(self, rng: random.Random) -> None:
        guest = self.plugins[rng.choice(["bench", "secrets"])].spawn(tenant=rng.choice("abc"))
        self.shared.put(guest)

    def borrowed(self) -> sandhost.Guest | None:
        try:
            guest = self.shared.get_nowait()
        except queue.Empty:
            return None
        self.shared.put(guest)  # others find it at the same time
        return guest

    def use_shared(self, rng: random.Random) -> None:
        guest = self.borrowed()
        if guest is None:
            return
        what = rng.randrange(5)
        if what == 0:
            with guest.memory.view(rng.randrange(60_000), 16) as view:
                view[:4] = b"abcd"
        elif what == 1:
            guest.memory.write(rng.randrange(60_000), b"x" * 100)
            guest.memory.read(0, 1000)
        elif what == 2:
            guest.stats(), guest.cancel()
        elif guest.plugin is self.plugins["bench"]:
            guest.call("dirty", rng.randrange(30))
        else:
            guest.call("write", 1)

    def close_shared(self, rng: random.Random) -> None:
        for _ in range(rng.randrange(8)):
            try:
                guest = self.shared.get_nowait()
            except queue.Empty:
                return
            try:
                guest.close()
            except sandhost.GuestBusy:
                self.shared.put(guest)

    def spin(self, rng: random.Random) -> None:
        with self.plugins["spin"].spawn(
            limits=Limits(deadline=rng.random() * 0.01 + 1e-6)
        ) as guest:
            with pytest.raises(sandhost.DeadlineExceeded):
                guest.call(rng.choice(["spin", "spin_dirtying"]))

    def grow(self, rng: random.Random) -> None:
        limits = Limits(memory=rng.randrange(1, 64) * 65536)
        with self.plugins["grow_forever"].spawn(limits=limits, tenant="small") as guest:
            with pytest.raises(sandhost.OutOfMemory):
                guest.call("until_refused_touching")

    def call_host(self, rng: random.Random) -> None:
        with self.plugins["hostcall"].spawn() as guest:
            guest.call("call_nop", rng.randrange(3))
            assert guest.call("call_inc", 50) == 50

    def command(self, rng: random.Random) -> None:
        status = rng.randrange(3)
        wasi = sandhost.Wasi(argv=["e", str(status)], stdin=b"in")
        with self.plugins["echo"].spawn(wasi=wasi) as guest:
            try:
                guest.call("_start")
            except sandhost.GuestExit as exited:
                assert exited.status == status
        assert guest.stdout == f"arg e\narg {status}\nin".encode()

    def failed_spawn(self, _rng: random.Random) -> None:
        with pytest.raises((sandhost.GuestTrap, sandhost.RegionFullError)):
            self.plugins["start_trap"].spawn()

    def trim(self, _rng: random.Random) -> None:
        self.host.trim()
        self.host.stats()


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_mixed_up_when_threads_do_everything_at_once(policy):
    print(f"SANDHOST_STRESS_SEED={SEED}")
    with sandhost.Host(cache=False, max_guests=48, reclaim=policy, warm_idle=0.02) as host:
        host.tenant("small", memory_limit="4 MiB")
        players = Players(host, SECONDS)
        players.play(6, SEED)
        assert players.acts > 50
        del players
        collected()
        balanced(host)


@pytest.mark.timeout(SECONDS + 120)
def test_hosts_that_come_and_go_under_running_threads_leave_nothing():
    rng = random.Random(SEED)
    with sandhost.Host(cache=False, max_guests=4) as first:
        first.load(guest_file("add")).spawn().close()
    files = open_files()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        host = sandhost.Host(cache=False, max_guests=32, reclaim=rng.choice(POLICIES))
        plugins = [host.load(guest_file(name)) for name in ("secrets", "spin", "bench")]
        start = threading.Barrier(5)
        wrong: list[BaseException] = []

        def work(rng, plugins=plugins, start=start, wrong=wrong):
            start.wait()
            try:
                while True:
                    with rng.choice(plugins).spawn() as guest:
                        if rng.random() < 0.5:
                            guest.memory.write(0, b"x")
                        guest.call(
                            {"secrets": "size", "spin": "spin"}.get(
                                guest.plugin.name.split("/")[-1].split(".")[0], "sum"
                            )
                        )
            except (sandhost.GuestClosed, sandhost.GuestCancelled, sandhost.GuestBusy):
                pass
            except BaseException as error:
                wrong.append(error)

        threads = [
            threading.Thread(target=work, args=(random.Random(rng.random()),)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        start.wait()
        time.sleep(rng.random() * 0.02)
        patience = time.monotonic() + 30
        while True:
            try:
                host.close()
                break
            except sandhost.GuestBusy:
                assert time.monotonic() < patience
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        host.close()
        assert not wrong, wrong
        stats = host.stats()
        assert (stats.guests_live, stats.regions_live, stats.committed_bytes) == (0, 0, 0)
        del host, plugins, work, thread, threads
        collected()
    assert open_files() <= files
