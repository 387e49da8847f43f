"""The same calls through wasmtime's own WASI and through ours: the same errnos and the same bytes.

Left out is where ours is meant to differ:

    flags of streams                    wasmtime knows none; ours may be set, as of a pipe
    fd_sync of a granted directory      wasmtime: EBADF; a directory can be synced
    DIRECTORY on a link, not followed   wasmtime: ELOOP; Linux: ENOTDIR
    a slash behind what is removed      wasmtime is not Linux there
    fd_allocate                         wasmtime refuses it
    path_* beneath a file               wasmtime: EBADF; ours ENOTDIR, as path_open says in both
    several vectors                     wasmtime takes the first
    clocks of the CPU                   wasmtime has none
    values outside of an enum           wasmtime traps; so it does on pointers outside of the memory
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from helpers.wasi import (
    CREAT,
    DIRECTORY,
    EVERYTHING,
    EXCL,
    MODULE,
    READ,
    SIGNATURES,
    TRUNC,
    WRITE,
    Raw,
    raw,
)

from sandhost import Dir, Wasi

RESULT, DATA = 24576, 65536

PATHS = [
    *("hello", "hello/", "sub", "sub/", "near", "near/", "subway", "subway/", "subway/leaf", "abs"),
    *("up", "loop", "dangling", "", "/hello", "..", "sub/..", "sub/../..", ".", "./", "a\0b"),
    *("x" * 300, "y/" * 3000, "nope", "nope/", "hello/x", "sub/../hello", "empty/"),
]


def make_tree(top: Path) -> Path:
    tree = top / "tree"
    (tree / "sub" / "deep").mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / "hello").write_text("hello world")
    (tree / "sub" / "leaf").write_text("x" * 5000)
    links = {"near": "hello", "subway": "sub", "abs": "/etc/passwd", "up": "../outside"}
    for name, target in {**links, "loop": "loop", "dangling": "gone"}.items():
        (tree / name).symlink_to(target)
    return tree


def theirs(tree: Path, top: Path, writable: bool) -> Raw:
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    config = wasmtime.WasiConfig()
    config.argv = ["program", "argument"]
    config.env = [("K", "v")]
    config.stdin_file = os.devnull
    config.stdout_file, config.stderr_file = str(top / "out"), str(top / "err")
    config.preopen_dir(str(tree), "/data", writable)
    store.set_wasi(config)
    module = wasmtime.Module(engine, wasmtime.wat2wasm(MODULE.decode()))
    exports = linker.instantiate(store, module).exports(store)
    functions: dict[str, Any] = {name: exports[name] for name in SIGNATURES}
    memory: Any = exports["memory"]
    return Raw(
        lambda name, *arguments: functions[name](store, *arguments),
        lambda at, data: memory.write(store, data, at),
        lambda at, length: bytes(memory.read(store, at, at + length)),
    )


def whole(told: tuple[int, tuple[int, ...]]) -> tuple[int, tuple[int, ...]]:
    """Attributes without the times, which differ between two trees."""
    return told[0], told[1][:3]


def calls(wasi: Raw) -> Iterator[tuple[str, object]]:
    """Make the calls, in an order that changes the tree as little as possible."""
    call = wasi.call
    for name in ("args", "environ"):
        yield name, (call(f"{name}_sizes_get", RESULT, RESULT + 4), wasi.read(RESULT, 8))
        yield name, (call(f"{name}_get", RESULT, DATA), wasi.read(RESULT, 8), wasi.read(DATA, 20))
    for fd in (0, 1, 2, 3, 99):
        yield f"fdstat {fd}", wasi.fdstat(fd)[0]
        yield f"stat {fd}", whole(wasi.stat(fd))
        for name, arguments in [
            ("fd_advise", (0, 0, 0)),
            ("fd_filestat_set_size", (3,)),
            ("fd_tell", (RESULT,)),
            ("fd_seek", (0, 0, RESULT)),
            ("fd_prestat_get", (RESULT,)),
            ("fd_readdir", (DATA, 100, 0, RESULT)),
            ("sock_shutdown", (1,)),
            ("sock_accept", (0, RESULT)),
        ]:
            yield f"{name} {fd}", call(name, fd, *arguments)
        yield f"read {fd}", (wasi.get(fd), wasi.get(fd, 10, 0))
        yield f"write {fd}", (wasi.put(fd, b"a"), wasi.put(fd, b"a", 0))
        if fd != 3:
            yield (
                f"below {fd}",
                (wasi.open("hello", fd=fd), wasi.at("path_unlink_file", "x", fd=fd)),
            )
    for path in PATHS:
        for flags in (0, DIRECTORY, CREAT | EXCL, TRUNC, CREAT | DIRECTORY):
            for rights in (READ, READ | WRITE):
                for follow in (True, False):
                    if flags & DIRECTORY and not follow:
                        continue
                    error, fd = wasi.open(path, flags, rights, follow=follow)
                    yield f"open {path[:20]!r} {flags} {rights} {follow}", error
                    if not error:
                        call("fd_close", fd)
        for follow in (True, False):
            yield f"stat {path[:20]!r} {follow}", whole(wasi.stat_at(path, follow=follow))
        yield f"readlink {path[:20]!r}", wasi.readlink(path)
    for path in (
        "hello",
        "sub",
        "sub/",
        "new",
        "new/",
        "loop",
        ".",
        "..",
        "",
        "/x",
        "sub/../n",
        "../x",
    ):
        yield f"mkdir {path!r}", wasi.at("path_create_directory", path)
    for path in ("hello/", "sub", "sub/", "nope", ".", "..", "sub/.", "sub/..", "", "/x", "../x"):
        yield f"unlink {path!r}", wasi.at("path_unlink_file", path)
    for path in ("hello", "sub", "nope", ".", "..", "sub/.", "", "/x", "../x", "subway", "empty"):
        yield f"rmdir {path!r}", wasi.at("path_remove_directory", path)
    for old, new in [("x", "s1"), ("/abs", "s2"), ("../x", "s3"), ("x", "sub"), ("x", "")]:
        yield f"symlink {old!r} {new!r}", wasi.two("path_symlink", old, new)
    for old, new in [
        ("hello", "l1"),
        ("hello", "l1"),
        ("sub", "l2"),
        ("hello/", "l3"),
        ("near", "l4"),
    ]:
        yield f"link {old!r} {new!r}", wasi.two("path_link", old, new)
    for old, new in [("nope", "l5"), ("/f", "l6"), ("hello", "/l"), ("hello", "../l"), (".", "l7")]:
        yield f"link {old!r} {new!r}", wasi.two("path_link", old, new)
    for old, new in [
        *[("hello", "r1"), ("r1", "hello"), ("hello/", "r2"), ("sub", "sub2/"), ("sub2/", "sub")],
        *[("sub", "sub/deep/x"), ("nope", "r3"), ("hello", "sub"), ("sub", "hello"), (".", "r4")],
        *[("sub", "."), ("..", "r5"), ("hello", "../r"), ("hello", "/r"), ("hello", "hello")],
    ]:
        yield f"rename {old!r} {new!r}", wasi.two("path_rename", old, new)
    yield from calls_of_a_file(wasi, wasi.open("hello", 0, EVERYTHING)[1])
    yield from calls_of_a_file(wasi, wasi.open("hello", 0, EVERYTHING & ~WRITE)[1])
    wo = wasi.open("sub/leaf", 0, WRITE)[1]
    yield "read what is written only", wasi.get(wo)
    directory = wasi.open("sub", DIRECTORY, EVERYTHING & ~WRITE)[1]
    yield "up", wasi.open("../hello", fd=directory)[0]
    for room in (40, 4096):
        yield f"names {room}", sorted(wasi.names(directory, room)[1])
    yield "closed", (call("fd_close", directory), call("fd_close", directory))
    yield "raise", call("proc_raise", 6)
    yield "renumber", (call("fd_renumber", 3, 1), wasi.prestat(1), call("fd_close", 3))
    yield "renumber to none", call("fd_renumber", 1, 77)
    yield "close", (call("fd_close", 1), call("fd_close", 0), wasi.get(0))


def calls_of_a_file(wasi: Raw, fd: int) -> Iterator[tuple[str, object]]:
    for name, arguments in [
        ("fd_advise", (0, 5, 2)),
        ("fd_datasync", ()),
        ("fd_sync", ()),
        ("fd_filestat_set_size", (5,)),
        ("fd_filestat_set_size", (2**64 - 1,)),
        ("fd_filestat_set_times", (5, 6, 5)),
        ("fd_filestat_set_times", (5, 6, 3)),
        ("fd_seek", (2**64 - 1, 0, RESULT)),
        ("fd_seek", (2**64 - 100, 1, RESULT)),
        ("fd_seek", (3, 0, RESULT)),
        ("fd_prestat_get", (RESULT,)),
        ("fd_readdir", (DATA, 100, 0, RESULT)),
        ("sock_shutdown", (1,)),
        ("fd_renumber", (50,)),
        ("fd_renumber", (fd,)),
    ]:
        if fd >= 0:
            signed = [value - 2**64 if value >= 2**63 else value for value in arguments]
            yield f"file {name} {arguments}", wasi.call(name, fd, *signed)
    yield "file open below", wasi.open("x", fd=fd)[0]
    yield "file moves", (whole(wasi.stat(fd)), wasi.tell(fd), wasi.get(fd, 4), wasi.put(fd, b"a"))
    yield (
        "file is",
        (wasi.get(fd, 100, 0), wasi.tell(fd), wasi.put(fd, b"b", 1), wasi.get(fd, 9, 0)),
    )


@pytest.mark.parametrize("writable", [True, False])
def test_wasmtime_says_the_same(host, tmp_path, writable):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    expected = list(calls(theirs(make_tree(tmp_path / "theirs"), tmp_path, writable)))
    tree = make_tree(tmp_path / "ours")
    grant = Wasi(argv=["program", "argument"], env={"K": "v"}, dirs={"/data": Dir(tree, writable)})
    with host.load(MODULE).spawn(wasi=grant) as guest:
        found = list(calls(raw(guest)))
    assert len(found) == len(expected) > 500
    different = [(a, b[1]) for a, b in zip(expected, found, strict=True) if a != b]
    assert not different, "\n".join(map(repr, different))
