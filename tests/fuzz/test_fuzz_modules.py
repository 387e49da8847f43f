"""A few seconds of fuzz_modules.py, and the proof that its watcher notices."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "fuzz_modules", Path(__file__).with_name("fuzz_modules.py")
)
assert _spec is not None and _spec.loader is not None
fuzz_modules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz_modules)

SECONDS = float(os.environ.get("SANDHOST_FUZZ_SECONDS", "5"))


@pytest.mark.timeout(SECONDS + 120)
def test_mutated_modules_and_random_calls_only_raise_named_errors():
    seed = random.randrange(2**32)
    said = fuzz_modules.fuzz(SECONDS, seed)
    assert "called" in said


def test_the_watcher_notices_a_worker_that_fails(tmp_path):
    with pytest.raises(AssertionError, match="ended with 1"):
        fuzz_modules.fuzz(0.0, 1, replay=tmp_path / "nothing.wasm")


def test_a_mutation_differs_and_is_repeated_by_its_seed():
    wasm = bytes(range(64))
    several = [fuzz_modules.mutate(random.Random(k), wasm, [wasm]) for k in range(50)]
    assert several == [fuzz_modules.mutate(random.Random(k), wasm, [wasm]) for k in range(50)]
    assert len({bytes(one) for one in several}) > 40
