"""WASI's files: nothing leads out of what was granted."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest
from helpers import Background, failing, open_files
from helpers.wasi import (
    AGAIN,
    CREAT,
    DIRECTORY,
    EVERYTHING,
    EXCL,
    EXIST,
    ISDIR,
    LOOP,
    NOENT,
    NOTDIR,
    OK,
    PERM,
    READ,
    TRUNC,
    WRITE,
    raw,
)

import sandhost
from sandhost import Wasi

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
        for rights in (READ, WRITE, EVERYTHING):
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
    assert outside.stat() == before  # first: to list it is an access of ours
    assert (outside / "secret").read_text() == "secret"
    assert os.listdir(outside) == ["secret"]
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
