"""Versions that are loaded: how many are kept, and that nobody loses one that it has."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from helpers import collected

from sandhost.errors import ConfigError
from sandhost.serve.loaded import Versions, functions, signature
from sandhost.serve.problems import Invalid
from sandhost.serve.records import Version, VersionSettings

WARMED = b"""(module (global $n (mut i32) (i32.const 0))
  (func (export "warm") (global.set $n (i32.const %d)))
  (func (export "which") (result i32) (global.get $n)))"""


def version(number: int) -> Version:
    settings = VersionSettings(warm="warm")
    return Version("acme", "p", number, "0" * 64, 0, "ready", None, settings, 0.0)


def which(loaded: Any, tenant: Any) -> int:
    async def call() -> Any:
        async with loaded.spawn(tenant) as guest:
            return await guest.call_async("which")

    return int(asyncio.run(call()))


def test_those_that_were_used_last_are_kept_and_one_that_somebody_has_goes_on(host):
    versions, tenant = Versions(host, 2), host.tenant("acme")
    first = versions.load(version(1), tenant, lambda: WARMED % 1)
    versions.load(version(2), tenant, lambda: WARMED % 2)
    assert versions.get(version(1)) is first  # used after the second
    versions.load(version(3), tenant, lambda: WARMED % 3)
    assert versions.get(version(2)) is None
    assert versions.get(version(1)) is first
    versions.drop(version(1))
    assert versions.get(version(1)) is None
    assert which(first, tenant) == 1
    assert len(host.plugins()) == 2
    del first
    collected()
    assert [plugin.name for plugin in host.plugins()] == ["acme/p@3"]
    versions.close()


def test_threads_that_want_the_same_one_load_it_once(host):
    versions, tenant = Versions(host), host.tenant("acme")
    reads, got = [], []
    begin = threading.Barrier(8)

    def read() -> bytes:
        reads.append(1)
        return WARMED % 7

    def load() -> None:
        begin.wait()
        got.append(versions.load(version(7), tenant, read))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert all(one is got[0] for one in got)
    assert which(got[0], tenant) == 7
    versions.close()


def test_of_very_many_functions_the_first_are_shown_and_all_are_there(host):
    some = "".join(f'(func (export "f{n}"))' for n in range(5000))
    long_ones = "".join(f'(func (export "{chr(97 + n) * 90_000}"))' for n in range(5))
    many, named = (host.load(f"(module {text})".encode()) for text in (some, long_ones))
    assert len(many.functions) == 5000
    assert 1000 < len(functions(many)) < 2000
    assert list(functions(many))[:3] == ["f0", "f1", "f2"]
    assert signature(many, "f4999") == many.functions["f4999"]
    assert [name[0] for name in functions(named)] == ["a"]
    for plugin in (many, named):
        with pytest.raises(Invalid) as caught:
            signature(plugin, "nope")
        assert len(str(caught.value)) < 700
        with pytest.raises(ConfigError) as refused:
            plugin.call("nope")
        assert len(str(refused.value)) < 1000
