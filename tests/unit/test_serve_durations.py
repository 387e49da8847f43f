"""Kinds of requests, and the buckets in which their durations are counted."""

from __future__ import annotations

import pytest

from sandhost.serve.durations import BOUNDS_S, Durations, operation_of
from sandhost.serve.operations import OPERATIONS


def test_every_operation_has_a_kind():
    kinds = {operation_of(one.method, one.path) for one in OPERATIONS}
    assert kinds == {
        *("call", "bytes", "run", "session", "upload", "version", "plugin", "admin", "other")
    }


def test_a_duration_at_a_bound_counts_below_it(monkeypatch):
    durations = Durations()
    for bound in (*BOUNDS_S, 1000.0):
        monkeypatch.setattr("sandhost.serve.durations.monotonic", lambda bound=bound: bound)
        durations.add("http", "call", 200, 0.0)
    (taken,) = durations.taken()
    assert taken.counts == (1,) * (len(BOUNDS_S) + 1)
    assert taken.sum_s == pytest.approx(sum(BOUNDS_S) + 1000)
