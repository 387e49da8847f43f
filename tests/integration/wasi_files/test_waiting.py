"""WASI's pipes, poll, clocks and random bytes: what blocks ends with the deadline."""

from __future__ import annotations

import os
import time

import pytest
from helpers import DEADLINE, PATIENCE, Background
from helpers.wasi import (
    AGAIN,
    BADF,
    INVAL,
    NONBLOCK,
    NOTCAPABLE,
    NOTSUP,
    NXIO,
    OK,
    READ,
    SPIPE,
    WRITE,
    raw,
)

import sandhost
from sandhost import Dir, Wasi


def test_a_fifo_does_not_outlive_the_deadline(plugin, tree):
    os.mkfifo(tree / "fifo")
    limits = sandhost.Limits(deadline=DEADLINE)
    with plugin.spawn(wasi=Wasi(dirs={"/": Dir(tree, True)}), limits=limits) as guest:
        wasi = raw(guest)
        begun = time.monotonic()
        assert wasi.open("fifo", 0, WRITE)[0] == NXIO, "nobody reads"
        fd = wasi.opened("fifo")
        assert wasi.get(fd) == (OK, b""), "nobody writes"
        writer = wasi.opened("fifo", 0, WRITE | 1 << 3)
        with pytest.raises(sandhost.DeadlineExceeded):
            wasi.get(fd)
        assert wasi.put(writer, b"abc") == (OK, 3)
        assert wasi.get(fd) == (OK, b"abc")
        with pytest.raises(sandhost.DeadlineExceeded):
            while True:
                wasi.put(writer, bytes(60000))
        assert time.monotonic() - begun < PATIENCE
        assert wasi.call("fd_fdstat_set_flags", writer, NONBLOCK) == OK
        while (error := wasi.put(writer, bytes(60000))[0]) == OK:
            pass
        assert error == AGAIN
        assert wasi.get(fd, 5, 0)[0] in (SPIPE, NOTCAPABLE)


def test_a_read_that_waits_gets_what_comes_and_can_be_cancelled(plugin, tree):
    os.mkfifo(tree / "fifo")
    with plugin.spawn(wasi=Wasi(dirs={"/": tree})) as guest:
        wasi = raw(guest)
        fd = wasi.opened("fifo")
        with open(tree / "fifo", "wb", buffering=0) as pipe:
            reading = Background(wasi.get, fd)
            time.sleep(0.02)
            pipe.write(b"late")
            assert reading.result() == (OK, b"late")
            reading = Background(wasi.get, fd)
            while not guest.cancel():
                time.sleep(0.001)
            with pytest.raises(sandhost.GuestCancelled):
                reading.result()


def test_a_broken_pipe_is_an_errno_and_no_signal(plugin, tree):
    import signal

    os.mkfifo(tree / "fifo")
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with plugin.spawn(wasi=Wasi(dirs={"/": Dir(tree, True)})) as guest:
            reader = os.open(tree / "fifo", os.O_RDONLY | os.O_NONBLOCK)
            fd = raw(guest).opened("fifo", 0, WRITE)
            os.close(reader)
            assert raw(guest).put(fd, b"x")[0] == 64, "EPIPE"
        assert signal.SIGPIPE not in signal.sigpending()
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_poll_waits_for_files(plugin, tree):
    os.mkfifo(tree / "fifo")

    def subscription(userdata, kind, fd_or_clock, timeout=0, flags=0):
        data = bytearray(48)
        data[0:8], data[8:9] = userdata.to_bytes(8, "little"), bytes([kind])
        data[16:20] = fd_or_clock.to_bytes(4, "little")
        data[24:32], data[40:42] = timeout.to_bytes(8, "little"), flags.to_bytes(2, "little")
        return bytes(data)

    def poll(wasi, *subscriptions):
        wasi.write(65536, b"".join(subscriptions))
        assert wasi.call("poll_oneoff", 65536, 131072, len(subscriptions), 24576) == OK
        count = int.from_bytes(wasi.read(24576, 4), "little")
        data = wasi.read(131072, 32 * count)
        words = [data[k * 32 : k * 32 + 32] for k in range(count)]
        return [(w[0], int.from_bytes(w[8:10], "little"), w[10]) for w in words]

    limits = sandhost.Limits(deadline=5)
    with plugin.spawn(wasi=Wasi(dirs={"/": Dir(tree, True)}), limits=limits) as guest:
        wasi = raw(guest)
        reader = wasi.opened("fifo", 0, READ)
        writer = wasi.opened("fifo", 0, WRITE)
        file = wasi.opened("hello")
        second = 10**9
        assert poll(wasi, subscription(1, 0, 1, 1000), subscription(2, 1, reader)) == [(1, OK, 0)]
        assert poll(wasi, subscription(1, 0, 1, second), subscription(2, 2, writer)) == [(2, OK, 2)]
        wasi.put(writer, b"x")
        assert poll(wasi, subscription(1, 0, 1, second), subscription(2, 1, reader)) == [(2, OK, 1)]
        assert poll(
            wasi, subscription(1, 1, file), subscription(2, 1, 99), subscription(3, 2, 1)
        ) == [
            (1, OK, 1),
            (2, BADF, 1),
            (3, OK, 2),
        ]
        assert poll(wasi, subscription(1, 0, 2), subscription(2, 0, 9)) == [
            (1, NOTSUP, 0),
            (2, INVAL, 0),
        ]
        wasi.write(65536, subscription(1, 3, 0))
        assert wasi.call("poll_oneoff", 65536, 131072, 1, 24576) == INVAL


# ---- clocks and random bytes ----


def test_clocks_go_on_and_tell_their_resolution(wasi):
    def clock(number):
        assert wasi.call("clock_time_get", number, 1, 24576) == OK
        return int.from_bytes(wasi.read(24576, 8), "little")

    assert abs(clock(0) - time.time_ns()) < 10**9 * PATIENCE
    assert abs(clock(1) - time.monotonic_ns()) < 10**9 * PATIENCE
    for number in (2, 3):
        assert 0 < clock(number) <= time.thread_time_ns()
    for number in range(4):
        assert wasi.call("clock_res_get", number, 24576) == OK
        assert 0 < int.from_bytes(wasi.read(24576, 8), "little") < 10**9
    assert wasi.call("clock_time_get", 4, 0, 24576) == wasi.call("clock_res_get", 4, 24576) == INVAL
    assert wasi.call("sched_yield") == OK


def test_random_bytes_are_random(wasi):
    assert wasi.call("random_get", 65536, 300000) == OK
    first = wasi.read(65536, 300000)
    assert wasi.call("random_get", 65536, 300000) == OK
    assert first != wasi.read(65536, 300000)
    assert len(set(first)) == 256
