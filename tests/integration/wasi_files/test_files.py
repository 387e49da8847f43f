"""WASI's files: what each function does, with which rights."""

from __future__ import annotations

import errno
import os
import socket
import stat

import pytest
from helpers import failing
from helpers.wasi import (
    APPEND,
    BADF,
    CREAT,
    DIRECTORY,
    EVERYTHING,
    EXCL,
    EXIST,
    INVAL,
    ISDIR,
    NOENT,
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

from sandhost import Dir, Wasi

# ---- bytes ----


def test_bytes_are_written_read_and_sought(wasi, tree):
    fd = wasi.opened("new", CREAT | EXCL, EVERYTHING)
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
    assert wasi.open("new", CREAT | EXCL, EVERYTHING)[0] == EXIST


def test_more_than_a_piece_arrives_whole(wasi, tree, guest):
    data = os.urandom(7 << 20)
    (tree / "large").write_bytes(data)
    with guest.plugin.spawn(wasi=Wasi(dirs={"/": Dir(tree, True)})) as other:
        fd = raw(other).opened("large", 0, EVERYTHING)
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
    fd = wasi.opened("hello", 0, EVERYTHING, fdflags=APPEND)
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
    wasi.opened("hello", TRUNC, EVERYTHING)
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
    assert wasi.open("sub", 0, EVERYTHING)[0] == ISDIR
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
    fd = wasi.opened("hello", 0, EVERYTHING)
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
    assert wasi.open("leaf", 0, EVERYTHING, fd=sub)[0] == NOTCAPABLE
    assert wasi.get(wasi.opened("leaf", fd=sub)) == (OK, b"leaf")
    assert wasi.open("../hello", fd=sub)[0] == PERM, "a directory of its own"


def test_a_read_only_directory_is_changed_by_nothing(read_only, tree):
    wasi = read_only
    before = {path: path.lstat() for path in sorted(tree.rglob("*"))}
    assert wasi.get(wasi.opened("hello", 0, EVERYTHING & ~WRITE)) == (OK, b"hello world")
    for flags, rights in [
        (0, WRITE),
        (0, EVERYTHING),
        (CREAT, READ),
        (TRUNC, READ),
        (CREAT | TRUNC, EVERYTHING),
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
    assert wasi.open("leaf", 0, EVERYTHING, fd=sub)[0] == PERM
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
            wasi.opened("own", CREAT, EVERYTHING, fd=4)
            assert wasi.two(name, "own", "got", fd=4, to=3) == PERM
    assert os.listdir(tmp_path / "rw") == ["own"]


# ---- names ----


def test_names_are_made_moved_and_removed(wasi, tree):
    assert wasi.at("path_create_directory", "made/") == OK
    assert wasi.at("path_create_directory", "made") == EXIST
    assert wasi.at("path_create_directory", "nope/made") == NOENT
    wasi.opened("made/file", CREAT, EVERYTHING)
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
    fd = wasi.opened("hello", 0, EVERYTHING)
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


# ---- the system below ----


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
        wasi.opened("made", CREAT, EVERYTHING)
        wasi.at("path_create_directory", "dir")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tree / "made").stat().st_mode) == 0o644
    assert stat.S_IMODE((tree / "dir").stat().st_mode) == 0o755
