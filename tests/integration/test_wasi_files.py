"""WASI's files: what each function does, and that nothing leads out of what was granted."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
import time

import pytest
from helpers import DEADLINE, PATIENCE, Background, failing, open_files
from helpers.wasi import (
    AGAIN,
    APPEND,
    BADF,
    CREAT,
    DIRECTORY,
    EVERYTHING,
    EXCL,
    EXIST,
    INVAL,
    ISDIR,
    LOOP,
    MODULE,
    NOENT,
    NONBLOCK,
    NOTCAPABLE,
    NOTDIR,
    NOTEMPTY,
    NOTSUP,
    NXIO,
    OK,
    PERM,
    READ,
    SPIPE,
    TRUNC,
    WRITE,
    raw,
)

import sandhost
from sandhost import Dir, Wasi

BOTH = EVERYTHING


@pytest.fixture
def tree(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "sub" / "deep").mkdir(parents=True)
    outside.mkdir()
    (inside / "hello").write_text("hello world")
    (inside / "sub" / "leaf").write_text("leaf")
    (outside / "secret").write_text("secret")
    (inside / "near").symlink_to("sub/leaf")
    (inside / "abs").symlink_to(outside / "secret")
    (inside / "up").symlink_to("../outside/secret")
    (inside / "updir").symlink_to("../outside")
    (inside / "loop").symlink_to("loop")
    return inside


@pytest.fixture
def plugin(host):
    return host.load(MODULE)


@pytest.fixture
def guest(plugin, tree):
    wasi = Wasi(dirs={"/data": Dir(tree, writable=True)})
    with plugin.spawn(wasi=wasi, limits=sandhost.Limits(deadline=60)) as guest:
        yield guest


@pytest.fixture
def wasi(guest):
    return raw(guest)


@pytest.fixture
def read_only(plugin, tree):
    with plugin.spawn(wasi=Wasi(dirs={"/data": tree})) as guest:
        yield raw(guest)


# ---- bytes ----


def test_bytes_are_written_read_and_sought(wasi, tree):
    fd = wasi.opened("new", CREAT | EXCL, BOTH)
    assert wasi.put(fd, b"0123456789") == (OK, 10)
    assert wasi.tell(fd) == (OK, 10)
    assert wasi.get(fd) == (OK, b"")
    assert wasi.seek(fd, 2, 0) == (OK, 2)
    assert wasi.get(fd, 3) == (OK, b"234")
    assert wasi.seek(fd, -1, 1) == (OK, 4)
    assert wasi.seek(fd, -2, 2) == (OK, 8)
    assert wasi.put(fd, b"XY", 0) == (OK, 2)
    assert wasi.get(fd, 4, 0) == (OK, b"XY23")
    assert wasi.tell(fd) == (OK, 8), "a position of their own"
    assert wasi.seek(fd, 0, 3)[0] == wasi.seek(fd, -1, 0)[0] == INVAL
    assert wasi.get(fd, 1, 2**63)[0] == wasi.put(fd, b"x", 2**64 - 1)[0] == INVAL
    assert (tree / "new").read_bytes() == b"XY23456789"
    assert wasi.open("new", CREAT | EXCL, BOTH)[0] == EXIST


def test_more_than_a_piece_arrives_whole(wasi, tree, guest):
    data = os.urandom(7 << 20)
    (tree / "large").write_bytes(data)
    with guest.plugin.spawn(wasi=Wasi(dirs={"/": Dir(tree, True)})) as other:
        fd = raw(other).opened("large", 0, BOTH)
        room = 8 * 65536
        got = b""
        for _ in range(20):
            vectors = [(k * 64, 64) for k in range(1000)] + [(64000, room - 64000 - 8192)]
            flat = b"".join(w.to_bytes(4, "little") for v in vectors for w in v)
            other.memory.write(room - len(flat) - 8, flat)
            if len(flat) + 8 > 8192:
                other.memory.write(room - 8192, flat[:8184])
            assert other.call("fd_read", fd, room - len(flat) - 8, len(vectors), room - 4) == OK
            length = int.from_bytes(other.memory.read(room - 4, 4), "little")
            got += bytes(other.memory.read(0, length))
    assert got == data


def test_appending_and_truncating(wasi, tree):
    fd = wasi.opened("hello", 0, BOTH, fdflags=APPEND)
    assert wasi.fdstat(fd)[1][:2] == (4, APPEND)
    assert wasi.put(fd, b"!") == (OK, 1)
    assert (tree / "hello").read_text() == "hello world!"
    assert wasi.call("fd_fdstat_set_flags", fd, 0) == OK
    assert wasi.seek(fd, 0, 0)[0] == OK
    wasi.put(fd, b"J")
    assert wasi.call("fd_fdstat_set_flags", fd, APPEND) == OK
    wasi.put(fd, b"?")
    assert (tree / "hello").read_text() == "Jello world!?"
    assert (
        wasi.call("fd_fdstat_set_flags", fd, 2) == wasi.call("fd_fdstat_set_flags", fd, 64) == INVAL
    )
    assert wasi.call("fd_filestat_set_size", fd, 4) == OK
    assert (tree / "hello").read_text() == "Jell"
    assert wasi.call("fd_filestat_set_size", fd, 2**63) == INVAL
    assert wasi.call("fd_allocate", fd, 0, 100) == OK
    assert (tree / "hello").stat().st_size == 100
    assert wasi.call("fd_allocate", fd, 0, 0) == INVAL
    assert wasi.call("fd_allocate", fd, 2**63 - 1, 2) == 22, "EFBIG"
    wasi.opened("hello", TRUNC, BOTH)
    assert (tree / "hello").stat().st_size == 0
    for advice in range(6):
        assert wasi.call("fd_advise", fd, 0, 10, advice) == OK
    assert wasi.call("fd_advise", fd, 0, 10, 6) == INVAL
    assert wasi.call("fd_sync", fd) == wasi.call("fd_datasync", fd) == OK
    assert wasi.call("fd_sync", 3) == wasi.call("fd_datasync", 3) == OK


def test_streams_are_no_files(wasi):
    for fd in (0, 1, 2):
        assert wasi.stat(fd) == (OK, (0, 0, 0, 0, 0, 0))
        assert wasi.fdstat(fd)[1][:2] == (0, 0)
        assert wasi.seek(fd, 0, 0)[0] == wasi.tell(fd)[0] == SPIPE
        assert wasi.call("fd_sync", fd) == wasi.call("fd_filestat_set_size", fd, 1) == BADF
        assert wasi.open("hello", fd=fd)[0] == wasi.at("path_create_directory", "x", fd=fd) == BADF
    assert wasi.put(0, b"x")[0] == wasi.get(1)[0] == BADF
    assert wasi.get(0, 5, 0)[0] == wasi.put(1, b"x", 0)[0] == SPIPE


def test_a_directory_is_no_file_and_a_file_no_directory(wasi):
    assert wasi.get(3)[0] == wasi.put(3, b"x")[0] == wasi.seek(3, 0, 0)[0] == BADF
    assert wasi.call("fd_filestat_set_size", 3, 0) == wasi.call("fd_allocate", 3, 0, 1) == BADF
    fd = wasi.opened("hello")
    assert wasi.open("x", fd=fd)[0] == wasi.at("path_create_directory", "x", fd=fd) == NOTDIR
    assert wasi.names(fd)[0] == BADF
    assert wasi.open("hello", DIRECTORY)[0] == wasi.open("hello/x")[0] == NOTDIR
    assert wasi.open("sub", 0, BOTH)[0] == ISDIR
    assert wasi.open("sub", CREAT | DIRECTORY)[0] == INVAL


# ---- rights ----


def test_a_file_has_the_rights_that_were_asked_for(wasi):
    fd = wasi.opened("hello", 0, READ)
    assert wasi.put(fd, b"x")[0] == BADF, "opened for reading"
    assert wasi.seek(fd, 0, 0)[0] == NOTCAPABLE
    assert wasi.fdstat(fd)[1][2] == READ
    fd = wasi.opened("hello", 0, WRITE)
    assert wasi.get(fd)[0] == BADF


def test_rights_are_given_away_for_good(wasi):
    fd = wasi.opened("hello", 0, BOTH)
    (kind, flags, rights, inheriting) = wasi.fdstat(fd)[1]
    assert rights & READ
    assert rights & WRITE
    assert wasi.call("fd_fdstat_set_rights", fd, READ, 0) == OK
    assert wasi.fdstat(fd)[1] == (kind, flags, READ, 0)
    assert wasi.call("fd_fdstat_set_rights", fd, rights, inheriting) == NOTCAPABLE
    assert wasi.put(fd, b"x")[0] == BADF
    assert wasi.call("fd_sync", fd) == NOTCAPABLE


def test_a_directory_passes_on_what_it_may(wasi):
    sub = wasi.opened("sub", DIRECTORY, EVERYTHING & ~WRITE, inheriting=EVERYTHING & ~WRITE)
    assert wasi.open("leaf", 0, BOTH, fd=sub)[0] == NOTCAPABLE
    assert wasi.get(wasi.opened("leaf", fd=sub)) == (OK, b"leaf")
    assert wasi.open("../hello", fd=sub)[0] == PERM, "a directory of its own"


def test_a_read_only_directory_is_changed_by_nothing(read_only, tree):
    wasi = read_only
    before = {path: path.lstat() for path in sorted(tree.rglob("*"))}
    assert wasi.get(wasi.opened("hello", 0, EVERYTHING & ~WRITE)) == (OK, b"hello world")
    for flags, rights in [
        (0, WRITE),
        (0, BOTH),
        (CREAT, READ),
        (TRUNC, READ),
        (CREAT | TRUNC, BOTH),
    ]:
        assert wasi.open("hello", flags, rights)[0] == PERM
        assert wasi.open("new", flags | CREAT, rights)[0] == PERM
    for name in ("path_create_directory", "path_remove_directory", "path_unlink_file"):
        assert wasi.at(name, "sub/deep") == PERM
    for name in ("path_link", "path_rename", "path_symlink"):
        assert wasi.two(name, "hello", "new") == PERM
    assert wasi.set_times("hello", 1, 1, 5) == PERM
    assert wasi.call("fd_filestat_set_times", 3, 1, 1, 5) == PERM
    sub = wasi.opened("sub", DIRECTORY, EVERYTHING & ~WRITE)
    assert wasi.open("leaf", 0, BOTH, fd=sub)[0] == PERM
    fd = wasi.opened("leaf", 0, EVERYTHING & ~WRITE, fd=sub)
    assert wasi.put(fd, b"x")[0] == BADF
    for name, arguments in [
        ("fd_allocate", (0, 100)),
        ("fd_filestat_set_size", (0,)),
        ("fd_filestat_set_times", (1, 1, 5)),
    ]:
        assert wasi.call(name, fd, *arguments) == PERM
    assert {path: path.lstat() for path in sorted(tree.rglob("*"))} == before


def test_no_link_or_rename_crosses_from_a_read_only_directory(plugin, tree, tmp_path):
    (tmp_path / "rw").mkdir()
    grants = {"/ro": tree, "/rw": Dir(tmp_path / "rw", writable=True)}
    with plugin.spawn(wasi=Wasi(dirs=grants)) as guest:
        wasi = raw(guest)
        assert [wasi.prestat(fd) for fd in (3, 4, 5)] == [(OK, b"/ro"), (OK, b"/rw"), (BADF, b"")]
        for name in ("path_link", "path_rename"):
            assert wasi.two(name, "hello", "got", fd=3, to=4) == PERM
            wasi.opened("own", CREAT, BOTH, fd=4)
            assert wasi.two(name, "own", "got", fd=4, to=3) == PERM
    assert os.listdir(tmp_path / "rw") == ["own"]


# ---- names ----


def test_names_are_made_moved_and_removed(wasi, tree):
    assert wasi.at("path_create_directory", "made/") == OK
    assert wasi.at("path_create_directory", "made") == EXIST
    assert wasi.at("path_create_directory", "nope/made") == NOENT
    wasi.opened("made/file", CREAT, BOTH)
    assert wasi.two("path_rename", "made/file", "made/moved") == OK
    assert wasi.two("path_rename", "made/moved/", "made/x") == NOTDIR
    assert wasi.two("path_link", "made/moved", "sub/linked") == OK
    assert (tree / "sub" / "linked").samefile(tree / "made" / "moved")
    assert wasi.two("path_link", "made/moved", "sub/linked") == EXIST
    assert wasi.two("path_link", "sub", "sub2") == PERM
    assert wasi.at("path_remove_directory", "made") == NOTEMPTY
    assert wasi.at("path_unlink_file", "made") == wasi.at("path_unlink_file", "made/") == ISDIR
    assert wasi.at("path_unlink_file", "made/moved/") == NOTDIR
    assert wasi.at("path_unlink_file", "made/moved") == OK
    assert wasi.at("path_unlink_file", "made/moved") == NOENT
    assert wasi.two("path_rename", "made/", "again/") == OK
    assert wasi.at("path_remove_directory", "again") == OK
    assert wasi.at("path_remove_directory", "hello") == NOTDIR
    assert wasi.two("path_symlink", "sub/leaf", "way") == OK
    assert wasi.readlink("way") == (OK, b"sub/leaf")
    assert wasi.readlink("way", 3) == (OK, b"sub"), "as much as there is room for"
    assert wasi.readlink("hello")[0] == INVAL
    assert wasi.at("path_unlink_file", "way") == OK
    assert (tree / "sub" / "leaf").read_text() == "leaf"


@pytest.mark.parametrize("path", [".", "..", "sub/.", "sub/..", "./", "sub/../"])
def test_no_name_is_made_of_dots(wasi, path):
    for name in ("path_create_directory", "path_remove_directory", "path_unlink_file"):
        assert wasi.at(name, path) not in (OK, NOENT)
    for name in ("path_rename", "path_link", "path_symlink"):
        assert wasi.two(name, "hello", path) not in (OK, NOENT)
    assert wasi.two("path_rename", path, "x") != OK
    assert wasi.two("path_link", path, "x") != OK


def test_attributes_are_told_and_changed(wasi, tree):
    before = (tree / "hello").stat()
    told = wasi.stat_at("hello")[1]
    assert told == (4, 1, 11, before.st_atime_ns, before.st_mtime_ns, before.st_ctime_ns)
    assert wasi.stat(wasi.opened("hello")) == (OK, told)
    assert wasi.stat_at("near")[1][0] == 4
    assert wasi.stat_at("near", follow=False)[1][0] == 7
    assert wasi.stat_at("sub")[1][0] == wasi.stat_at("sub/")[1][0] == wasi.stat(3)[1][0] == 3
    assert wasi.set_times("hello", 10**9, 2 * 10**9 + 5, 1 | 4) == OK
    assert ((tree / "hello").stat().st_atime_ns, (tree / "hello").stat().st_mtime_ns) == (
        10**9,
        2 * 10**9 + 5,
    )
    assert wasi.set_times("hello", 0, 7, 4) == OK
    assert (tree / "hello").stat().st_atime_ns == 10**9
    assert wasi.set_times("hello", 0, 0, 2 | 8) == OK
    assert (tree / "hello").stat().st_mtime_ns >= before.st_mtime_ns - 10**9
    assert wasi.set_times("hello", 0, 0, 1 | 2) == wasi.set_times("hello", 0, 0, 16) == INVAL
    fd = wasi.opened("hello", 0, BOTH)
    assert wasi.call("fd_filestat_set_times", fd, 3 * 10**9, 4 * 10**9, 5) == OK
    assert (tree / "hello").stat().st_mtime == 4
    assert wasi.call("fd_filestat_set_times", 3, 3 * 10**9, 4 * 10**9, 5) == OK
    assert tree.stat().st_mtime == 4


def test_a_directory_is_listed_with_any_buffer(wasi, tree):
    expected = {b".": 3, b"..": 3, b"hello": 4, b"sub": 3, b"near": 7, b"abs": 7, b"up": 7}
    expected |= {b"updir": 7, b"loop": 7}
    for room in (32, 33, 48, 100, 4096):
        error, found = wasi.names(3, room)
        assert (error, dict(found), len(found)) == (OK, expected, len(expected))
    for k in range(700):
        (tree / "sub" / "deep" / f"{k:03}{'x' * 100}").touch()
    deep = wasi.opened("sub/deep", DIRECTORY, EVERYTHING & ~WRITE)
    found = [name for name, _ in wasi.names(deep, 4096)[1]]
    assert len(found) == len(set(found)) == 702
    assert wasi.call("fd_readdir", deep, 65536, 100, 2**63, 24576) == INVAL


def test_what_lies_above_is_not_told(wasi, tree):
    error = wasi.call("fd_readdir", 3, 65536, 4096, 0, 24576)
    data, at, inodes = wasi.read(65536, 4096), 0, {}
    assert error == OK
    for _ in range(9):
        length = int.from_bytes(data[at + 16 : at + 20], "little")
        inodes[data[at + 24 : at + 24 + length]] = int.from_bytes(data[at + 8 : at + 16], "little")
        at += 24 + length
    assert inodes[b".."] == inodes[b"."] == tree.stat().st_ino


# ---- nothing leads out ----

ESCAPES = [
    "../outside/secret",
    "sub/../../outside/secret",
    "sub/deep/../../../outside/secret",
    "abs",
    "up",
    "updir/secret",
    "sub/../updir/secret",
    "/etc/passwd",
    "//etc/passwd",
    "..",
    "updir",
    "updir/",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out(wasi, tree, path):
    outside = tree.parent / "outside"
    before = outside.stat()
    for flags in (0, CREAT, TRUNC, DIRECTORY, CREAT | EXCL):
        for rights in (READ, WRITE, BOTH):
            assert wasi.open(path, flags, rights)[0] in (PERM, EXIST, ISDIR)
    assert wasi.stat_at(path)[0] == PERM
    assert wasi.set_times(path, 1, 1, 5) == PERM
    if path not in ("abs", "up", "updir"):  # those are names inside
        for name in ("path_create_directory", "path_remove_directory", "path_unlink_file"):
            assert wasi.at(name, path + "/x") in (PERM, NOTDIR)
            assert wasi.at(name, path) in (PERM, NOTDIR, ISDIR, EXIST)
        for name in ("path_link", "path_rename"):
            assert wasi.two(name, path, "got") in (PERM, NOTDIR)
            assert wasi.two(name, "hello", path) in (PERM, NOTDIR, EXIST)
    assert wasi.two("path_symlink", "hello", path) in (PERM, EXIST)
    assert wasi.two("path_link", "hello", path + "/x") in (PERM, NOTDIR)
    assert (outside / "secret").read_text() == "secret"
    assert os.listdir(outside) == ["secret"]
    assert outside.stat() == before
    assert not (tree / "got").exists()


def test_links_are_followed_inside_only(wasi, tree):
    assert wasi.get(wasi.opened("near")) == (OK, b"leaf")
    assert wasi.open("near", follow=False)[0] == LOOP
    assert wasi.open("loop")[0] == LOOP
    assert wasi.readlink("abs")[0] == PERM, "tells of the host"
    assert wasi.readlink("up") == (OK, b"../outside/secret")
    assert wasi.two("path_symlink", "/etc", "etc") == PERM
    assert wasi.two("path_symlink", "../../outside", "sub/out") == OK, "leads nowhere"
    assert wasi.open("sub/out/secret")[0] == PERM
    assert not (tree / "etc").exists()


def test_magic_links_are_not_followed(plugin):
    with plugin.spawn(wasi=Wasi(dirs={"/p": "/proc/self"})) as guest:
        wasi = raw(guest)
        assert wasi.open("comm")[0] == OK
        for path in ("root/etc/passwd", "cwd", "exe", "fd/0"):
            assert wasi.open(path)[0] in (LOOP, PERM)
            assert wasi.stat_at(path)[0] in (LOOP, PERM)


def test_a_link_that_is_swapped_all_the_time_never_leads_out(wasi, tree):
    stop = threading.Event()
    (tree / "swap").mkdir()
    (tree / "swap" / "secret").write_text("inside")

    def swap():
        while not stop.is_set():
            os.rename(tree / "swap", tree / "kept")
            os.symlink("../outside", tree / "swap")
            os.unlink(tree / "swap")
            os.rename(tree / "kept", tree / "swap")

    swapping = Background(swap)
    try:
        seen = set()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            error, fd = wasi.open("swap/secret")
            seen.add(error)
            if not error:
                assert wasi.get(fd) == (OK, b"inside")
                wasi.call("fd_close", fd)
            wasi.at("path_unlink_file", "swap/made")
            assert wasi.at("path_create_directory", "swap/made") in (OK, NOENT, PERM, EXIST, AGAIN)
    finally:
        stop.set()
        swapping.result()
    assert os.listdir(tree.parent / "outside") == ["secret"]
    assert seen <= {OK, NOENT, PERM, AGAIN}


def test_a_directory_stays_the_one_that_was_granted(plugin, tree):
    granted = Wasi(dirs={"/": tree})
    plugin.spawn(wasi=granted).close()
    tree.rename(tree.parent / "moved")
    with plugin.spawn(wasi=granted) as guest:
        assert raw(guest).get(raw(guest).opened("hello")) == (OK, b"hello world")


# ---- the table ----


def test_numbers_are_closed_and_renumbered(wasi, guest):
    one, two = wasi.opened("hello"), wasi.opened("sub/leaf")
    assert (one, two) == (4, 5)
    assert wasi.call("fd_renumber", two, one) == OK
    assert wasi.get(one) == (OK, b"leaf")
    assert wasi.get(two)[0] == BADF
    assert wasi.call("fd_renumber", one, one) == OK
    assert wasi.call("fd_renumber", one, 50) == BADF
    assert wasi.call("fd_renumber", one, 0) == OK, "as dup2 over standard input"
    assert wasi.seek(0, 0, 0)[0] == OK
    assert wasi.get(0) == (OK, b"leaf")
    assert wasi.call("fd_renumber", 1, 2) == OK
    wasi.put(2, b"to stdout")
    assert (guest.stdout, guest.stderr) == (b"to stdout", b"")
    assert wasi.call("fd_close", 2) == OK
    assert wasi.put(2, b"x")[0] == wasi.call("fd_close", 2) == BADF
    assert wasi.call("fd_close", 3) == OK
    assert wasi.open("hello")[0] == wasi.prestat(3)[0] == BADF


def test_a_name_with_nothing_behind_it_can_be_asked_for_and_no_more(plugin, tree):
    with plugin.spawn(wasi=Wasi(dirs={"/data": None, "/real": tree})) as guest:
        wasi = raw(guest)
        assert [wasi.prestat(fd) for fd in (3, 4)] == [(OK, b"/data"), (OK, b"/real")]
        assert wasi.open("hello")[0] == wasi.stat_at("hello")[0] == wasi.stat(3)[0] == NOTCAPABLE
        assert wasi.fdstat(3)[0] == wasi.names(3)[0] == wasi.call("fd_sync", 3) == NOTCAPABLE
        assert wasi.at("path_create_directory", "x") == NOTCAPABLE
        assert wasi.two("path_rename", "hello", "x", fd=4, to=3) in (NOTCAPABLE, PERM)
        assert wasi.get(wasi.opened("hello", fd=4)) == (OK, b"hello world")
        assert wasi.call("fd_close", 3) == OK
        assert wasi.prestat(3)[0] == BADF


def test_there_are_no_sockets_and_no_signals(wasi, tree):
    assert wasi.call("proc_raise", 6) == NOTSUP
    for name, count in [
        ("sock_accept", 2),
        ("sock_recv", 5),
        ("sock_send", 4),
        ("sock_shutdown", 1),
    ]:
        assert wasi.call(name, 3, *[0] * count) == 57, "ENOTSOCK"
        assert wasi.call(name, 99, *[0] * count) == BADF
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tree / "sock"))
        assert wasi.open("sock")[0] == NXIO


# ---- what would block ----


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


# ---- grants ----


@pytest.mark.parametrize(
    ("error", "words"),
    [(errno.ENOSYS, "openat2"), (errno.EPERM, "openat2"), (errno.EMFILE, "cannot open")],
)
def test_without_openat2_no_directory_is_granted(plugin, tree, error, words):
    before = open_files()
    with failing("OPEN_BENEATH", error=error):
        with pytest.raises(sandhost.ConfigError, match=words):
            plugin.spawn(wasi=Wasi(dirs={"/": tree}))
    assert open_files() == before
    plugin.spawn(wasi=Wasi(dirs={"/": tree})).close()


def test_an_error_of_the_system_reaches_the_guest(wasi):
    for error, number in [
        (errno.EMFILE, 33),
        (errno.ENFILE, 41),
        (errno.EIO, 29),
        (errno.ENOMEM, 48),
    ]:
        with failing("OPEN_BENEATH", error=error):
            assert wasi.open("hello")[0] == number
        with failing("OPEN_BENEATH", error=error):
            assert wasi.at("path_create_directory", "sub/x") == number
    with failing("OPEN_BENEATH", error=errno.EAGAIN, times=3):
        assert wasi.open("hello")[0] == OK, "tried again"
    with failing("OPEN_BENEATH", error=errno.EUCLEAN):
        assert wasi.open("hello")[0] == 29, "EIO, for what WASI has no name"


def test_modes_and_umask_are_as_everywhere(wasi, tree):
    mask = os.umask(0o022)
    try:
        wasi.opened("made", CREAT, BOTH)
        wasi.at("path_create_directory", "dir")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tree / "made").stat().st_mode) == 0o644
    assert stat.S_IMODE((tree / "dir").stat().st_mode) == 0o755
