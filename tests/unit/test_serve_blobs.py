"""Modules on disk: whole under their digest, or not there."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from sandhost.serve.blobs import Blobs
from sandhost.serve.problems import TooLarge

MODULE = b"\0asm" + bytes(range(256)) * 40
DIGEST = hashlib.sha256(MODULE).hexdigest()


class Stop(BaseException):
    """The machine stops here."""


def chunks(data: bytes, size: int = 1000):
    return (data[at : at + size] for at in range(0, len(data), size))


def test_a_module_is_kept_under_its_digest(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    assert blobs.put(chunks(MODULE), len(MODULE)) == (DIGEST, len(MODULE))
    assert DIGEST in blobs
    assert os.listdir(blobs.folder) == [DIGEST]
    with blobs.open(DIGEST) as file:
        assert file.read() == MODULE
    assert Blobs(tmp_path / "blobs").read(DIGEST) == MODULE


def test_an_empty_module_is_one_too(tmp_path):
    blobs = Blobs(tmp_path)
    digest, size = blobs.put([], 0)
    assert (blobs.read(digest), size) == (b"", 0)


def test_only_their_owner_can_read_modules(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    digest, _ = blobs.put([b"x"], 1)
    assert blobs.folder.stat().st_mode & 0o777 == 0o700
    assert (blobs.folder / digest).stat().st_mode & 0o777 == 0o600


def test_too_many_bytes_are_refused_as_soon_as_they_come_and_leave_nothing(tmp_path):
    blobs = Blobs(tmp_path)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield b"x" * 100

    with pytest.raises(TooLarge) as caught:
        blobs.put(endless(), 1000)
    assert len(taken) == 11
    assert caught.value.facts == {"limit": 1000}
    assert os.listdir(tmp_path) == []


def test_a_stream_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield MODULE
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        Blobs(tmp_path).put(broken(), 1 << 20)
    assert os.listdir(tmp_path) == []


def test_two_uploads_at_once_do_not_meet(tmp_path):
    blobs = Blobs(tmp_path)
    with blobs.receive(100) as one, blobs.receive(100) as two:
        one.write(b"a")
        two.write(memoryview(b"b"))
        one.write(b"c")
        two.write(b"c")
        assert blobs.read(two.finish()[0]) == b"bc"
        assert blobs.read(one.finish()[0]) == b"ac"


def test_what_is_no_digest_is_no_path(tmp_path):
    (tmp_path / "secret").write_text("x")
    blobs = Blobs(tmp_path / "blobs")
    for name in ("../secret", "", "a" * 63, "A" * 64, DIGEST + "\n"):
        with pytest.raises(ValueError, match="is no SHA-256"):
            blobs.open(name)
    with pytest.raises(FileNotFoundError):
        blobs.open(DIGEST)


def test_bytes_that_the_disk_has_altered_are_not_returned(tmp_path):
    blobs = Blobs(tmp_path)
    blobs.put([MODULE], 1 << 20)
    with (tmp_path / DIGEST).open("r+b") as file:
        file.seek(100)
        file.write(b"!")
    with pytest.raises(OSError, match="altered"):
        blobs.read(DIGEST)


def test_a_module_is_durable_before_it_has_its_name_and_its_name_before_it_is_acknowledged(
    tmp_path, monkeypatch
):
    done = []
    blobs = Blobs(tmp_path)
    fsync, rename = os.fsync, os.rename
    folder = tmp_path.stat().st_ino

    def synced(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        done.append("folder" if status.st_ino == folder else f"file of {status.st_size}")

    def renamed(*names):
        rename(*names)
        done.append("name")

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.rename", renamed)
    blobs.put(chunks(MODULE), 1 << 20)
    assert done == [f"file of {len(MODULE)}", "name", "folder"]


STEPS = [
    "blob.create",
    "blob.write",
    "blob.write",
    "blob.sync",
    "blob.rename",
    "blob.sync folder",
    "blob.done",
]


@pytest.mark.parametrize("at", range(len(STEPS)))
def test_wherever_the_machine_stops_there_is_the_whole_module_or_none(tmp_path, at):
    seen: list[str] = []

    def step(name):
        if len(seen) > at:
            raise Stop  # the dead do not clean up
        seen.append(name)
        if len(seen) > at:
            raise Stop

    with pytest.raises(Stop):
        Blobs(tmp_path, step).put([b"ab", b"cd"], 10)
    assert seen == STEPS[: at + 1]
    after = Blobs(tmp_path)
    digest = hashlib.sha256(b"abcd").hexdigest()
    assert (digest in after) == (at >= STEPS.index("blob.sync folder"))
    if digest in after:
        assert after.read(digest) == b"abcd"
    assert after.sweep({digest}) == (0 < at < STEPS.index("blob.sync folder"))
    assert os.listdir(tmp_path) == ([digest] if digest in after else [])


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    blobs = Blobs(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    for call in ("write", "fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{call}", full)
            with pytest.raises(OSError, match="No space left"):
                blobs.put([MODULE], 1 << 20)
        assert os.listdir(tmp_path) == []


def test_a_sweep_spares_what_is_named_and_what_is_not_ours(tmp_path):
    blobs = Blobs(tmp_path)
    kept, _ = blobs.put([b"kept"], 10)
    blobs.put([b"orphan"], 10)
    (tmp_path / "abc.part").touch()
    (tmp_path / "README").touch()
    assert blobs.sweep({kept}) == 2
    assert sorted(os.listdir(tmp_path)) == sorted([kept, "README"])


def test_a_sweep_of_what_is_old_spares_what_was_just_written(tmp_path):
    blobs = Blobs(tmp_path)
    old, _ = blobs.put([b"old"], 10)
    again, _ = blobs.put([b"again"], 10)
    for digest in (old, again):
        os.utime(tmp_path / digest, (time.time() - 7200,) * 2)
    blobs.put([b"again"], 10)  # the same bytes a second time: young again
    new, _ = blobs.put([b"new"], 10)
    with blobs.receive(10) as unfinished:
        unfinished.write(b"x")
        assert blobs.sweep(set(), older_than_s=3600) == 1
        assert sorted(name for name in os.listdir(tmp_path) if len(name) == 64) == sorted(
            [again, new]
        )
        unfinished.finish()


def test_a_module_that_is_being_read_is_read_to_its_end_though_it_is_swept(tmp_path):
    blobs = Blobs(tmp_path)
    blobs.put([MODULE], 1 << 20)
    with blobs.open(DIGEST) as file:
        file.read(10)
        assert blobs.sweep(set()) == 1
        assert DIGEST not in blobs
        assert len(file.read()) == len(MODULE) - 10
