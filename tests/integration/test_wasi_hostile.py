"""WASI against a guest that hands over whatever it likes: an errno each time, and nothing breaks."""

from __future__ import annotations

import os

import pytest
from helpers import examples
from helpers.wasi import (
    BADF,
    CREAT,
    EVERYTHING,
    FAULT,
    INVAL,
    MFILE,
    MODULE,
    NAMETOOLONG,
    NFILE,
    OK,
    READ,
    SIGNATURES,
    WRITE,
    raw,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sandhost
from sandhost import Dir, Wasi

SIZE = 8 * 65536
RUNS = sorted(SIGNATURES.keys() - {"proc_exit"})

POINTERS = {
    "args_sizes_get": "pp",
    "clock_res_get": "0p",
    "clock_time_get": "00p",
    "environ_sizes_get": "pp",
    "fd_fdstat_get": "3p",
    "fd_filestat_get": "3p",
    "fd_pread": "f pc 0 p",
    "fd_prestat_dir_name": "3pc",
    "fd_prestat_get": "3p",
    "fd_pwrite": "f pc 0 p",
    "fd_read": "f pc p",
    "fd_readdir": "3 pc 0 p",
    "fd_seek": "f00p",
    "fd_tell": "fp",
    "fd_write": "f pc p",
    "path_create_directory": "3pc",
    "path_filestat_get": "30pcp",
    "path_filestat_set_times": "30pc000",
    "path_link": "30pc3pc",
    "path_open": "30pc0000p",
    "path_readlink": "3pcpcp",
    "path_remove_directory": "3pc",
    "path_rename": "3pc3pc",
    "path_symlink": "pc3pc",
    "path_unlink_file": "3pc",
    "poll_oneoff": "pp1p",
    "random_get": "pc",
}
"""What each argument is: a pointer, a count or length, an open file (f), or that number. The others
take no pointer, except args_get and environ_get, whose pointers may be anything when there is
nothing to write."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    return tmp_path


@pytest.fixture
def guest(host, folder):
    wasi = Wasi(argv=["p"], env={"K": "v"}, dirs={"/": Dir(folder, writable=True)})
    with host.load(MODULE).spawn(wasi=wasi, limits=sandhost.Limits(deadline=30)) as guest:
        yield guest
        assert raw(guest).prestat(3) == (OK, b"/"), "it still works"


def arguments(pattern, file, pointer, count):
    good = {"p": 1024, "c": 4, "f": file}
    bad = {"p": pointer, "c": count}
    letters = pattern.replace(" ", "")
    places = [k for k, letter in enumerate(letters) if letter in bad]
    for place in places:
        yield [
            (bad if k == place else good).get(letter, good.get(letter, letter))
            for k, letter in enumerate(letters)
        ]


@pytest.mark.parametrize("name", sorted(POINTERS))
def test_a_pointer_outside_the_memory_is_efault(guest, folder, name):
    file = raw(guest).opened("file", 0, EVERYTHING)
    guest.memory.write(1024, b"abcd" + bytes(60))
    for pointer in (SIZE - 1, SIZE, SIZE + 1, 2**31 - 1, 2**31, 2**32 - 1):
        for values in arguments(POINTERS[name], file, pointer, 4):
            if pointer in values:
                assert guest.call(name, *map(int, values)) == FAULT, values
    assert folder.joinpath("file").read_bytes() == b"0123456789"
    assert sorted(os.listdir(folder)) == ["file"]


@pytest.mark.parametrize("name", sorted(n for n, pattern in POINTERS.items() if "c" in pattern))
def test_a_count_that_no_memory_holds_is_efault(guest, name):
    file = raw(guest).opened("file", 0, EVERYTHING)
    guest.memory.write(1024, b"abcd" + bytes(60))
    for count in (SIZE, 2**28, 2**29, 2**31, 2**32 - 1, 2**32 - 1024):
        for values in arguments(POINTERS[name], file, 1024, count):
            if count in values:
                assert guest.call(name, *map(int, values)) == FAULT, values


@pytest.mark.parametrize("name", ["args", "environ"])
def test_arguments_are_not_written_outside_the_memory(guest, name):
    for pointer in (SIZE - 3, SIZE, 2**31, 2**32 - 1):
        assert guest.call(f"{name}_get", pointer, 0) == FAULT
        assert guest.call(f"{name}_get", 0, max(pointer, SIZE - 1)) == FAULT
    assert guest.call(f"{name}_get", 0, 64) == OK


def test_vectors_are_checked_each_before_anything_moves(guest, folder):
    wasi = raw(guest)
    file = wasi.opened("file", 0, EVERYTHING)
    guest.memory.write(1024, b"AAAA")
    for last in [(SIZE, 1), (SIZE - 1, 2), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1)]:
        vectors = b"".join(word.to_bytes(4, "little") for word in (1024, 4, *last))
        guest.memory.write(2048, vectors)
        for name, more in [
            ("fd_write", ()),
            ("fd_read", ()),
            ("fd_pwrite", (0,)),
            ("fd_pread", (0,)),
        ]:
            assert guest.call(name, file, 2048, 2, *more, 4096) == FAULT
        assert guest.call("fd_write", 1, 2048, 2, 4096) == FAULT
    assert guest.memory.read(1024, 4) == b"AAAA"
    assert (folder / "file").read_bytes() == b"0123456789"
    assert guest.stdout == b""
    whole = (0).to_bytes(4, "little") + SIZE.to_bytes(4, "little")
    guest.memory.write(2048, whole * 1025)
    assert guest.call("fd_write", 1, 2048, 1025, 4096) == INVAL, "more than IOV_MAX"
    assert guest.call("fd_write", 1, 2048, 1024, 4096) == OK
    assert guest.output_dropped == 1024 * SIZE - len(guest.stdout)


def test_paths_of_any_bytes_are_an_errno(guest):
    wasi = raw(guest)
    for path in (b"", b"a\0b", b"\0", b"x" * 4096, b"x" * 256, b"\xff\xfe", b"/" * 4095, b"/"):
        for name in ("path_remove_directory", "path_unlink_file"):
            assert wasi.at(name, path) != OK
        assert wasi.open(path)[0] != OK
        assert wasi.stat_at(path)[0] != OK
    assert guest.call("path_unlink_file", 3, 0, 5000) == NAMETOOLONG


I32 = st.one_of(
    st.integers(0, 5), st.integers(0, 2**32 - 1), st.sampled_from([1024, SIZE - 8, SIZE])
)
I64 = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1), st.sampled_from([2**63 - 1, 2**63]))


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_calls_with_any_arguments_return_an_errno(guest, data):
    guest.memory.write(1024, os.urandom(512))
    raw(guest).open("file", CREAT, READ | WRITE)
    for _ in range(20):
        name = data.draw(st.sampled_from([n for n in RUNS if n not in ("fd_close", "fd_renumber")]))
        values = [data.draw(I32 if kind == "i" else I64) for kind in SIGNATURES[name]]
        if name == "poll_oneoff":
            values[2] = 0  # it may wait for long
        if name == "fd_allocate":
            values[2] %= 2**20
        if name == "fd_filestat_set_size":
            values[1] %= 2**20
        if name == "fd_fdstat_set_rights":
            values[0] = 4  # the directory stays as it is
        assert 0 <= guest.call(name, *values) <= 76
    for number in range(4, 200):
        guest.call("fd_close", number)


def test_numbers_of_files_are_bounded(guest, folder):
    wasi = raw(guest)
    for number in (4, 5, 1000, 1023, 1024, 2**31 - 1, 2**31, 2**32 - 1):
        for name in ("fd_close", "fd_sync", "fd_tell", "fd_fdstat_get"):
            assert guest.call(name, number, *[1024] * (len(SIGNATURES[name]) - 1)) == BADF
        assert guest.call("fd_renumber", 3, number) == BADF
        assert guest.call("fd_renumber", number, 3) == BADF
        assert wasi.open("file", fd=number)[0] == BADF


def test_a_guest_runs_out_of_files_before_the_process_does(guest, folder):
    wasi = raw(guest)
    count, error = 0, OK
    while not error:
        error, _ = wasi.open("file")
        count += not error
    assert error in (MFILE, NFILE)
    assert 100 < count <= 1020
    with open(folder / "file"):
        pass  # there are some left for the host
    assert wasi.open(f"new{count}", CREAT)[0] == error
    assert sorted(os.listdir(folder)) == ["file"], "refused before it was created"
    assert guest.call("fd_close", 100) == OK
    assert wasi.open("file") == (OK, 100), "the lowest free number"


def test_all_files_of_a_guest_are_closed_with_it(host, folder):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    plugin = host.load(MODULE)
    wasi = Wasi(dirs={"/": folder})
    plugin.spawn(wasi=wasi).close()
    before = descriptors()
    for _ in range(3):
        with plugin.spawn(wasi=wasi) as guest:
            for _ in range(40):
                raw(guest).opened("file")
            raw(guest).names(3)
            assert guest.call("fd_renumber", 10, 3) == OK
            assert descriptors() >= before + 40
        assert descriptors() == before


def test_open_files_are_charged_to_the_tenant(host, folder):
    tenant = host.tenant("a", memory_limit=8 * 65536 + 10 * 4096)
    with host.load(MODULE).spawn(wasi=Wasi(dirs={"/": folder}), tenant=tenant) as guest:
        errors = [raw(guest).open("file")[0] for _ in range(12)]
        assert errors == [OK] * 10 + [48] * 2, "ENOMEM"
        guest.call("fd_close", 4)
        assert raw(guest).open("file") == (OK, 4)


def test_without_memory_pointers_are_refused(host):
    text = b"""(module (import "wasi_snapshot_preview1" "random_get"
        (func $random (param i32 i32) (result i32)))
        (func (export "random") (param i32 i32) (result i32)
          (call $random (local.get 0) (local.get 1))))"""
    with host.load(text).spawn() as guest:
        assert guest.call("random", 0, 1) == FAULT
        assert guest.call("random", 0, 0) == OK
