"""tests/native/mutants: what it starts, it ends."""

from __future__ import annotations

import importlib.util
import os
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

MUTANTS = Path(__file__).resolve().parents[1] / "native" / "mutants"


@pytest.fixture
def mutants():
    loader = SourceFileLoader("mutants", str(MUTANTS))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutants", loader))
    loader.exec_module(module)
    return module


def test_a_test_that_hangs_is_ended_with_what_it_started(mutants, tmp_path):
    script = f"sleep 1000 & echo $! >{tmp_path}/pid; wait"
    began_s = time.monotonic()
    assert mutants.run(["sh", "-c", script], dict(os.environ), 0.3) == (None, "")
    assert time.monotonic() - began_s < 100
    child = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)  # until somebody has waited for it


def test_status_and_errors_are_those_of_the_program(mutants):
    assert mutants.run(["sh", "-c", "echo why >&2; exit 3"], dict(os.environ), 60) == (3, "why\n")


def test_every_mutants_text_is_in_the_sources(mutants):
    for name, (file, text, _, _) in mutants.MUTANTS.items():
        assert text in (mutants.NATIVE / file).read_text(), name
