"""Feeds mutated modules and random calls to hosts in a process of its own, watched from outside.

    python tests/fuzz/fuzz_modules.py --seconds 300 [--seed N]

Only SandhostError, TypeError and OverflowError may come out; the process must not die nor hang, and at
the end nothing may be left. What breaks that is written to a file that `--replay FILE` runs again.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sandhost
from sandhost.modules.compiled import read_source
from sandhost.modules.types import FuncType

GUESTS = Path(__file__).resolve().parents[2] / "guests"

STUCK_S = 30.0  # for one module; compiling takes a fraction of a second, calls have a deadline
SEED_BYTES = 20_000  # larger ones are compiled too slowly to learn much
NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    8,
    16,
    63,
    64,
    4095,
    4096,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
]
OPERATIONS = [
    ["i32.add", "i32.sub", "i32.mul", "i32.div_s", "i32.div_u", "i32.rem_s", "i32.shl", "i32.and"],
    ["i64.add", "i64.sub", "i64.div_u", "i64.rem_u", "i64.rotl"],
    ["i32.load", "i32.load8_u", "i32.load8_s", "i32.load16_u"],
    ["i32.store", "i32.store8", "i32.store16"],
    ["i32.eqz", "i32.clz", "i32.popcnt", "i32.extend8_s"],
    ["memory.fill", "memory.copy"],
    ["br_if", "br"],
]
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x40, 0x0B, 0x41, 0x60, 0x70, 0x7B, 0x7C, 0x7E, 0xFC, 0xFD]


# ---- the watched process ----


def seeds() -> list[bytes]:
    """Return binaries of all guests that are not large."""
    found = []
    for path in sorted([*GUESTS.glob("wat/*.wat"), *GUESTS.glob("built/*.wasm")]):
        try:
            _, wasm = read_source(path)
        except sandhost.ModuleError:
            continue
        if len(wasm) <= SEED_BYTES:
            found.append(wasm)
    return found


def mutate(rng: random.Random, wasm: bytes, others: list[bytes]) -> bytes:
    """Return a module that differs in some bytes, is cut, or has a piece of another in it."""
    data = bytearray(wasm)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(8, max(len(data), 9))
        kind = rng.randrange(8)
        if kind == 0:
            data[at : at + 1] = bytes([rng.choice(INTERESTING)])
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and at < len(data):
            data[at] = (data[at] + rng.choice((-1, 1))) % 256
        elif kind == 3:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            data[at:at] = other[start : start + rng.randrange(1, 64)]
        elif kind == 6:
            data[at : at + 5] = b"\xff\xff\xff\xff\x0f"
        else:
            start = rng.randrange(8, max(len(data), 9))
            data[at:at] = data[start : start + rng.randrange(1, 200)]
    if rng.random() < 0.03:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def texts() -> list[str]:
    """Return the text guests that are not large."""
    found = [path.read_text() for path in sorted(GUESTS.glob("wat/*.wat"))]
    return [text for text in found if len(text) <= SEED_BYTES]


def mutate_text(rng: random.Random, text: str) -> bytes:
    """Return a module text with other numbers, instructions or types: most of them are still valid."""
    for _ in range(rng.choice((1, 2, 4))):
        kind = rng.randrange(5)
        if kind <= 1:
            spots = list(re.finditer(r"(?<![\w$.])-?(?:0x[0-9a-f]+|\d+)(?![\w.])", text))
            new = str(rng.choice(NUMBERS))
        elif kind == 2:
            operations = rng.choice(OPERATIONS)
            spots = list(re.finditer("|".join(map(re.escape, operations)), text))
            new = rng.choice(operations)
        elif kind == 3:
            spots = list(re.finditer(r"\b(?:i32|i64|f32|f64|v128|funcref|externref)\b", text))
            new = rng.choice(["i32", "i64", "f32", "f64", "v128", "funcref", "externref"])
        else:
            spots = list(re.finditer(r"\((?:drop|nop|unreachable|memory\.size)\)", text))
            new = rng.choice(["(nop)", "(unreachable)", "(drop (memory.size))"])
        if spots:
            spot = rng.choice(spots)
            text = text[: spot.start()] + new + text[spot.end() :]
    return text.encode()


def argument(rng: random.Random, kind: str) -> object:
    """Return an argument for a parameter, mostly of its type."""
    if rng.random() < 0.05:
        return rng.choice([None, "x", b"", 2**64, -(2**70), 1.5, [], math.nan])
    if kind in ("i32", "i64"):
        bits = int(kind[1:])
        edge = rng.choice([0, 1, -1, 2**bits - 1, 2 ** (bits - 1), -(2 ** (bits - 1)), 65536, 4096])
        return rng.choice([edge, rng.randrange(-(2 ** (bits - 1)), 2**bits)])
    if kind == "v128":
        return rng.randbytes(16)
    return rng.choice([0.0, -0.0, math.inf, math.nan, 1e308, rng.uniform(-1e6, 1e6)])


def use_memory(rng: random.Random, guest: sandhost.Guest) -> None:
    if not guest.plugin.info.memories:
        return
    memory = guest.memory_at(rng.randrange(len(guest.plugin.info.memories)))
    where = rng.choice([0, memory.size - 4, memory.size, -1, rng.randrange(-(2**33), 2**33)])
    for use in (
        lambda: memory.read(where, rng.randrange(0, 9)),
        lambda: memory.write(where, rng.randbytes(rng.randrange(0, 9))),
        lambda: bytes(memory.view(where, rng.randrange(0, 9))),
    ):
        try:
            use()
        except sandhost.SandhostError:
            pass


def exercise(rng: random.Random, host: sandhost.Host, wasm: bytes, fuel: bool) -> str:
    """Load, spawn and call one module; return how far it came."""
    try:
        plugin = host.load(wasm, fuel=fuel)
    except sandhost.SandhostError:
        return "refused"
    str(plugin.info), repr(plugin)
    limits = sandhost.Limits(
        memory=rng.choice(["8 MiB", "64 MiB"]),
        deadline=0.05,
        fuel=rng.choice([None, 1000, 10**6]) if fuel else None,
        table_elements=10_000,
    )
    try:
        guest = plugin.spawn(limits=limits, tenant=rng.choice("ab"))
    except sandhost.SandhostError as error:
        str(error)
        return "not spawned"
    with guest:
        functions = [e for e in plugin.info.exports if isinstance(e.type, FuncType)]
        for _ in range(min(len(functions) * 2, 12)):
            export = rng.choice(functions)
            arguments = [argument(rng, kind) for kind in export.type.params]
            if rng.random() < 0.03:
                arguments.append(1)
            try:
                guest.call(export.name, *arguments)
            except (sandhost.SandhostError, TypeError, OverflowError, RecursionError) as error:
                str(error)
            use_memory(rng, guest)
        guest.stats()
    return "called"


def worker(seed: int, seconds: float, journal: Path, replay: bytes | None) -> None:
    """Fuzz until time is up; the journal holds what is being tried."""
    rng = random.Random(seed)
    corpus, sources = seeds(), texts()
    tally = {"refused": 0, "not spawned": 0, "called": 0}
    until = time.monotonic() + seconds
    with sandhost.Host(
        cache=False,
        max_guests=64,
        memory_limit="256 MiB",
        optimize=False,
        reclaim=rng.choice(("immediate", "warm", "lazy")),
    ) as host:

        def descend(guest: sandhost.Guest, n: int) -> int:
            return guest.call("descend", n)

        host.function("env", "nop", "()")(lambda: None)
        host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
        host.function("env", "descend")(descend)
        while time.monotonic() < until:
            if rng.random() < 0.5:
                wasm = mutate(rng, rng.choice(corpus), corpus)
            else:
                wasm = mutate_text(rng, rng.choice(sources))
            wasm = replay or wasm
            fuel = rng.random() < 0.3
            journal.write_bytes(wasm)
            tally[exercise(rng, host, wasm, fuel)] += 1
            if replay:
                break
        host.trim()
        stats = host.stats()
        left = (
            stats.guests_live,
            stats.regions_live,
            stats.committed_bytes,
            stats.quarantined_slots,
        )
        assert left == (0, 0, 0, 0), left
        assert all(host.tenant(name).memory_bytes == 0 for name in "ab")
        del wasm
    print(tally)
    assert replay or (tally["refused"] and tally["called"]), "the mutations are of no use"


# ---- the watcher ----


def fuzz(seconds: float, seed: int, replay: Path | None = None) -> str:
    """Run a worker; return what it printed.

    Raises:
        AssertionError: it died, hung or let another error out; with the module that did it.
    """
    journal = Path(tempfile.gettempdir()) / f"fuzz_modules_{os.getpid()}.wasm"
    command = [sys.executable, __file__, "--worker", "--seconds", str(seconds), "--seed", str(seed)]
    command += ["--journal", str(journal)]
    if replay:
        command += ["--replay", str(replay)]
    with tempfile.TemporaryFile("w+") as output:  # a pipe would fill up while nobody reads
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd="/")
        tried, since = 0.0, time.monotonic()
        try:
            while process.poll() is None and time.monotonic() - since < STUCK_S:
                time.sleep(0.1)
                changed = journal.stat().st_mtime if journal.exists() else 0.0
                if changed != tried:
                    tried, since = changed, time.monotonic()
        finally:
            stuck = process.poll() is None
            if stuck:
                process.kill()
            process.wait()
        output.seek(0)
        said = output.read()
    if process.returncode or stuck:
        kept = journal.with_suffix(f".seed{seed}.wasm")
        if journal.exists():
            journal.rename(kept)
        what = "hung" if stuck else f"ended with {process.returncode}"
        raise AssertionError(f"seed {seed}: the worker {what} at {kept}\n{said[-4000:]}")
    journal.unlink(missing_ok=True)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        replay = options.replay.read_bytes() if options.replay else None
        worker(options.seed, options.seconds, options.journal, replay)
        return
    until = time.monotonic() + options.seconds
    seed = options.seed
    while (
        True
    ):  # a worker a minute: state that builds up is seen, and so is what only fresh ones do
        left = until - time.monotonic()
        if left <= 0:
            return
        print(f"seed {seed}:", fuzz(min(left, 60.0), seed, options.replay).strip(), flush=True)
        if options.replay:
            return
        seed += 1


if __name__ == "__main__":
    main()
