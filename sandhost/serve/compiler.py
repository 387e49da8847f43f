"""Processes that compile modules, so that a module costs no more time and memory than it may, and can be stopped.

    service ── {"module": path, ...} ──► child: limits, nice, Host.load ──► the compile cache
            ◄── {"done": ...} ─────────                                          │
            Host.load ◄──────────────── code, mapped ────────────────────────────┘

wasmtime compiles a module in one call, which nothing in the process can end. In a child it can be killed: when it takes
too long, and when the service ends. The child's memory is bounded by RLIMIT_DATA, its processor time by RLIMIT_CPU, to
whole seconds. It gives way to the service, and what it needs to parse a module is not the service's. What it leaves is
in the compile cache, from which the service maps it. Where there is no cache, the service compiles once more: what is
known by then to be bounded.

A child lives for several modules, since it takes 0.1 s to start: until it was idle for `_IDLE_S`, or had a large one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ModuleError, SandhostError
from .problems import BadPlugin, Unavailable

__all__ = ["Compilers", "main"]

_IDLE_S = 20.0
_LARGE_KIB = 512 << 10
"""A child that was as large does not stay. Arbitrary, as all of these."""
_NICE = 10
_START_S = 300.0
_STALLED = 5
"""A module may take so many times its processor time by the clock, and `_START_S`: the machine may be busy."""
_MOST_SAID = 10_000
_SECRETS = ("SANDHOST_ADMIN_TOKEN", "SANDHOST_OBSERVE_TOKEN")
_START = "from sandhost.serve.compiler import main; main()"


class Compilers:
    """Children, as many as are asked for at once. For threads; close it, or use it in a `with` block.

    Args:
        memory: bytes that one may have.
        within_s: processor time that one module may take, so that a busy machine fails none.
        background: they run only while nothing else in this control group wants their processor.
    """

    def __init__(self, memory: int, within_s: float, *, background: bool = False) -> None:
        self._memory, self._within_s, self._background = memory, within_s, background
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False

    def compile(self, module: Path, digest: str, name: str, *, fuel: bool) -> None:
        """Have a module compiled, and its code in the compile cache; blocks.

        Args:
            digest: SHA-256 of its bytes.
            name: as for `Host.load`.

        Raises:
            ModuleError: it cannot be compiled.
            BadPlugin: it takes more time or memory than it may.
            Unavailable: this was closed meanwhile.
            OSError: no child can be started, or the module not be read.
        """
        order = {"module": str(module.absolute()), "digest": digest, "name": name, "fuel": fuel}
        child = self._take()
        kept = False
        try:
            answer = child.ask(order, self._within_s)
            if answer is None:
                answer = {"failed": child.died_of()}
            kept = answer.get("stays", False)
        finally:
            self._give_back(child, kept=kept)
        if "done" in answer:
            return
        if self._closed:
            raise Unavailable("the service is stopping")
        kind, said = answer["failed"], answer.get("message", "")
        if kind == "module":
            raise ModuleError(said, answer["offset"])
        if kind == "sandhost":
            raise BadPlugin(said)
        if kind == "late":
            raise BadPlugin(
                f"compiling it takes more than the {self._within_s:g} s of processor time that it may"
            )
        if kind == "died":
            raise BadPlugin(
                f"compiling it takes more than the {self._memory:,} bytes of memory that it may"
            )
        raise OSError(f"a compiler failed: {said}")

    def _take(self) -> _Child:
        while True:
            with self._lock:
                if self._closed:
                    raise Unavailable("the service is stopping")
                is_new = not self._idle
                child = (
                    _Child(self._memory, background=self._background)
                    if is_new
                    else self._idle.pop()
                )
                self._busy.add(child)
            if child.hello():
                return child
            self._give_back(child, kept=False)
            if is_new:
                raise OSError("a compiler's process could not be started")

    def _give_back(self, child: _Child, *, kept: bool) -> None:
        with self._lock:
            self._busy.discard(child)
            if kept and not self._closed:
                self._idle.append(child)
                return
        child.end()

    def close(self) -> None:
        """End all children, also under a module that is being compiled."""
        with self._lock:
            self._closed = True
            busy, idle = list(self._busy), self._idle
            self._idle = []
        for child in busy:
            child.kill()
        for child in idle:
            child.end()

    def __enter__(self) -> Compilers:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Child:
    """One process, which one thread at a time asks."""

    def __init__(self, memory: int, *, background: bool) -> None:
        self._stalled = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(memory), *(["background"] if background else [])],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",  # nothing there is imported by mistake
            env={name: value for name, value in os.environ.items() if name not in _SECRETS},
        )

    def hello(self) -> bool:
        """Tell whether it is there, and will wait for an order from now on."""
        with contextlib.suppress(OSError):
            self._send({})
            return self._receive(_START_S) == {}
        return False

    def ask(self, order: dict[str, Any], within_s: float) -> dict[str, Any] | None:
        """Return its answer; None when it has ended, or is not heard of."""
        with contextlib.suppress(OSError):
            self._send({**order, "within_s": within_s})
            return self._receive(_STALLED * within_s + _START_S)
        return None

    def died_of(self) -> str:
        """End it; return "late" if its time was over, else "died"."""
        self._process.kill()  # harmless to what has ended by itself
        late = self._process.wait() == -signal.SIGXCPU
        return "late" if late or self._stalled else "died"

    def _send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def _receive(self, within_s: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        file, until_s, line = self._process.stdout.fileno(), time.monotonic() + within_s, b""
        poll = select.poll()
        poll.register(file, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
                self._stalled = True
                return None
            piece = os.read(file, 65536)
            if not piece:
                return None
            line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End it, under whoever asks it."""
        self._process.kill()

    def end(self) -> None:
        """End it, and forget it."""
        self._process.kill()
        with self._process:
            pass


# ---- the child ----


def main() -> None:
    """Compile what stdin orders, a line of JSON each, until its end."""
    memory, background = int(sys.argv[1]), "background" in sys.argv[2:]
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    os.nice(_NICE)
    if background and len(os.sched_getaffinity(0)) > 1:  # as native/os_threads.c has it for guests
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # before the service
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    from ..host import Host

    with Host(max_guests=1) as host:
        while True:
            try:
                order = json.loads(orders.get(timeout=_IDLE_S))
            except queue.Empty:
                return
            answer = {}
            if order:
                used = resource.getrusage(resource.RUSAGE_SELF)
                end_s = math.ceil(used.ru_utime + used.ru_stime + order["within_s"])
                resource.setrlimit(resource.RLIMIT_CPU, (end_s, resource.RLIM_INFINITY))
                answer = _compile(host, order)
                answer["stays"] = _peak_kib() < _LARGE_KIB
            os.write(1, json.dumps(answer).encode() + b"\n")


def _peak_kib() -> int:
    """Return the most that was resident. Not ru_maxrss, which begins with what the service had when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split(None, 1)[0])


def _listen(orders: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    os._exit(0)  # the service is gone: so is what was being compiled


def _compile(host: Any, order: dict[str, Any]) -> dict[str, Any]:
    try:
        module = Path(order["module"]).read_bytes()
        if hashlib.sha256(module).hexdigest() != order["digest"]:
            raise OSError("the disk has altered it")
        host.load(module, name=order["name"], fuel=order["fuel"])
    except ModuleError as error:
        return {"failed": "module", "message": error.args[0][:_MOST_SAID], "offset": error.offset}
    except SandhostError as error:
        return {"failed": "sandhost", "message": str(error)[:_MOST_SAID]}
    except MemoryError:
        return {"failed": "died"}
    except Exception:  # noqa: BLE001  the service raises it again
        return {"failed": "fault", "message": traceback.format_exc()}
    return {"done": True}
