"""The error tree."""

from __future__ import annotations

import copy
import pickle

import pytest

from sandhost import errors
from sandhost._ffi import _quota_exceeded
from sandhost.errors import Frame, GuestExit, GuestTrap, ModuleError, NativeError, SandhostError

FRAMES = (Frame("add", 3, 0x1F2, "wordcount"), Frame(None, 9, 16, None))

EXAMPLES: list[SandhostError] = [
    GuestTrap("out of bounds memory access", code="memory_out_of_bounds", frames=FRAMES),
    GuestExit(3),
    ModuleError("unknown section id 99", 8),
    ModuleError("no offset"),
    NativeError(12, "mmap of 4 GiB"),
    errors.Overloaded("short of memory", retry_after_s=0.5),
    errors.QuotaExceeded("used up", retry_after_s=None),
    *(
        getattr(errors, name)(f"an example of {name}")
        for name in errors.__all__
        if name != "Frame" and "__init__" not in vars(getattr(errors, name))
    ),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickle_and_copy(error: SandhostError) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(error, protocol))
        assert type(twin) is type(error)
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


def test_every_error_has_the_one_base() -> None:
    for name in errors.__all__:
        if name != "Frame":
            assert issubclass(getattr(errors, name), SandhostError)


def test_the_docstring_draws_every_error() -> None:
    assert errors.__doc__ is not None
    assert [name for name in errors.__all__ if name not in errors.__doc__ and name != "Frame"] == []


def test_a_trap_shows_its_backtrace() -> None:
    assert str(EXAMPLES[0]) == (
        "out of bounds memory access\n"
        "  wasm backtrace:\n"
        "    0: add in wordcount at 0x1f2\n"
        "    1: function 9 at 0x10"
    )


def test_a_deep_backtrace_is_cut_in_its_middle() -> None:
    frames = tuple(Frame("down", 0, number, None) for number in range(1000))
    lines = str(
        GuestTrap("call stack exhausted", code="stack_overflow", frames=frames)
    ).splitlines()
    assert len(lines) == 2 + 24 + 1 + 8
    assert "    … 968 more frames" in lines
    assert lines[-1] == "    999: down at 0x3e7"


def test_offsets_and_numbers_are_in_the_message() -> None:
    assert str(ModuleError("unknown section id 99", 8)) == "unknown section id 99 (at byte 0x8)"
    assert str(NativeError(12, "mmap of 4 GiB")) == (
        "mmap of 4 GiB failed: Cannot allocate memory (ENOMEM, errno 12)"
    )


@pytest.mark.parametrize(("wait_ns", "when"), [(0, "again now"), (5_000_000, "again in 5 ms")])
def test_a_quota_that_is_used_up_says_when_there_is_some_again(wait_ns, when):
    error = _quota_exceeded("CPU time", 0, wait_ns)
    assert str(error).endswith(when)
    assert error.retry_after_s == wait_ns / 1e9
