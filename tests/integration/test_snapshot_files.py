"""Saved snapshots: small, mapped, bound to their module, and refused when anything is wrong."""

from __future__ import annotations

import json
import os
import random
import stat
import threading

import pytest
from helpers import (
    PAGE,
    Background,
    balanced,
    collected,
    failing,
    guest_file,
    open_files,
    run_cleanly,
)

import sandhost
from sandhost import Limits, SnapshotError, snapshot_file


@pytest.fixture
def stateful(host):
    return host.load(guest_file("stateful"))


@pytest.fixture
def saved(stateful, tmp_path):
    """A file, and the bytes of the memory that it holds."""
    with stateful.spawn() as guest:
        guest.call("store", 100_000, 42)
        guest.call("set", 8)
        guest.call("grow table", 2)
        guest.call("drop text")
        with guest.snapshot() as snapshot:
            snapshot.save(tmp_path / "a.snapshot")
    return tmp_path / "a.snapshot"


def header_of(path):
    with open(path, "rb") as file:
        return snapshot_file.read_header(file, str(path))


def rewritten(path, change):
    """Save a copy whose header was changed, with a checksum that fits it."""
    header = header_of(path)
    data = path.read_bytes()[header.data_start :]
    change(header.document)
    text = json.dumps(header.document).encode()
    prefix = snapshot_file._PREFIX.pack(
        snapshot_file._MAGIC,
        snapshot_file.FORMAT_VERSION,
        len(text),
        snapshot_file.hashlib.sha256(text).digest(),
    )
    copy = path.with_name("changed.snapshot")
    head = prefix + text
    copy.write_bytes(head + bytes(-len(head) % PAGE) + data)
    return copy


def test_a_loaded_snapshot_is_what_was_saved(host, saved):
    with host.load_snapshot(saved) as snapshot, snapshot.spawn() as fork:
        assert (fork.call("load", 100_000), fork.call("i"), fork.call("starts")) == (42, 8, 1)
        assert (fork.call("table size"), fork.call("call", 7)) == (8, 3)
        assert fork.memory.read(16, 11) == b"active text"
        with pytest.raises(sandhost.GuestTrap):
            fork.call("text", 0)


def test_another_host_loads_it_too(saved):
    with sandhost.Host(cache=False, max_guests=8) as other:
        with pytest.raises(SnapshotError, match="not loaded"):
            other.load_snapshot(saved)
        plugin = other.load(guest_file("stateful"), fuel=True)
        with other.load_snapshot(saved) as snapshot:
            assert snapshot.plugin is plugin
            with snapshot.spawn(limits=Limits(fuel=1000)) as fork:
                assert fork.call("i") == 8


def test_a_loaded_snapshot_can_be_saved_and_snapshotted_again(host, saved, tmp_path):
    with host.load_snapshot(saved) as snapshot, snapshot.spawn() as fork:
        fork.call("store", 104, 9)
        with fork.snapshot() as again:
            again.save(tmp_path / "b")
        snapshot.save(tmp_path / "c")
    for name, expected in (("b", 9), ("c", 0)):
        with host.load_snapshot(tmp_path / name) as snapshot, snapshot.spawn() as fork:
            assert (fork.call("load", 104), fork.call("load", 100_000)) == (expected, 42)


def test_the_reseed_function_is_saved_with_it(host, tmp_path):
    plugin = host.load(
        b"""(module (global $s (mut i64) (i64.const 0)) (func (export "seed") (result i64) (global.get $s))
        (func (export "reseed") (param i64) (global.set $s (local.get 0))))"""
    )
    plugin.warm(save=tmp_path / "s", reseed="reseed").close()
    with host.load_snapshot(tmp_path / "s") as snapshot:
        assert snapshot.reseed == "reseed"
        with snapshot.spawn() as one, snapshot.spawn() as two:
            assert one.call("seed") != two.call("seed")


def test_files_hold_no_zeros_and_nothing_of_the_module(host, tmp_path):
    megabyte = 1 << 20
    text = b"x" * megabyte
    plugin = host.load(b'(module (memory (export "memory") 4096) (data (i32.const 0) "%s"))' % text)
    limits = Limits(memory="300 MiB")
    with plugin.spawn(limits=limits) as guest:
        guest.memory.write(200 << 20, b"far away")
        guest.memory.write(5 * PAGE, b"changed")
        with guest.snapshot() as snapshot:
            length = snapshot.save(tmp_path / "sparse")
    assert length == (tmp_path / "sparse").stat().st_size <= 3 * PAGE
    with host.load_snapshot(tmp_path / "sparse") as snapshot:
        with snapshot.spawn(limits=limits) as fork:
            assert fork.memory.read(5 * PAGE, 8) == b"changedx"
            assert fork.memory.read(0, PAGE) == text[:PAGE]
            assert fork.memory.read(megabyte, PAGE) == bytes(PAGE)
            assert fork.memory.read(200 << 20, 8) == b"far away"


def test_scattered_pages_come_back(host, tmp_path):
    plugin = host.load(b'(module (memory (export "memory") 512) (data (i32.const 70000) "mine"))')
    rng = random.Random(3)
    with plugin.spawn() as guest:
        for _ in range(400):
            guest.memory.write(rng.randrange(0, 512 * 65536 - 4), rng.randbytes(4))
        expected = guest.memory.read(0, guest.memory.size)
        with guest.snapshot() as snapshot, snapshot.spawn() as fork:
            assert fork.memory.read(0, fork.memory.size) == expected
            snapshot.save(tmp_path / "scattered")
    with host.load_snapshot(tmp_path / "scattered") as snapshot, snapshot.spawn() as fork:
        assert fork.memory.read(0, fork.memory.size) == expected


def test_loading_copies_nothing(host, tmp_path):
    plugin = host.load(b'(module (memory (export "memory") 1024))')
    with plugin.spawn() as guest:
        guest.memory.write(0, os.urandom(32 << 20))
        with guest.snapshot() as snapshot:
            snapshot.save(tmp_path / "big")
    collected()
    host.trim()
    before = host.stats().image_bytes
    with host.load_snapshot(tmp_path / "big") as snapshot:
        assert host.stats().image_bytes == before  # no memory of ours: pages of the file
        with snapshot.spawn() as fork:
            fork.memory.write(0, b"only in the fork")
            assert fork.stats().memory_bytes == 64 << 20
        with snapshot.spawn() as fork:
            assert fork.memory.read(0, 16) == (tmp_path / "big").read_bytes()[-(32 << 20) :][:16]


def test_files_are_private_and_replaced_whole(saved, stateful):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    before = saved.read_bytes()
    with stateful.warm() as snapshot, pytest.raises(OSError, match="No such file"):
        snapshot.save(saved.parent / "missing" / "a.snapshot")
    stateful.warm(save=saved).close()
    assert saved.read_bytes() != before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_two_processes_that_map_one_file_are_apart(saved):
    program = f"""
        import os
        def host_and_snapshot():
            host = sandhost.Host(cache=False, max_guests=8)
            plugin = host.load(guest_file("stateful"))
            return host, host.load_snapshot({str(saved)!r}, module=plugin)
        reading, writing = os.pipe()
        if not os.fork():
            host, snapshot = host_and_snapshot()
            with snapshot.spawn() as fork:
                fork.memory.write(0, b"x" * fork.memory.size)
                os.write(writing, b"1")
                os.read(reading, 0)
            snapshot.close()
            host.close()
            os._exit(0)
        os.read(reading, 1)
        host, snapshot = host_and_snapshot()
        for _ in range(3):
            with snapshot.spawn() as fork:
                assert fork.call("load", 100_000) == 42
                assert fork.memory.read(16, 11) == b"active text"
                fork.memory.write(0, b"y" * fork.memory.size)
        assert os.wait()[1] == 0
        snapshot.close()
        host.close()
    """
    run_cleanly(program)
    header_of(saved)


def test_a_file_that_is_replaced_while_mapped_changes_nothing(host, saved, stateful):
    with host.load_snapshot(saved) as snapshot:
        stateful.warm(save=saved).close()
        with snapshot.spawn() as fork:
            assert fork.call("load", 100_000) == 42


# ---- what is refused ----


def test_a_snapshot_given_as_a_module_says_what_it_is(host, saved):
    with pytest.raises(sandhost.ModuleError, match="saved snapshot"):
        host.load(saved)


def test_another_module_is_refused(host, saved):
    other = host.load(guest_file("add"))
    with pytest.raises(SnapshotError, match="another module"):
        host.load_snapshot(saved, module=other)


def test_a_module_with_other_data_is_another_module(host, tmp_path):
    first = host.load(b'(module (memory 1) (data (i32.const 0) "one"))')
    second = host.load(b'(module (memory 1) (data (i32.const 0) "two"))')
    first.warm(save=tmp_path / "one").close()
    with host.load_snapshot(tmp_path / "one") as snapshot:
        assert snapshot.plugin is first
    with pytest.raises(SnapshotError, match="another module"):
        host.load_snapshot(tmp_path / "one", module=second)


@pytest.mark.parametrize("bytes_left", [0, 10, 63, 64, 200])
def test_a_file_cut_off_early_is_refused(host, saved, bytes_left):
    saved.write_bytes(saved.read_bytes()[:bytes_left])
    with pytest.raises(SnapshotError):
        host.load_snapshot(saved)


@pytest.mark.parametrize("change", [-1, 1, PAGE])
def test_a_file_of_another_length_is_refused(host, saved, change):
    data = saved.read_bytes()
    saved.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(SnapshotError, match="cut off"):
        host.load_snapshot(saved)


def test_other_files_and_versions_are_refused_by_name(host, saved, tmp_path):
    (tmp_path / "text").write_text("no snapshot")
    with pytest.raises(SnapshotError, match="no sandhost snapshot"):
        host.load_snapshot(tmp_path / "text")
    with pytest.raises(FileNotFoundError):
        host.load_snapshot(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        host.load_snapshot(tmp_path)
    data = bytearray(saved.read_bytes())
    data[24] = 99
    (tmp_path / "new").write_bytes(data)
    with pytest.raises(SnapshotError, match="format 99"):
        host.load_snapshot(tmp_path / "new")


@pytest.mark.parametrize("key", ["wasmtime", "rewrite"])
def test_a_file_of_another_abi_is_refused(host, saved, key):
    changed = rewritten(saved, lambda document: document.update({key: "51.0.0"}))
    with pytest.raises(SnapshotError, match=r"51\.0\.0"):
        host.load_snapshot(changed)


def test_altered_pages_are_found_before_a_guest_sees_them(host, saved):
    data = bytearray(saved.read_bytes())
    data[-2000] ^= 1
    saved.write_bytes(data)
    with host.load_snapshot(saved) as snapshot:
        for _ in range(2):
            with pytest.raises(SnapshotError, match="altered"):
                snapshot.spawn()
    assert host.stats().spawns == 1  # the guest that was saved


def test_threads_may_make_the_first_fork_of_a_loaded_snapshot_together(host, saved):
    for _ in range(20):
        with host.load_snapshot(saved) as snapshot:
            barrier = threading.Barrier(4)

            def fork(snapshot=snapshot, barrier=barrier):
                barrier.wait()
                return snapshot.call("load", 100_000)

            assert [thread.result() for thread in [Background(fork) for _ in range(4)]] == [42] * 4


def part(document, **values):
    offset, length, is_module, at = next(p for p in document["memories"][0]["parts"] if not p[2])
    named = {"offset": offset, "length": length, "is_module": is_module, "at": at, **values}
    document["memories"][0]["parts"] = [list(named.values())]


LIES = {
    "offset beyond": lambda d: part(d, offset=1 << 40),
    "offset below zero": lambda d: part(d, offset=-PAGE),
    "offset not of a page": lambda d: part(d, offset=1),
    "length beyond the memory": lambda d: part(d, length=1 << 30),
    "length zero": lambda d: part(d, length=0),
    "length wraps": lambda d: part(d, length=(1 << 64) - PAGE),
    "data beyond the file": lambda d: part(d, at=1 << 30),
    "data before the file": lambda d: part(d, at=-PAGE),
    "overlapping parts": lambda d: d["memories"][0].update(parts=2 * d["memories"][0]["parts"]),
    "too many parts": lambda d: d["memories"][0].update(
        parts=[[k * 2 * PAGE, PAGE, False, 0] for k in range(100)]
    ),
    "a smaller memory": lambda d: d["memories"][0].update(size=65536),
    "a larger memory": lambda d: d["memories"][0].update(size=1 << 33),
    "half a page": lambda d: d["memories"][0].update(size=2 * 65536 + 100),
    "an image longer than its memory": lambda d: d["memories"][0].update(image=1 << 30),
    "no memories": lambda d: d.update(memories=[]),
    "a global more": lambda d: d["globals"].append(["00" * 16, 0xFFFFFFFF]),
    "a global too long": lambda d: d["globals"].__setitem__(0, ["00" * 17, 0xFFFFFFFF]),
    "a global that refers to nothing": lambda d: d["globals"].__setitem__(0, ["00" * 16, 77]),
    "a table of unknown functions": lambda d: d["tables"][0].update(
        size=6,
        functions=snapshot_file.base64.b64encode(
            snapshot_file.zlib.compress(b"\x4d\0\0\0" * 6)
        ).decode(),
    ),
    "a table that lies about its length": lambda d: d["tables"][0].update(size=7),
    "a table without end": lambda d: d["tables"][0].update(size=1 << 60),
    "a negative table": lambda d: d["tables"][0].update(size=-1),
    "a segment that is not there": lambda d: d.update(dropped=[5]),
    "a negative segment": lambda d: d.update(dropped=[-1]),
    "a reseed function that is not there": lambda d: d.update(reseed="nobody"),
    "text for a number": lambda d: d["memories"][0].update(size="2"),
    "no parts": lambda d: d["memories"][0].pop("parts"),
    "a list for an object": lambda d: d.update(memories=[[]]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(host, saved, lie):
    changed = rewritten(saved, LIES[lie])
    collected()
    before, files = host.stats(), open_files()
    with pytest.raises(SnapshotError):
        host.load_snapshot(changed)
    collected()
    assert (host.stats().images, open_files()) == (before.images, files)


def test_mutated_files_end_in_an_error_or_a_guest(host, saved):
    """Whatever bytes change: a named error, or a guest that is not touched by it."""
    original = saved.read_bytes()
    rng = random.Random(11)
    copy = saved.with_name("mutated")
    outcomes = set()
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 1, 4, 50])):
            at = rng.randrange(len(data) if rng.random() < 0.7 else 800)
            data[at] = rng.randrange(256)
        copy.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            with host.load_snapshot(copy) as snapshot, snapshot.spawn() as fork:
                assert fork.call("load", 100_000) == 42
                outcomes.add("guest")
        except SnapshotError:
            outcomes.add("error")
    assert "error" in outcomes


def test_mutated_documents_end_in_an_error_or_a_guest(host, saved):
    """The same behind a checksum that fits, as an attacker would write it."""
    rng = random.Random(12)
    values = [
        0,
        1,
        -1,
        2**31,
        2**32,
        2**63,
        2**64,
        1e300,
        "",
        "x",
        None,
        True,
        [],
        {},
        [1],
        "00" * 16,
    ]

    def mutate(node):
        while isinstance(node, (dict, list)) and node:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], (dict, list)) or rng.random() < 0.2:
                node[key] = rng.choice(values)
                return
            node = node[key]

    for _ in range(400):
        changed = rewritten(saved, mutate)
        try:
            with host.load_snapshot(changed) as snapshot, snapshot.spawn() as fork:
                fork.call("load", 100)
        except (SnapshotError, sandhost.LimitExceeded):
            pass
    collected()
    assert host.stats().guests_live == 0


@pytest.mark.parametrize(("call", "skip"), [("MMAP", 0), ("MMAP", 1), ("MMAP", 2)])
def test_a_file_that_cannot_be_mapped_leaves_nothing(host, saved, call, skip):
    collected()
    before, files = host.stats(), open_files()
    with failing(call, skip=skip):
        try:
            host.load_snapshot(saved).close()
        except SnapshotError:
            pass
    collected()
    assert (host.stats().images, open_files()) == (before.images, files)
    balanced(host)
