"""How each row of the figures table is measured. Each function returns one `Row`."""

from __future__ import annotations

import gc
import mmap
import threading
import time
from array import array
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import wasmtime
from common import Claim, CPooling, Row, fresh_import_us, in_turn, median, percentile, summary_us

import sandhost
from sandhost.bench.contenders import Ours, Samples
from sandhost.bench.kernel import process_private_bytes, resident_bytes
from sandhost.bench.peers import Wasmtime
from sandhost.bench.sweep import block
from sandhost.bench.workload import Call, Workload, built_in, guest_bytes

_CALLS = 20_000


def bound_function(quick: bool) -> Row:
    """Call `add = guest.func("add"); add(2, 3)` over and over."""
    store = wasmtime.Store(engine := wasmtime.Engine())
    instance = wasmtime.Instance(store, wasmtime.Module(engine, guest_bytes("bench")), [])
    theirs = instance.exports(store)["add"]

    def time_ours() -> float:
        started = perf_counter_ns()
        for _ in repeat(None, _CALLS):
            add(2, 3)
        return (perf_counter_ns() - started) / _CALLS

    def time_theirs() -> float:
        calls = _CALLS // 20
        started = perf_counter_ns()
        for _ in repeat(None, calls):
            theirs(store, 2, 3)
        return (perf_counter_ns() - started) / calls

    with sandhost.Host() as host, host.load(guest_bytes("bench")).spawn() as guest:
        add = guest.func("add")
        times = in_turn({"sandhost": time_ours, "wasmtime-py": time_theirs}, 10 if quick else 40)
    return _compare_calls(
        "add(2, 3), a bound function",
        f"{_CALLS} calls a block, the loop included; median of the blocks' means",
        times,
        limit_us=0.7,
        least_ratio=40,
    )


def host_function(quick: bool) -> Row:
    """Have a guest call a Python host function `inc(i32) -> i32` over and over."""
    wasm = guest_bytes("hostcall")
    host = sandhost.Host()

    @host.function("env", "inc")
    def inc(value: int) -> int:
        return value + 1

    @host.function("env", "nop")
    def nop() -> None:
        pass

    guest = host.load(wasm).spawn()
    ours = guest.func("call_inc")
    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    i32 = wasmtime.ValType.i32()
    linker.define_func("env", "inc", wasmtime.FuncType([i32], [i32]), lambda value: value + 1)
    linker.define_func("env", "nop", wasmtime.FuncType([], []), lambda: None)
    theirs = linker.instantiate(store, wasmtime.Module(engine, wasm)).exports(store)["call_inc"]

    def time_ours() -> float:
        started = perf_counter_ns()
        if ours(_CALLS) != _CALLS:
            raise SystemExit("the guest did not call back as often as asked")
        return (perf_counter_ns() - started) / _CALLS

    def time_theirs() -> float:
        calls = _CALLS // 20
        started = perf_counter_ns()
        if theirs(store, calls) != calls:
            raise SystemExit("wasmtime's guest did not call back as often as asked")
        return (perf_counter_ns() - started) / calls

    times = in_turn({"sandhost": time_ours, "wasmtime-py": time_theirs}, 10 if quick else 40)
    guest.close()
    host.close()
    return _compare_calls(
        "guest → host function → guest",
        f"{_CALLS} callbacks in one call of the guest; median of the means",
        times,
        limit_us=0.8,
        least_ratio=20,
    )


def _compare_calls(
    what: str, how: str, times: dict[str, list[float]], limit_us: float, least_ratio: float
) -> Row:
    ours, theirs = (median(times[name]) / 1000 for name in ("sandhost", "wasmtime-py"))
    return Row(
        what,
        how,
        [
            Claim("median", ours, "µs", limit_us),
            Claim("to wasmtime-py", theirs / ours, "×", least_ratio, at_most=False),
        ],
        {
            "us": {"sandhost": ours, "wasmtime-py": theirs},
            "blocks_ns": {
                name: sorted(round(t, 1) for t in values) for name, values in times.items()
            },
        },
    )


def cycles(quick: bool) -> list[Row]:
    """Spawn, call and close guests with 64 KiB of data that dirty 0, 16 and 256 pages."""
    limits_us = {0: 12.0, 16: 15.0, 256: 60.0}
    rows = []
    in_c = {0: CPooling(0), 1 << 20: CPooling(1 << 20)}
    for pages, limit in limits_us.items():
        workload = built_in(pages)
        pythons = {
            "sandhost warm": Ours("warm", workload),
            "sandhost immediate": Ours("immediate", workload),
            "wasmtime-py pooled": Wasmtime(workload, pooling=True),
            "wasmtime-py": Wasmtime(workload, pooling=False),
        }
        block_s = 0.05 if quick else 0.25

        def run_python(contender: Any, block_s: float = block_s) -> array[int]:
            return block(contender, 1, block_s)[0].of("cycle")

        def run_c(keep: int, pages: int = pages, block_s: float = block_s) -> list[int]:
            return in_c[keep].cycles(pages, round(block_s * 1000))

        runs: dict[str, Callable[[], Any]] = {
            name: (lambda contender=contender: run_python(contender))
            for name, contender in pythons.items()
        }
        runs["C, pooled"] = lambda: run_c(0)
        runs["C, pooled, keep_resident 1 MiB"] = lambda: run_c(1 << 20)
        in_turn(runs, 1)  # to warm up
        samples = in_turn(runs, 5 if quick else 9)
        for contender in pythons.values():
            contender.close()
        rows.append(_cycle_row(pages, limit, samples))
    for program in in_c.values():
        program.close()
    return rows


def _cycle_row(pages: int, limit: float, samples: dict[str, list[Any]]) -> Row:
    us = {name: summary_us([ns for b in blocks for ns in b]) for name, blocks in samples.items()}
    p50 = {name: median([median(b) for b in blocks]) / 1000 for name, blocks in samples.items()}
    ours = p50["sandhost warm"]
    claims = [Claim("median", ours, "µs", limit)]
    if pages in (0, 16):
        ratio = p50["wasmtime-py pooled"] / ours
        claims.append(Claim("to wasmtime-py pooled", ratio, "×", 6, at_most=False))
    if pages in (16, 256):
        ratio = p50["C, pooled"] / ours
        claims.append(Claim("to pooling in C", ratio, "×", 1, at_most=False))
    return Row(
        f"spawn+call+close, {pages} pages",
        "policy warm (the default); a block each in turn, median of the blocks' medians",
        claims,
        {"us_p50_of_blocks": p50, "us": us},
    )


def close_under_load(quick: bool) -> Row:
    """Close guests with 1 MiB dirtied, policy immediate, while another thread spawns."""
    wanted = 2_000 if quick else 20_000
    samples = {}
    reclaimed = 0
    with sandhost.Host(reclaim="immediate") as host:
        plugin = host.load(guest_bytes("bench"))
        stop = threading.Event()
        others = 0

        def spawn_on() -> None:
            nonlocal others
            while not stop.is_set():
                plugin.spawn().close()
                others += 1

        for name in ("alone", "while another thread spawns"):
            taken = array("q")
            thread = threading.Thread(target=spawn_on)
            if name != "alone":
                thread.start()
            for _ in range(wanted):
                guest = plugin.spawn()
                guest.call("dirty", 256)
                started = perf_counter_ns()
                reclaim = guest.close()
                taken.append(perf_counter_ns() - started)
                reclaimed += reclaim.bytes == 1 << 20
            stop.set()
            if name != "alone":
                thread.join()
            samples[name] = taken
            stop.clear()
    if reclaimed != 2 * wanted:
        raise SystemExit(f"{2 * wanted - reclaimed} closes did not give back exactly 1 MiB")
    loaded = sorted(samples["while another thread spawns"])
    return Row(
        "close of 1 MiB, others spawn",
        f"policy immediate; {wanted} closes; the other thread spawned and closed {others} guests meanwhile",
        [
            Claim("p50", percentile(loaded, 50) / 1000, "µs", 40),
            Claim("p99.9", percentile(loaded, 99.9) / 1000, "µs", 300),
        ],
        {"us": {name: summary_us(taken) for name, taken in samples.items()}, "others": others},
    )


def two_threads(quick: bool) -> Row:
    """Run cycles on two threads at once, and on one."""
    ratios = {}
    rates = {}
    workloads = {f"{pages} pages": built_in(pages) for pages in (0, 16, 256)}
    workloads["computing"] = Workload("secrets", guest_bytes("secrets"), Call("scan", (0,)))
    for label, workload in workloads.items():
        contenders = {
            "sandhost warm": Ours("warm", workload),
            "sandhost immediate": Ours("immediate", workload),
            "wasmtime-py pooled": Wasmtime(workload, pooling=True),
        }
        runs: dict[str, Callable[[], float]] = {}
        for name, contender in contenders.items():
            for threads in (1, 2):
                runs[f"{name}, {threads}"] = lambda c=contender, t=threads: _rate(
                    *block(c, t, 0.1 if quick else 0.4)
                )
        measured = in_turn(runs, 5 if quick else 9)
        for contender in contenders.values():
            contender.close()
        rates[label] = {name: median(values) for name, values in measured.items()}
        ratios[label] = {
            name: median(measured[f"{name}, 2"]) / median(measured[f"{name}, 1"])
            for name in contenders
        }
    return Row(
        "two threads, to one",
        "spawn + call + close, policy warm, cycles a second; 0, 16 and 256 dirty pages, and a guest "
        "that computes for some 0.2 ms",
        [
            Claim(label, by_name["sandhost warm"], "×", 1.6, at_most=False)
            for label, by_name in ratios.items()
        ],
        {
            "ratios": ratios,
            "cycles_per_s": rates,
            "two_c_programs_to_one": _machine_scales(quick),
        },
    )


def whole_lives(quick: bool) -> Row:
    """Spawn, call and close in one crossing, `plugin.call`, on one thread and on two."""
    blocks = 5 if quick else 15
    lives = 500 if quick else 4_000
    claims, detail = [], {}
    with sandhost.Host() as host:
        plugin = host.load(guest_bytes("bench"))
        for pages, limit_us in ((0, 12), (16, 15), (256, 60)):

            def run(pages: int = pages) -> None:
                call = plugin.call
                for _ in repeat(None, lives):
                    call("dirty", pages)

            def rate(count: int, run: Callable[[], None] = run) -> float:
                threads = [threading.Thread(target=run) for _ in range(count)]
                started = perf_counter_ns()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                return count * lives / (perf_counter_ns() - started)

            rates = in_turn({"1": lambda: rate(1), "2": lambda: rate(2)}, blocks)
            median_us = 1 / median(rates["1"]) / 1000
            ratio = median(rates["2"]) / median(rates["1"])
            claims.append(Claim(f"{pages} pages", median_us, "µs", limit_us))
            claims.append(Claim(f"{pages} pages, two threads", ratio, "×", 1.6, at_most=False))
            detail[str(pages)] = {"us": median_us, "two_threads": ratio}
    return Row(
        "plugin.call, a whole life",
        f"{lives} lives a block, policy warm; two threads: lives a second, to one thread",
        claims,
        detail,
    )


def _machine_scales(quick: bool) -> float:
    """Return what two C programs at once reach, to one: what the machine has to give just now."""
    programs = [CPooling(0), CPooling(0)]
    milliseconds = 100 if quick else 400

    def run(count: int) -> float:
        started = time.perf_counter()
        for program in programs[:count]:
            program.begin(16, milliseconds)
        done = sum(len(program.finish()) for program in programs[:count])
        return done / (time.perf_counter() - started)

    rates = in_turn({"1": lambda: run(1), "2": lambda: run(2)}, 5)
    for program in programs:
        program.close()
    return median(rates["2"]) / median(rates["1"])


def _rate(samples: Samples, seconds: float) -> float:
    return len(samples.spawn) / seconds


def many_guests(quick: bool) -> Row:
    """Have 10,000 guests alive at once."""
    count = 10_000
    maps = Path("/proc/self/maps")
    with sandhost.Host(reclaim="immediate") as host:
        plugin = host.load(guest_bytes("bench"))
        plugin.spawn().close()
        gc.collect()
        before, private, vmas = resident_bytes(), process_private_bytes(), _lines(maps)
        started = time.perf_counter()
        guests = [plugin.spawn() for _ in range(count)]
        seconds = time.perf_counter() - started
        idle = (resident_bytes() - before) / count / 1024
        idle_private = (process_private_bytes() - private) / count / 1024
        mappings = _lines(maps) - vmas
        right = sum(guest.call("add", 2, 3) == 5 for guest in guests)
        called = (resident_bytes() - before) / count / 1024
        for guest in guests:
            guest.close()
        del guests
        gc.collect()
        after = (resident_bytes() - before) / 1024
    return Row(
        "10,000 live guests",
        "resident by /proc/self/statm, all guests alive and idle, to none alive",
        [
            Claim("alive, answering", right, "guests", count, at_most=False),
            Claim("resident each", idle, "KiB", 20),
        ],
        {
            "private_kib_each": idle_private,
            "resident_kib_each_after_a_call": called,
            "mappings_each": mappings / count,
            "max_map_count": int(Path("/proc/sys/vm/max_map_count").read_text()),
            "spawn_us_each": seconds / count * 1e6,
            "left_kib_in_all_after_close": after,
            "page_bytes": mmap.PAGESIZE,
            "quick": quick,
        },
    )


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def million_cycles(quick: bool) -> Row:
    """Run a million cycles and look at resident memory."""
    count = 100_000 if quick else 1_000_000
    first = 10_000
    with sandhost.Host() as host:
        plugin = host.load(guest_bytes("bench"))
        trace = []
        for number in range(count + 1):
            if number % first == 0:
                trace.append(resident_bytes())
            guest = plugin.spawn()
            guest.call("dirty", 16)
            guest.close()
        trace.append(resident_bytes())
    grown = (trace[-1] - trace[1]) / (1 << 20)
    return Row(
        f"{count:,} cycles",
        "resident by /proc/self/statm every 10,000 cycles; 16 pages dirtied, policy warm",
        [Claim("growth after 10,000", grown, "MiB", 2)],
        {"resident_bytes": trace, "most_mib_above": (max(trace) - trace[1]) / (1 << 20)},
    )


def import_time(quick: bool) -> Row:
    """Import in fresh interpreters, in turn."""
    runs = {name: (lambda name=name: fresh_import_us(name)) for name in ("sandhost", "wasmtime")}
    in_turn(runs, 1)  # byte code is compiled once
    times = in_turn(runs, 8 if quick else 25)
    ms = {name: median(values) / 1000 for name, values in times.items()}
    return Row(
        "import sandhost",
        "fresh interpreters in turn, the import statement timed inside; median",
        [Claim("of import wasmtime", ms["sandhost"] / ms["wasmtime"], "×", 1)],
        {"ms": ms, "all_us": times},
    )
