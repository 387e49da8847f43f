"""The compile cache: what it trusts, what it keeps, and how it gives up."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import wasmtime

import sandhost.modules.cache as cache_module
import sandhost.modules.private as private_module
from sandhost.errors import ConfigError
from sandhost.modules.cache import CacheStats, CompileCache, default_directory
from sandhost.modules.fingerprint import cache_key, cpu_features, fingerprint


def key(number: int = 0) -> str:
    return cache_key(b"module %d" % number, b"settings")


def read(cache: CompileCache, wanted: str) -> bytes | None:
    entry = cache.open_verified(wanted)
    if entry is None:
        return None
    with entry:
        return Path(entry.path).read_bytes()


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "cache", 1000)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the files that are hashed in full."""
    files: list[int] = []

    def counted(file: int) -> str:
        files.append(file)
        return private_module.sha256_of(file)

    monkeypatch.setattr(cache_module, "sha256_of", counted)
    return files


def artifact(cache: CompileCache, wanted: str) -> Path:
    path = cache.get(wanted)
    assert path is not None
    return path


def files(cache: CompileCache) -> list[str]:
    assert cache.directory is not None
    return sorted(path.suffix for path in cache.directory.iterdir() if path.name != "lock")


def test_what_is_put_is_found(cache: CompileCache) -> None:
    assert read(cache, key()) is None
    path = cache.put(key(), b"code")
    assert path is not None
    assert path == cache.get(key())
    assert path.read_bytes() == b"code"
    assert read(cache, key()) == b"code"
    assert cache.stats() == CacheStats(hits=2, misses=1)


def test_another_cache_of_the_directory_finds_it(cache: CompileCache) -> None:
    cache.put(key(), memoryview(b"code"))
    assert read(CompileCache(cache.directory, 1000), key()) == b"code"


def test_all_is_private_whatever_the_umask(cache: CompileCache) -> None:
    before = os.umask(0)
    try:
        cache.put(key(), b"code")
    finally:
        os.umask(before)
    assert cache.directory is not None
    modes = {stat.S_IMODE(path.stat().st_mode) for path in cache.directory.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(cache.directory.stat().st_mode) == 0o700


def test_an_unchanged_file_is_not_hashed(cache: CompileCache, hashed: list[int]) -> None:
    cache.put(key(), b"code")
    assert read(cache, key()) == b"code"
    assert read(CompileCache(cache.directory, 1000), key()) == b"code"
    assert hashed == []


def test_always_hash_hashes(cache: CompileCache, hashed: list[int]) -> None:
    cache.put(key(), b"code")
    assert read(CompileCache(cache.directory, 1000, always_hash=True), key()) == b"code"
    assert len(hashed) == 1


def test_a_file_touched_but_equal_is_hashed_once(cache: CompileCache, hashed: list[int]) -> None:
    cache.put(key(), b"code")
    os.utime(artifact(cache, key()))
    assert read(cache, key()) == b"code"
    assert len(hashed) == 1
    assert read(cache, key()) == b"code"
    assert len(hashed) == 1


@pytest.mark.parametrize(
    "damage", ["changed", "changed in secret", "cut", "longer", "empty", "gone"]
)
def test_a_damaged_artifact_is_removed(cache: CompileCache, damage: str) -> None:
    cache.put(key(), b"code")
    path = artifact(cache, key())
    before = path.stat()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": b"cod", "longer": b"code!", "empty": b""}.get(damage, b"c0de"))
    if damage == "changed in secret":  # the modification time can be set, the change time cannot
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(cache, key()) is None
    assert cache.stats().corrupt == 1
    assert files(cache) == []
    assert read(cache, key()) is None
    assert cache.stats().corrupt == 1
    cache.put(key(), b"code")
    assert read(cache, key()) == b"code"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"sandhost-cache-1\n",
        b"\xff\xfe",
        b"x" * 5000,
        b"sandhost-cache-1 ../../etc/passwd " + b"0" * 64 + b" 1 2 3 4 5\n",
        b"sandhost-cache-1 " + key(1).encode() + b".0123456789abcdef.cwasm " + b"0" * 64
        + b" 1 2 3 4 5\n",
        b"sandhost-cache-1 " + key().encode() + b".0123456789abcdef.cwasm " + b"0" * 64
        + b" 1 2 3 4 x\n",
        b"sandhost-cache-1 " + key().encode() + b".0123456789abcdef.cwasm " + b"0" * 64
        + b" 1 2 3 4 5",
    ],
)  # fmt: skip
def test_a_damaged_entry_is_removed(cache: CompileCache, line: bytes) -> None:
    cache.put(key(), b"code")
    assert cache.directory is not None
    (cache.directory / f"{key()}.entry").write_bytes(line)
    assert read(cache, key()) is None
    assert cache.stats().corrupt == 1
    assert not (cache.directory / f"{key()}.entry").exists()


def test_a_stale_entry_that_was_replaced_meanwhile_stays(
    cache: CompileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(key(), b"code")
    artifact(cache, key()).write_bytes(b"c0de")

    def meanwhile(_file: int) -> str:
        cache.put(key(), b"code")
        return "of other bytes"

    monkeypatch.setattr(cache_module, "sha256_of", meanwhile)
    assert read(cache, key()) is None
    monkeypatch.undo()
    assert read(cache, key()) == b"code"
    assert cache.stats().corrupt == 0


def refused(cache: CompileCache, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    with caplog.at_level(logging.WARNING, "sandhost"):
        assert read(cache, key()) is None
        assert cache.put(key(), b"code") is None
        assert read(cache, key()) is None
    assert cache.stats() == CacheStats(misses=2, refused=3)
    (record,) = caplog.records
    assert reason in record.getMessage()


def test_a_directory_that_others_can_reach_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o755)
    refused(CompileCache(tmp_path, 1000), caplog, "chmod 0700")


def test_a_symbolic_link_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    refused(CompileCache(tmp_path / "link", 1000), caplog, "symbolic link")


def test_a_file_in_its_place_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(CompileCache(tmp_path / "file", 1000), caplog, "no directory")


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    refused(CompileCache(tmp_path, 1000), caplog, "belongs to user")


@pytest.mark.parametrize("change", ["mode", "link", "pipe", "folder"])
def test_an_artifact_that_is_not_ours_alone_is_ignored(cache: CompileCache, change: str) -> None:
    cache.put(key(), b"code")
    path = artifact(cache, key())
    if change == "mode":
        path.chmod(0o640)
    else:
        path.rename(path.with_suffix(".moved"))
        if change == "link":
            path.symlink_to(path.with_suffix(".moved"))
        elif change == "pipe":
            os.mkfifo(path, 0o600)
        else:
            path.mkdir(mode=0o700)
    assert read(cache, key()) is None
    assert cache.stats().refused == 1


def test_a_full_disk_costs_one_warning(
    cache: CompileCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(key(1), b"kept")

    def full(_file: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with caplog.at_level(logging.WARNING, "sandhost"):
        assert cache.put(key(2), b"code") is None
        assert cache.put(key(3), b"code") is None
    assert cache.stats().failed_writes == 2
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert files(cache) == [".cwasm", ".entry"], "nothing half-written is left"
    assert read(cache, key(1)) == b"kept"


def test_an_unwritable_place_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = CompileCache(tmp_path / "file" / "below", 1000)
    with caplog.at_level(logging.WARNING, "sandhost"):
        assert cache.put(key(), b"code") is None
        assert cache.put(key(), b"code") is None
    assert cache.stats().failed_writes == 2
    assert len(caplog.records) == 1


def test_the_least_recently_used_is_evicted(cache: CompileCache) -> None:
    assert cache.directory is not None
    for number in range(3):
        cache.put(key(number), bytes(300))
        os.utime(cache.directory / f"{key(number)}.entry", (number, number))
    assert read(cache, key(0)) is not None  # used: now the youngest
    cache.put(key(3), bytes(300))
    assert [read(cache, key(number)) is not None for number in range(4)] == [
        True,
        False,
        True,
        True,
    ]
    assert cache.stats().evicted == 1


def test_what_is_above_the_limit_is_not_kept(cache: CompileCache) -> None:
    cache.put(key(1), bytes(900))
    assert cache.put(key(2), bytes(1001)) is None
    assert read(cache, key(1)) is not None
    cache.put(key(3), bytes(1000))
    assert read(cache, key(1)) is None
    assert read(cache, key(3)) is not None


def test_what_was_just_put_is_kept_whatever_the_clock_says(cache: CompileCache) -> None:
    cache.put(key(1), bytes(600))
    assert cache.directory is not None
    os.utime(cache.directory / f"{key(1)}.entry", (2**33, 2**33))
    cache.put(key(2), bytes(600))
    assert cache.get(key(1)) is None
    assert cache.get(key(2)) is not None


def test_putting_again_replaces(cache: CompileCache) -> None:
    cache.put(key(), bytes(800))
    cache.put(key(), bytes(700))
    assert read(cache, key()) == bytes(700)
    assert files(cache) == [".cwasm", ".entry"]
    assert cache.stats().evicted == 0


def test_an_open_entry_outlives_its_eviction(cache: CompileCache) -> None:
    cache.put(key(1), b"a" * 600)
    entry = cache.open_verified(key(1))
    assert entry is not None
    with entry:
        cache.put(key(2), bytes(600))
        assert cache.get(key(1)) is None
        assert Path(entry.path).read_bytes() == b"a" * 600
        assert entry.size == 600
    entry.close()
    with pytest.raises(ValueError, match="closed"):
        _ = entry.path


def test_leftovers_of_a_crash_are_swept_when_they_are_old(cache: CompileCache) -> None:
    cache.put(key(), b"code")
    assert cache.directory is not None
    old = cache.directory / f"{key(1)}.0123456789abcdef.cwasm"
    young = cache.directory / f"{key(2)}.0123456789abcdef.cwasm"
    for leftover in (old, young):
        leftover.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.put(key(3), b"code")
    assert not old.exists()
    assert young.exists()


def test_a_lock_that_stays_held_costs_one_put(
    cache: CompileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(key(1), b"code")
    assert cache.directory is not None
    monkeypatch.setattr(private_module, "_LOCK_PATIENCE_S", 0.0)
    with (cache.directory / "lock").open("r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert cache.put(key(2), b"code") is None
        assert read(cache, key(1)) == b"code", "a hit needs no lock"
    assert cache.put(key(2), b"code") is not None
    assert files(cache) == [".cwasm", ".cwasm", ".entry", ".entry"]


def work(directory: Path, seed: int, wrong: list[str]) -> None:
    cache = CompileCache(directory, 3000)
    for turn in range(60):
        number = (seed + turn) * 7 % 10
        content = bytes([number]) * 500
        if turn % 3 == 0:
            cache.put(key(number), content)
        found = read(cache, key(number))
        if found is not None and found != content:
            wrong.append(f"{number}: {found[:4]!r}")
    stats = cache.stats()
    if stats.corrupt or stats.refused or stats.failed_writes:
        wrong.append(str(stats))


def test_processes_and_threads_share_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    wrong: list[str] = []
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(directory), str(seed)], env=here)
        for seed in range(2)
    ]
    threads = [threading.Thread(target=work, args=(directory, seed, wrong)) for seed in range(3, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert wrong == []
    artifacts = list(directory.glob("*.cwasm"))
    assert sum(path.stat().st_size for path in artifacts) <= 3000
    assert len(artifacts) == len(list(directory.glob("*.entry")))


def test_wasmtime_loads_a_verified_descriptor(tmp_path: Path) -> None:
    engine = wasmtime.Engine()
    code = wasmtime.Module(engine, "(module)").serialize()
    cache = CompileCache(tmp_path / "cache", 10**6)
    cache.put(key(), memoryview(code))
    entry = cache.open_verified(key())
    assert entry is not None
    with entry:
        module = wasmtime.Module.deserialize_file(engine, entry.path)
    artifact(cache, key()).unlink()
    wasmtime.Instance(wasmtime.Store(engine), module, [])


@pytest.mark.parametrize("wanted", ["", "../x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_what_is_no_key_is_refused(cache: CompileCache, wanted: str) -> None:
    for use in (cache.get, cache.open_verified, lambda key: cache.put(key, b"")):
        with pytest.raises(ConfigError):
            use(wanted)


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ConfigError):
        CompileCache(max_bytes=-1)


def test_the_default_directory_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDHOST_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_directory() == tmp_path / "own"
    monkeypatch.setenv("SANDHOST_CACHE_DIR", "")
    assert default_directory() == tmp_path / "xdg" / "sandhost"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_directory() == tmp_path / "home" / ".cache" / "sandhost"
    cache = CompileCache()
    assert cache.put(key(), b"code") is not None
    assert read(cache, key()) == b"code"


def test_without_any_directory_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "default_directory", lambda: None)
    cache = CompileCache()
    assert cache.put(key(), b"code") is None
    assert cache.open_verified(key()) is None


def test_a_key_depends_on_module_and_settings() -> None:
    keys = {
        cache_key(b"module", b"settings"),
        cache_key(b"module", b"setting"),
        cache_key(b"smodule", b"setting"),
        cache_key(b"modul", b"esettings"),
    }
    assert len(keys) == 4


def test_a_fingerprint_depends_on_each_fact() -> None:
    assert fingerprint({"a": "1", "b": "2"}) == fingerprint({"b": "2", "a": "1"})
    assert len({fingerprint({"a": "1"}), fingerprint({"a": "2"}), fingerprint({"b": "1"})}) == 3


def test_cpu_features_are_sorted_and_unique(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: sse2 avx\n\nflags\t\t: avx sse2 avx512f\n")
    machine, *features = cpu_features(cpuinfo).split()
    assert machine == os.uname().machine
    assert features == ["avx", "avx512f", "sse2"]
    cpuinfo.write_text("Features\t: fp asimd\n")
    assert cpu_features(cpuinfo).split()[1:] == ["asimd", "fp"]
    assert cpu_features(tmp_path / "absent").split() == [machine]


def test_a_hit_renews_its_age(cache: CompileCache) -> None:
    cache.put(key(), b"code")
    assert cache.directory is not None
    entry = cache.directory / f"{key()}.entry"
    os.utime(entry, (1, 1))
    assert read(cache, key()) == b"code"
    assert abs(entry.stat().st_mtime - time.time()) < 60


if __name__ == "__main__":  # a process of `test_processes_and_threads_share_a_directory`
    found_wrong: list[str] = []
    work(Path(sys.argv[1]), int(sys.argv[2]), found_wrong)
    sys.exit("\n".join(found_wrong) or None)
