"""Hosts and services' folders for the tests of this folder, and the way to tests/helpers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import POLICIES, balanced, collected

import sandhost


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """What `pytest.mark.anyio` runs a test on."""
    return str(request.param)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where a service keeps what it has; not there yet."""
    return tmp_path / "data"


@pytest.fixture
def host() -> Iterator[sandhost.Host]:
    """A host that must hold nothing when the test is over."""
    with sandhost.Host(cache=False, max_guests=512) as host:
        yield host
        collected()
        balanced(host)


@pytest.fixture(params=POLICIES)
def any_host(request: pytest.FixtureRequest) -> Iterator[sandhost.Host]:
    """The same, once for each reclaim policy."""
    with sandhost.Host(cache=False, max_guests=512, reclaim=request.param) as host:
        yield host
        collected()
        balanced(host)
