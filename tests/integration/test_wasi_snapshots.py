"""Snapshots and WASI: what is open is refused by name, and a fork finds its directories in place."""

from __future__ import annotations

import pytest
from helpers.wasi import BADF, DIRECTORY, EVERYTHING, MODULE, NOTCAPABLE, OK, WRITE, raw

import sandhost
from sandhost import Dir, Wasi


@pytest.fixture
def plugin(host):
    return host.load(MODULE)


@pytest.fixture
def trees(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "who").write_text(name)
    return tmp_path


def who(guest, fd):
    error, number = raw(guest).open("who", fd=fd)
    return error or raw(guest).get(number)[1]


def test_open_files_are_refused_by_name(plugin, trees):
    with plugin.spawn(wasi=Wasi(dirs={"/data": trees / "a"})) as guest:
        wasi = raw(guest)
        sub = wasi.opened("sub", DIRECTORY, EVERYTHING & ~WRITE)
        file = wasi.opened("who")
        with pytest.raises(sandhost.ConfigError, match=r"fd 4 \(/data/sub\), fd 5 \(/data/who\)$"):
            guest.snapshot()
        wasi.call("fd_close", sub)
        for _ in range(20):
            wasi.open("../who", fd=3)
            wasi.opened("./who")
        with pytest.raises(sandhost.ConfigError, match=r"fd 11 .* and 13 more$"):
            guest.snapshot()
        for number in range(4, 30):
            wasi.call("fd_close", number)
        assert file == 5
        with guest.snapshot() as snapshot, snapshot.spawn() as fork:
            assert raw(fork).prestat(3) == (OK, b"/data")


def test_a_fork_finds_its_own_directory_under_the_captured_number(plugin, trees):
    warm = Wasi(dirs={"/x": trees / "a", "/y": None, "/z": trees / "b"}, stdin=b"warm")
    with plugin.spawn(wasi=warm) as guest:
        assert raw(guest).get(0, 2) == (OK, b"wa")
        snapshot = guest.snapshot()
    grants = {"/new": trees / "a", "/y": Dir(trees / "c", writable=True), "/x": trees / "b"}
    with snapshot, snapshot.spawn(wasi=Wasi(dirs=grants, stdin=b"fork")) as fork:
        wasi = raw(fork)
        names = [wasi.prestat(fd) for fd in range(3, 8)]
        assert names == [(OK, b"/x"), (OK, b"/y"), (OK, b"/z"), (OK, b"/new"), (BADF, b"")]
        assert [who(fork, fd) for fd in (3, 4, 5, 6)] == [b"b", b"c", NOTCAPABLE, b"a"]
        assert wasi.at("path_create_directory", "made", fd=4) == OK
        assert wasi.get(0) == (OK, b"fork"), "from the start"
    with snapshot.plugin.spawn(wasi=Wasi(dirs={"/x": trees / "b"})) as fresh:
        assert who(fresh, 3) == b"b"


def test_a_fork_without_a_grant_has_names_only(plugin, trees):
    with plugin.spawn(wasi=Wasi(dirs={"/x": trees / "a"})) as guest:
        snapshot = guest.snapshot()
    with snapshot, snapshot.spawn() as fork, fork.snapshot() as again, again.spawn() as third:
        for one in (fork, third):
            assert raw(one).prestat(3) == (OK, b"/x")
            assert who(one, 3) == NOTCAPABLE


def test_closed_and_moved_numbers_stay_so(plugin, trees):
    with plugin.spawn(wasi=Wasi(dirs={"/x": trees / "a", "/y": trees / "b"})) as guest:
        wasi = raw(guest)
        for number in (0, 3):
            assert wasi.call("fd_close", number) == OK
        assert wasi.call("fd_renumber", 4, 2) == OK
        snapshot = guest.snapshot()
    with snapshot, snapshot.spawn(wasi=Wasi(dirs={"/y": trees / "c"})) as fork:
        wasi = raw(fork)
        assert [wasi.fdstat(fd)[0] for fd in range(5)] == [BADF, OK, OK, BADF, BADF]
        assert who(fork, 2) == b"c"
        wasi.put(1, b"out")
        assert (fork.stdout, fork.stderr) == (b"out", b"")


def test_streams_that_are_closed_do_not_move_directories(plugin, trees):
    with plugin.spawn() as guest:
        for number in (0, 1, 2):
            assert raw(guest).call("fd_close", number) == OK
        snapshot = guest.snapshot()
    with snapshot, snapshot.spawn(wasi=Wasi(dirs={"/x": trees / "a"})) as fork:
        assert [raw(fork).prestat(fd)[0] for fd in range(5)] == [BADF, BADF, BADF, OK, BADF]


def test_the_table_is_saved_and_read(host, plugin, trees):
    with plugin.spawn(wasi=Wasi(dirs={"/x": trees / "a", "/ü": None})) as guest:
        with guest.snapshot() as snapshot:
            snapshot.save(trees / "saved")
    with host.load_snapshot(trees / "saved", module=plugin) as loaded:
        with loaded.spawn(wasi=Wasi(dirs={"/ü": trees / "b"})) as fork:
            assert [raw(fork).prestat(fd)[1] for fd in (3, 4)] == [b"/x", "/ü".encode()]
            assert [who(fork, fd) for fd in (3, 4)] == [NOTCAPABLE, b"b"]
