"""What the tests of the Python package share: guests, faults, subprocesses, and figures of this process.

A folder of tests makes this importable in its conftest.py.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sandhost
from sandhost._native import lib

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "guests"
POLICIES = ("immediate", "warm", "lazy")
PAGE = os.sysconf("SC_PAGE_SIZE")
WASM_PAGE = 65536

# A deadline, and what no machine should need to notice it. Promised are 2x or 20 ms; a loaded
# machine gets far more, so that only a guest that is not stopped at all fails a test.
DEADLINE = 0.05
PATIENCE = 10.0


def examples(count: int) -> int:
    """Return how many examples to try: few where another Python tries all of them (`./run ci`)."""
    return count // 10 if os.environ.get("SANDHOST_TEST_FEW_EXAMPLES") else count


def guest_file(name: str) -> Path:
    """Return the path of a guest: text if there is one, else the built binary."""
    text = GUESTS / "wat" / f"{name}.wat"
    return text if text.exists() else GUESTS / "built" / f"{name}.wasm"


def balanced(host: sandhost.Host) -> sandhost.MemStats:
    """Assert that a host without guests holds nothing for any, and return its figures."""
    host.trim()
    stats = host.stats()
    assert stats.guests_live == 0
    assert stats.regions_live == 0
    assert stats.committed_bytes == 0
    assert stats.queued_slots == stats.queued_bytes == 0
    assert stats.warm_slots == stats.warm_bytes == 0
    assert stats.quarantined_slots == 0
    assert stats.stacks_live == stats.stack_bytes == stats.stack_warm_bytes == 0
    assert {t.name: t.memory_bytes for t in host.tenants() if t.memory_bytes} == {}
    return stats


@contextlib.contextmanager
def failing(
    call: str, *, skip: int = 0, times: int = 1, error: int = errno.ENOMEM
) -> Iterator[None]:
    """Make an OS call of the region allocator fail ("MMAP", "MADVISE", …), in the whole process."""
    number = getattr(lib, f"SH_OS_{call}")
    lib.sh_fault_inject(number, skip, times, error)
    try:
        yield
    finally:
        lib.sh_fault_inject(number, 0, 0, 0)


def rss_bytes() -> int:
    """Return the bytes resident in this process."""
    with open("/proc/self/statm", "rb", buffering=0) as statm:
        return int(statm.read().split()[1]) * PAGE


def private_bytes() -> int:
    """Return the bytes resident in this process that are no file's, as exactly as the kernel says."""
    fields = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        fields[key] = int(value.split()[0]) * 1024
    return fields["Anonymous"]


def open_files() -> int:
    """Return the number of open descriptors."""
    return len(os.listdir("/proc/self/fd"))


def threads_of(pid: int | str = "self") -> dict[int, str]:
    """Return the names of a process's threads, by number.

    The kernel's list stops short at a thread that ends while it is read (proc_task_readdir), so that
    others can be missing: it has to say the same twice.
    """

    def read() -> dict[int, str]:
        names = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                names[int(task.name)] = (task / "comm").read_text().strip()
        return names

    names, before = read(), None
    while names != before:
        names, before = read(), names
    return names


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and not yet waited for."""
    children = []
    for thread in threads_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            children += [int(child) for child in text.split()]
    return children


class Background:
    """A function in a thread of its own; `result()` returns or raises what it did."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._outcome: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(function, *arguments), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._outcome[:] = [function(*arguments), None]
        except BaseException as error:
            self._outcome[:] = [None, error]

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, timeout: float = 3 * PATIENCE) -> Any:
        self._thread.join(timeout)
        assert self.done, "the thread did not come back"
        value, error = self._outcome
        if error is not None:
            raise error
        return value


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE) -> None:
    """Poll until the condition holds."""
    patience = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < patience, "waited in vain"
        time.sleep(0.001)


def collected() -> None:
    """Run Python's collector until nothing more is found."""
    while gc.collect():
        pass


_PREAMBLE = """
import sys
sys.path.insert(0, {tests!r})
import sandhost
from helpers import *
"""


def run_python(
    source: str,
    *,
    timeout: float = 60.0,
    options: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    interrupt_after: str | None = None,
    prefix: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own, with these helpers imported.

    With `interrupt_after` it gets a SIGINT once that line was printed. A program that outlives
    its timeout is killed, and the test fails.
    """
    program = _PREAMBLE.format(tests=str(ROOT / "tests")) + textwrap.dedent(source)
    command = [*prefix, sys.executable, *options, "-c", program]
    full_env = {**os.environ, "PYTHONSAFEPATH": "1", **(env or {})}
    # Python 3.12 warns of every fork beside threads, which is what is tested here.
    full_env["PYTHONWARNINGS"] = "ignore:This process:DeprecationWarning"
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=full_env,
        cwd="/",
        start_new_session=True,
    ) as process:
        seen = ""
        try:
            if interrupt_after is not None:
                assert process.stdout is not None
                seen = process.stdout.readline()
                if seen.strip() == interrupt_after:
                    time.sleep(0.2)
                    process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            raise AssertionError(f"the program hung; it said\n{seen}{stdout}\n{stderr}") from None
        return subprocess.CompletedProcess(command, process.returncode, seen + stdout, stderr)


def run_cleanly(source: str, **options: Any) -> str:
    """Run a program that must end with status 0 and say nothing on stderr; return its stdout."""
    done = run_python(source, **options)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.stdout}\n{done.stderr}"
    return done.stdout
