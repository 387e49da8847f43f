"""The engine in which sources are tried, and a copy of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import wasmtime
from helpers.guest_sources import GUESTS


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of guests/ in another place, free to be spoilt."""
    return Path(
        shutil.copytree(GUESTS, tmp_path / "guests", ignore=shutil.ignore_patterns("__pycache__"))
    )


@pytest.fixture(scope="session")
def engine() -> wasmtime.Engine:
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    config.wasm_memory64 = True
    config.wasm_exceptions = True
    config.wasm_gc = True
    config.wasm_custom_page_sizes = True
    config.consume_fuel = True
    return wasmtime.Engine(config)
