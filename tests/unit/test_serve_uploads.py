"""A module as it comes in: refused by its first bytes, gathered, and nothing left of what does not come whole."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandhost.serve.blobs import Blobs
from sandhost.serve.problems import BadPlugin, TooLarge
from sandhost.serve.uploads import receive

BINARY = b"\0asm\1\0\0\0" + bytes(1000)
TEXT = b'(module (func (export "seven") (result i32) (i32.const 7)))' + b" ;; \xe2\x82\xac" * 100


async def in_pieces(module: bytes, size: int, broken: bool = False) -> AsyncIterator[bytes]:
    for at in range(0, len(module), size):
        yield module[at : at + size]
    if broken:
        raise ConnectionError


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.mark.parametrize("size", [1, 3, 63, 64, 65, 10_000])
@pytest.mark.parametrize("module", [BINARY, TEXT, b"", b"("])
def test_what_may_be_a_module_is_kept_whatever_pieces_it_comes_in(
    blobs: Blobs, module: bytes, size: int
) -> None:
    digest, length = asyncio.run(receive(blobs, 1 << 20, in_pieces(module, size)))
    assert (digest, length) == (hashlib.sha256(module).hexdigest(), len(module))
    assert blobs.read(digest) == module


@pytest.mark.parametrize(
    "noise", [b"\xff" * 500, b"\0elf" + bytes(200), b"\x89sandhost snapshot", b"PK\3\4\xff" * 40]
)
def test_what_begins_as_no_module_is_refused_before_more_is_read_or_anything_written(
    tmp_path: Path, noise: bytes
) -> None:
    steps: list[str] = []
    blobs = Blobs(tmp_path / "blobs", steps.append)
    read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal read
        for at in range(0, len(noise), 100):
            read += 1
            yield noise[at : at + 100]

    with pytest.raises(BadPlugin):
        asyncio.run(receive(blobs, 1 << 20, pieces()))
    assert read == 1
    assert steps == []


def test_small_pieces_are_gathered_before_a_thread_writes_them(tmp_path: Path) -> None:
    steps: list[str] = []
    blobs = Blobs(tmp_path / "blobs", steps.append)
    module = BINARY + bytes(700 << 10)
    digest, _ = asyncio.run(receive(blobs, 1 << 20, in_pieces(module, 10_000)))
    assert blobs.read(digest) == module
    assert steps.count("blob.write") == 3, "256 KiB twice, and the rest"


@pytest.mark.parametrize("length", [1000, 600 << 10])
def test_nothing_stays_of_what_breaks_off_or_is_too_large(blobs: Blobs, length: int) -> None:
    module = BINARY + bytes(length)
    with pytest.raises(ConnectionError):
        asyncio.run(receive(blobs, 1 << 20, in_pieces(module, 65536, broken=True)))
    with pytest.raises(TooLarge):
        asyncio.run(receive(blobs, length, in_pieces(module, 65536)))
    assert list(blobs.folder.iterdir()) == []


def test_nothing_stays_of_what_is_cancelled(blobs: Blobs) -> None:
    async def run() -> None:
        stalled = asyncio.Event()

        async def pieces() -> AsyncIterator[bytes]:
            yield BINARY + bytes(300 << 10)
            stalled.set()
            await asyncio.Event().wait()

        upload = asyncio.ensure_future(receive(blobs, 1 << 20, pieces()))
        await stalled.wait()
        assert len(list(blobs.folder.iterdir())) == 1
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        assert list(blobs.folder.iterdir()) == []

    asyncio.run(run())
