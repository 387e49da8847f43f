"""Differential: a fork and a guest with the whole history behind it do the same from there on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sandhost

GUEST = Path(__file__).resolve().parents[2] / "guests" / "wat" / "stateful.wat"

address = st.integers(0, 5 * 65536)
element = st.integers(0, 12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("store"), address, st.integers(-(2**31), 2**31 - 1)),
        st.tuples(st.just("load"), address),
        st.tuples(st.just("grow"), st.integers(0, 3)),
        st.tuples(st.just("set"), st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.sampled_from(["i", "l", "d", "v", "size", "starts", "table size"])),
        st.tuples(st.sampled_from(["keep", "put back", "clear", "call", "fill table"]), element),
        st.tuples(st.just("grow table"), st.integers(0, 4)),
        st.tuples(st.just("text"), address),
        st.tuples(st.sampled_from(["drop text", "drop spare"])),
    ),
    max_size=25,
)


def run(guest: sandhost.Guest, history: list[tuple[Any, ...]]) -> list[Any]:
    results: list[Any] = []
    for name, *arguments in history:
        try:
            results.append(guest.call(name, *arguments))
        except sandhost.GuestTrap as error:
            results.append(error.code)
    return results


@pytest.fixture(scope="module")
def plugin() -> Iterator[sandhost.Plugin]:
    with sandhost.Host(cache=False, max_guests=64) as host:
        yield host.load(GUEST)


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories=st.lists(steps, min_size=2, max_size=4), saved=st.booleans())
def test_a_fork_continues_a_history(
    plugin: sandhost.Plugin, histories: list[list[tuple[Any, ...]]], saved: bool
) -> None:
    *before, last = histories
    with plugin.spawn() as whole:
        current = plugin.spawn()
        for history in before:
            assert run(current, history) == run(whole, history)
            snapshot = current.snapshot()
            current.close()
            if saved:
                with tempfile.TemporaryDirectory() as folder:
                    snapshot.save(Path(folder) / "s")
                    snapshot = plugin._host.load_snapshot(Path(folder) / "s")
                    current = snapshot.spawn()
            else:
                current = snapshot.spawn()
            snapshot.close()
        with current:
            assert run(current, last) == run(whole, last)
            assert current.memory.size == whole.memory.size
            same = current.memory.read(0, current.memory.size) == whole.memory.read(
                0, whole.memory.size
            )
            assert same
