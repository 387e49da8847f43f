"""The service under more than it can do: a hostile tenant among twenty, ten times too much, a million requests.

    python benchmarks/overload.py             # seven minutes, into benchmarks/results/
    python benchmarks/overload.py --quick     # a rough look, one minute
    python benchmarks/overload.py --million   # and a million requests: six minutes more
    python benchmarks/overload.py --only apart  # each thing that the hostile tenant does by itself; six minutes

`sandhost serve` is one process, the load another, written in C so that it asks for little of the two
processors. It is open: a request's time begins when it should have been sent, whatever became of those
before. Exits with 1 while a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from common import RESULTS, Claim, Row, median, percentile
from overload_hostile import MEANS, Hostile
from overload_load import Arrival, Load, Stream, Times, call, statuses
from overload_server import Server, served

from sandhost.bench.machine import describe

TENANTS = 20
QUOTAS = {
    "tenant_cpus": 0.25,
    "tenant_guests": 50,
    "tenant_spawns_per_s": 1000,
    "tenant_memory_limit": "256 MiB",
    "tenant_compiles": 10,
}
"""Of each tenant, as an operator would set them for twenty on two processors."""
SUM = b"""(module (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "sum") (param i32) (result i32) (local i32)
    (loop
      (local.set 1 (i32.add (i32.mul (local.get 1) (i32.const 3)) (local.get 0)))
      (br_if 0 (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
    (local.get 1)))"""
CONNECTIONS = 8  # of each tenant
WINDOW_S = 0.25
PIECES = 5


def tenants(server: Server) -> list[str]:
    """Add the tenants, each with the plugin; return their tokens."""
    tokens = []
    for number in range(TENANTS):
        path = f"/v1/admin/tenants/t{number}"
        server.ask("PUT", path, b"{}")
        scopes = json.dumps({"scopes": ["deploy", "invoke"]}).encode()
        token = json.loads(server.ask("POST", f"{path}/tokens", scopes))["token"]
        server.ask("PUT", "/v1/plugins/sum", SUM, token)
        server.ask("GET", "/v1/plugins/sum/versions/1?wait=30", token=token)
        tokens.append(token)
    return tokens


class Work(NamedTuple):
    """What is asked for."""

    path: str
    body: bytes
    at_once: int
    """Connections that ask for as much as there is, without a line that is too long."""


SHORT = Work("/v1/plugins/sum/call/add", b'{"arguments": [2, 3]}', 16)
LONG = Work("/v1/plugins/sum/call/sum", b'{"arguments": [2000000]}', 4)
"""About 2 ms."""


def streams(tokens: Sequence[str], rate: float, work: Work = SHORT) -> list[Stream]:
    """Return a load of `rate` requests a second, an equal part of each tenant."""
    return [
        Stream(rate / len(tokens), CONNECTIONS, call(token, work.path, work.body))
        for token in tokens
    ]


def capacity(server: Server, tokens: Sequence[str], seconds: float, work: Work = SHORT) -> float:
    """Return how many calls a second are answered, of as many as some connections can ask for.

    The median of pieces with rests between, in all twice `seconds`: the machine is faster at one time than at another.
    """
    flood = [
        Stream(20_000 / work.at_once, 1, call(token, work.path, work.body))
        for token in tokens[: work.at_once]
    ]
    Load(server.port, flood, 1).arrivals()  # to warm up
    piece_s, found = seconds / PIECES, []
    for _ in range(PIECES):
        time.sleep(piece_s)
        arrivals = Load(server.port, flood, piece_s).arrivals()
        found.append(len(_with(arrivals, 200)) / piece_s)
    return median(found)


def say(words: str) -> None:
    """Show how far it is."""
    print(f"{time.strftime('%H:%M:%S')}  {words}", flush=True)


# ---- ten times too much ----


def too_much(quick: bool) -> Row:
    """Offer ten times the capacity for a minute: of calls that take 2 ms, so that all of it can be sent."""
    return _too_much("ten times too much", LONG, quick)


def too_much_short(quick: bool) -> Row:
    """The same of calls that take no longer than refusals, as much as connections carry.

    All connections are busy then, and wait for as long as their number divided by what is answered in a second,
    refused or not (Little's law): 7 ms. So the aim for p99 is that at 80 %, which is 20 ms.
    """
    return _too_much("too much of what is short", SHORT, quick)


def _too_much(name: str, work: Work, quick: bool) -> Row:
    """Offer ten times the capacity, between times of 80 % of it."""
    before_s, surge_s, after_s = (5.0, 10.0, 5.0) if quick else (20.0, 60.0, 15.0)
    with served() as server:
        tokens = tenants(server)
        able = capacity(server, tokens, 3 if quick else 6, work)
        say(f"capacity {able:,.0f} calls/s; now 80 % of it, ten times it, and 80 % again")
        server.refusals_ms()
        cpu_s, began_s = server.cpu_s(), time.monotonic()
        surge = (before_s, before_s + surge_s)
        load = Load(
            server.port,
            streams(tokens, 0.8 * able, work),
            before_s + surge_s + after_s,
            surge=10 / 0.8,
            surge_s=surge,
        )
        arrivals = sorted(load.arrivals(), key=lambda one: one.due_s)
        own_ms = sorted(server.refusals_ms()) or [0.0]
        cpu_s = (server.cpu_s() - cpu_s) / (time.monotonic() - began_s)
        return _judge(name, arrivals, surge, able, own_ms, cpu_s, can_be_sent=work is LONG)


def _judge(
    name: str,
    arrivals: list[Arrival],
    surge: tuple[float, float],
    able: float,
    own_ms: list[float],
    cpus: float,
    *,
    can_be_sent: bool,
) -> Row:
    calm = [one for one in arrivals if 1 <= one.due_s < surge[0]]
    loaded = [one for one in arrivals if surge[0] <= one.due_s < surge[1]]
    after = [one for one in arrivals if one.due_s >= surge[1]]
    good, let_in = _with(calm, 200), _with(loaded, 200)
    refused = _with(loaded, 429)
    driven = [one for one in loaded if one.status != 2]
    seconds = surge[1] - surge[0]
    calm_times, in_times, out_times = map(Times.of, (good, let_in, refused))
    late = sorted((one.sent_s - one.due_s) * 1e3 for one in driven)
    lost = [one for one in loaded if one.status not in (200, 429, 2)]
    in_time = [
        Claim("p99 of who is let in, to 80 %", in_times.p99 / calm_times.p99, "×", 2),
        Claim("refused within, p99, by the server", percentile(own_ms, 99), "ms", 5),
        Claim("refused within, p99, by the client", out_times.p99, "ms", 5),
    ]
    return Row(
        name,
        f"{seconds:g} s of {10 * able:,.0f} calls a second, of which {len(driven) / seconds:,.0f} were driven",
        [
            *(in_time if can_be_sent else [Claim("p99", in_times.p99, "ms", 20)]),
            Claim("recovered after", _recovery_s(after, surge[1], calm), "s", 2),
            Claim("neither answered nor refused", len(lost), "requests", 0),
        ],
        {
            "capacity_per_s": able,
            "driven_per_s": len(driven) / seconds,
            "offered_per_s": len(loaded) / seconds,
            "answered_per_s": len(let_in) / seconds,
            "at_80_percent": asdict(calm_times),
            "let_in": asdict(in_times),
            "refused": asdict(out_times),
            "refused_by_server_ms": {
                "p50": percentile(own_ms, 50),
                "p99": percentile(own_ms, 99),
                "most": own_ms[-1],
                "count": len(own_ms),
            },
            "generator_late_ms": {"p50": percentile(late, 50), "p99": percentile(late, 99)},
            "server_cpus": cpus,
            "statuses": {
                "calm": statuses(calm),
                "surge": statuses(loaded),
                "after": statuses(after),
            },
            "surge_s": surge,
            "course": _course(arrivals),
        },
    )


def _with(arrivals: Sequence[Arrival], status: int) -> list[Arrival]:
    return [one for one in arrivals if one.status == status]


def _recovery_s(after: Sequence[Arrival], from_s: float, calm: Sequence[Arrival]) -> float:
    """Return when the first second began in which each window was as before.

    That is at most twice the p99, and twice as many that were not answered: of 2 ms calls there were none before.
    """
    before = _with(calm, 200)
    most_ms, most_missed = 2 * Times.of(before).p99, 2 * (1 - len(before) / len(calm))
    in_a_row = 0
    for window in _windows(after):
        answered = _with(window, 200)
        missed = 1 - len(answered) / len(window)
        good = missed <= most_missed and Times.of(answered).p99 <= most_ms
        in_a_row = in_a_row + 1 if good else 0
        if in_a_row * WINDOW_S >= 1:
            return max(0.0, window[0].due_s - from_s - 1 + WINDOW_S)
    return math.inf


def _windows(arrivals: Sequence[Arrival]) -> list[list[Arrival]]:
    windows: dict[int, list[Arrival]] = {}
    for one in arrivals:
        windows.setdefault(int(one.due_s / WINDOW_S), []).append(one)
    return [windows[number] for number in sorted(windows)]


def _course(arrivals: Sequence[Arrival]) -> list[dict[str, float]]:
    """Return what the picture draws, by window."""
    return [
        {
            "at_s": round(window[0].due_s, 2),
            "answered_per_s": len(_with(window, 200)) / WINDOW_S,
            "refused_per_s": len(_with(window, 429)) / WINDOW_S,
            "answered_p99_ms": Times.of(_with(window, 200)).p99,
            "refused_p99_ms": Times.of(_with(window, 429)).p99,
        }
        for window in _windows(arrivals)
    ]


# ---- one hostile tenant among twenty ----


class Piece(NamedTuple):
    """What nineteen tenants met in one piece, and what the hostile one did; the processors that the server took."""

    arrivals: list[Arrival]
    met: Counter[str]
    cpus: float

    @property
    def times(self) -> Times:
        """How long what was answered took."""
        return Times.of(_with(self.arrivals, 200))


class Compared(NamedTuple):
    """Pieces in which nineteen tenants were alone, and beside the hostile one, by turns."""

    alone: list[Piece]
    beside: list[Piece]

    def ratios(self) -> list[float]:
        """Return the p99 beside, to that alone, of each turn."""
        return [b.times.p99 / a.times.p99 for a, b in zip(self.alone, self.beside)]

    def failed(self) -> float:
        """Return what part of the requests beside it was not answered."""
        beside = [one for piece in self.beside for one in piece.arrivals]
        return 1 - len(_with(beside, 200)) / len(beside)

    def detail(self) -> dict[str, Any]:
        """Return what the file keeps."""
        met: Counter[str] = Counter()
        for piece in self.beside:
            met += piece.met
        found: dict[str, Any] = {"ratios": self.ratios(), "rounds": {}, "statuses": {}}
        for name, pieces in self._asdict().items():
            arrivals = [one for piece in pieces for one in piece.arrivals]
            found[name] = asdict(Times.of(_with(arrivals, 200)))
            found["rounds"][name] = [asdict(piece.times) for piece in pieces]
            found["statuses"][name] = statuses(arrivals)
            found[f"server_cpus_{name}"] = median([piece.cpus for piece in pieces])
        return {**found, "hostile_met": dict(sorted(met.items()))}


def _compare(means: Sequence[str], rounds: int, seconds: float, *, asked_s: float) -> Compared:
    """Serve nineteen tenants by turns alone and beside these means, in a server of its own.

    Args:
        asked_s: for how long to ask before what it can do.
    """
    found = Compared([], [])
    with served(**QUOTAS) as server:
        *good, bad = tenants(server)
        load = streams(good, 0.25 * capacity(server, good, asked_s))
        attack = Hostile(server.port, bad)
        attack.prepare()
        for number in range(rounds):
            for phase in ("alone", "beside") if number % 2 else ("beside", "alone"):
                say(f"nineteen tenants {phase}, {number + 1} of {rounds}")
                running = attack.begin(seconds + 2, means) if phase == "beside" else None
                time.sleep(1)  # for what the one before left, and for this one to begin
                cpu_s = server.cpu_s()
                arrivals = Load(server.port, load, seconds, seed=number).arrivals()
                cpus = (server.cpu_s() - cpu_s) / seconds
                met = Counter(running.end() if running else {})
                getattr(found, phase).append(Piece(arrivals, met, cpus))
    return found


def apart(quick: bool) -> Row:
    """Serve nineteen tenants beside each means of the hostile one by itself."""
    rounds, seconds = (1, 4.0) if quick else (3, 5.0)
    claims, detail = [], {}
    for means in MEANS:
        say(f"beside {means}")
        found = _compare((means,), rounds, seconds, asked_s=3)
        claims.append(Claim(f"p99 beside {means}, to alone", median(found.ratios()), "×", 2))
        detail[means] = found.detail()
    how = f"{rounds} times {seconds:g} s each, at a quarter of what it can do, by turns with alone"
    return Row("a hostile tenant, by its means", how, claims, detail)


def hostile(quick: bool) -> Row:
    """Serve nineteen tenants, alone and beside one that does what it can."""
    rounds, seconds = (2, 5.0) if quick else (5, 12.0)
    found = _compare(MEANS, rounds, seconds, asked_s=3 if quick else 6)
    return Row(
        "one hostile tenant among twenty",
        f"{rounds} times {seconds:g} s at a quarter of what it can do, alone and beside",
        [
            Claim("the others' p99, to alone", median(found.ratios()), "×", 2),
            Claim("the others' requests failed", found.failed(), "of all", 0.001),
        ],
        {**found.detail(), "quotas": QUOTAS},
    )


# ---- a million requests ----


def million(quick: bool) -> Row:
    """Serve so many requests, and look at what stays resident."""
    wanted, early = (20_000, 5_000) if quick else (1_000_000, 10_000)
    course: list[tuple[int, int]] = []
    with served() as server:
        tokens = tenants(server)
        flood = [Stream(20_000 / 16, 1, call(token)) for token in tokens[:16]]
        done, began_s = 0, time.monotonic()
        while done < wanted:
            step_s = 0.5 if done < 2 * early else 5.0
            done += len(_with(Load(server.port, flood, step_s).arrivals(), 200))
            course.append((done, server.resident_bytes()))
            if len(course) % 10 == 0:
                say(f"{done:,} requests, {course[-1][1] / 2**20:.1f} MiB")
        took_s = time.monotonic() - began_s
        left = {
            name: server.metric(f"sandhost_{name}")
            for name in ("guests", "handles", "serve_bags_live", "serve_requests_in_flight")
        }
        left["serve_bags_live"] -= 1  # the one that asks
    first = next(resident for count, resident in course if count >= early)
    warm = [point for point in course if point[0] >= wanted / 10]
    return Row(
        f"{wanted:,} requests",
        f"{done / took_s:,.0f} a second",
        [
            Claim("resident, to after the first ones", course[-1][1] / first, "×", 1.05),
            Claim("grown by a request, when warm", _slope(warm), "bytes", 2),
            Claim("left when they are over", sum(left.values()), "things", 0),
        ],
        {"course": course, "left": left, "first_bytes": first, "last_bytes": course[-1][1]},
    )


def _slope(points: Sequence[tuple[int, int]]) -> float:
    """Return the slope of the line through the points, by least squares."""
    x, y = ([float(point[i]) for point in points] for i in (0, 1))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y)) / spread if spread else 0.0


# ---- all of them ----


def _processors() -> tuple[int, int]:
    """Return ticks of all processors, and those of them that another virtual machine had (proc_stat(5))."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[7]


ROWS = {
    "hostile": hostile,
    "too-much": too_much,
    "too-much-short": too_much_short,
    "million": million,
    "apart": apart,
}
ASKED_FOR = ("million", "apart")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a rough look")
    parser.add_argument("--million", action="store_true", help="and a million requests")
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, help="some rows; the file keeps the others"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    wanted = options.only or [
        name
        for name in ROWS
        if name not in ASKED_FOR or (name == "million" and (options.million or options.quick))
    ]
    file = options.out / "overload.json"
    kept = json.loads(file.read_text())["rows"] if options.only and file.exists() else {}
    rows = {}
    for name in wanted:
        before = _processors()
        row = rows[name] = ROWS[name](options.quick)
        total, stolen = (after - b for after, b in zip(_processors(), before))
        row.detail["stolen"] = stolen / total
        print(f"{row.what}: {row.how}")
        for claim in row.claims:
            print(f"  {claim.what:36} {claim}  {'yes' if claim.reached else 'NO'}")
        for key, value in row.detail.items():
            if key not in ("course", "rounds"):
                print(f"    {key}: {value}")
    result = {
        "schema": "sandhost-overload/1",
        "machine": describe(),
        "quick": options.quick,
        "rows": {**kept, **{name: row.as_json() for name, row in rows.items()}},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result) + "\n")
    try:
        from overload_picture import draw
    except ImportError:
        print("no picture: matplotlib is not installed")
    else:
        draw(result, options.out / "overload.png")
    return 0 if all(row.reached for row in rows.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
