"""What the benchmark scripts share: rounds, statistics, rows of a table, the C program."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sandhost import _wasmtime
from sandhost.bench.workload import guest_bytes

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclass
class Claim:
    """One thing to reach: a measured value and its limit."""

    what: str
    measured: float
    unit: str
    limit: float
    at_most: bool = True
    """False: at least."""

    @property
    def reached(self) -> bool:
        """Whether the measured value keeps the limit."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{three_digits(self.measured)} {self.unit}  ({sign} {self.limit:,g})"


@dataclass
class Row:
    """One row of the table: its claims, and everything else that was measured on the way."""

    what: str
    how: str
    claims: list[Claim]
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """Whether all claims are."""
        return all(claim.reached for claim in self.claims)

    def as_json(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "what": self.what,
            "how": self.how,
            "reached": self.reached,
            "claims": [{**asdict(c), "reached": c.reached} for c in self.claims],
            "detail": self.detail,
        }


def three_digits(value: float) -> str:
    """Return a number with three digits, or with all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the samples did not exceed."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)]


def summary_us(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Return percentiles in µs."""
    ascending = sorted(nanoseconds)
    out = {f"p{p:g}": percentile(ascending, p) / 1000 for p in (50, 90, 99, 99.9)}
    return {**out, "max": ascending[-1] / 1000, "samples": len(ascending)}


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Run all contenders in each round, in an order that rotates; return their results."""
    names = list(contenders)
    results: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(rounds):
        for number in range(len(names)):
            name = names[(number + turn) % len(names)]
            results[name].append(contenders[name]())
    return results


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


class CPooling:
    """The C program with the C API's own pooling allocator, running beside us and idle until asked."""

    _built: Path | None = None

    def __init__(self, keep_resident: int) -> None:
        if CPooling._built is None:
            CPooling._built = _build()
        folder = CPooling._built.parent
        guest = folder / "bench.wasm"
        guest.write_bytes(guest_bytes("bench"))
        library, _ = _wasmtime.locate()
        self._process = subprocess.Popen(
            [CPooling._built, library, guest, str(keep_resident)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def cycles(self, pages: int, milliseconds: int) -> list[int]:
        """Run cycles for a while; return what each took, in ns."""
        self.begin(pages, milliseconds)
        return self.finish()

    def begin(self, pages: int, milliseconds: int) -> None:
        """Have it run cycles from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pages} {milliseconds}\n")
        self._process.stdin.flush()

    def finish(self) -> list[int]:
        """Wait for what was begun; return what each cycle took, in ns."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("c_pooling ended early")
        return list(map(int, line.split()))

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _build() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="c_pooling"))
    out = folder / "c_pooling"
    source = [HERE / "c_pooling.c", "-I", HERE.parent / "native"]
    subprocess.run(["cc", "-O2", "-Wall", *source, "-o", out, "-ldl"], check=True)
    return out


def native_program(name: str) -> Path:
    """Compile a C program of this folder with the native sources, but those for Python."""
    native = HERE.parent / "native"
    out = Path(tempfile.mkdtemp(prefix=name)) / name
    sources = [path for path in native.glob("*.c") if not path.name.startswith("python")]
    flags = ["-std=gnu11", "-O3", "-DNDEBUG", "-D_GNU_SOURCE", "-I", native]
    command = ["cc", *flags, HERE / f"{name}.c", *sources, "-o", out, "-lpthread", "-ldl"]
    subprocess.run(command, check=True)
    return out


def fresh_import_us(module: str) -> float:
    """Return how long a fresh interpreter takes for one import."""
    code = (
        "import time; t = time.perf_counter_ns(); "
        f"import {module}; print(time.perf_counter_ns() - t)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/"
    )
    return int(done.stdout) / 1000
