"""`sandhost bench`: what it measures, what it holds against the kernel, what it says has changed."""

from __future__ import annotations

import copy
import json
import mmap
from array import array
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sandhost import ConfigError, Guest, Host, Limits, Reclaim
from sandhost.bench import kernel
from sandhost.bench.checks import check
from sandhost.bench.command import _workloads, bench
from sandhost.bench.compare import compare
from sandhost.bench.contenders import Ours, Samples
from sandhost.bench.latency import Histogram
from sandhost.bench.workload import Call, built_in, guest_bytes

pytest.importorskip("hdrh", reason="hdrhistogram is not installed")

SHORT = ["--repetitions", "2", "--block", "0.002", "--quick"]
PAGE = mmap.PAGESIZE


def run(*arguments: object) -> Result:
    return CliRunner().invoke(bench, [str(a) for a in arguments], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    path = tmp_path_factory.mktemp("bench") / "out.json"
    result = run(*SHORT, "--dirty", "0,16", "--peers", "wasmtime,wasmtime-pooling", "--json", path)
    assert result.exit_code == 0, result.output
    return json.loads(path.read_text()), result.output


# ---- the kernel's counts ----


def test_private_pages_are_those_that_were_written() -> None:
    with mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        address = address_of(region)
        assert kernel.private_pages(address, 64 * PAGE) == 0
        for page in (0, 7, 63):
            region[page * PAGE] = 1
        assert kernel.private_pages(address, 64 * PAGE) == 3
        assert kernel.private_pages(address + PAGE, 62 * PAGE) == 1
        _ = region[20 * PAGE]  # maps the zero page
        assert kernel.private_pages(address, 64 * PAGE) == 3
        region.madvise(mmap.MADV_DONTNEED)
        assert kernel.private_pages(address, 64 * PAGE) == 0


def test_pages_of_a_file_that_were_only_read_are_not_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as region:
        address = address_of(region)
        _ = region[0], region[3 * PAGE]
        assert kernel.private_pages(address, 8 * PAGE) == 0
        region[PAGE] = 1
        assert kernel.private_pages(address, 8 * PAGE) == 1


def test_the_process_has_the_private_bytes_that_it_writes() -> None:
    size = 64 << 20
    before = kernel.process_private_bytes()
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        for offset in range(0, size, PAGE):
            region[offset] = 1
        assert abs(kernel.process_private_bytes() - before - size) < 1 << 20


def address_of(region: mmap.mmap) -> int:
    import ctypes

    first = ctypes.c_char.from_buffer(region)
    try:
        return ctypes.addressof(first)
    finally:
        del first


# ---- workloads and histograms ----


def test_a_call_is_read_from_text() -> None:
    assert Call.parse("f 1 -2 0x10 2.5 {pages}") == Call("f", (1, -2, 16, 2.5, "{pages}"))
    assert Call.parse("f {pages}").at(7) == Call("f", (7,))
    for text in ("", "f one", "f 'unclosed"):
        with pytest.raises(ConfigError):
            Call.parse(text)


@pytest.mark.parametrize(("pages", "memory"), [(0, None), (256, None), (4080, 16 << 20)])
def test_the_built_in_plugin_dirties_as_many_pages_as_asked(pages: int, memory: int | None) -> None:
    workload = built_in(pages, memory)
    with Host(reclaim="immediate") as host, host.load(workload.wasm).spawn() as guest:
        assert guest.memory.size == workload.memory_bytes
        guest.call(workload.invoke.function, *workload.invoke.arguments)
        assert guest.close().pages == pages


@pytest.mark.parametrize(("pages", "memory"), [(257, None), (-1, None), (1, 65536), (0, 65537)])
def test_pages_that_do_not_fit_are_refused(pages: int, memory: int | None) -> None:
    with pytest.raises(ConfigError):
        built_in(pages, memory)


def test_percentiles_are_within_a_thousandth_and_told_only_with_enough_samples() -> None:
    histogram = Histogram()
    histogram.record(array("q", range(1, 10_001)))
    summary = histogram.summary()
    assert summary["p50"] == pytest.approx(5_000, rel=1e-3)
    assert summary["p99.9"] == pytest.approx(9_990, rel=1e-3)
    assert summary["p99.99"] is None  # one sample lies beyond it
    assert (summary["max"], summary["samples"]) == (10_000, 10_000)
    assert histogram.curve()[-1] == (100.0, 10_000)


def test_an_encoded_histogram_is_read_by_hdrhistogram(measured: tuple[dict[str, Any], str]) -> None:
    from hdrh.histogram import HdrHistogram

    row = measured[0]["rows"][0]
    decoded = HdrHistogram.decode(row["hdr"]["unload"])
    assert decoded.get_total_count() == row["ns"]["unload"]["samples"]
    assert decoded.get_value_at_percentile(50) == row["ns"]["unload"]["p50"]


def test_samples_of_a_cycle_are_the_sum_of_its_parts() -> None:
    ours = Ours("warm", built_in(1))
    samples = Samples()
    ours.cycles(1, samples)
    ours.close()
    parts = [samples.of(operation)[0] for operation in ("spawn", "call", "unload")]
    assert samples.of("cycle")[0] == sum(parts)
    assert samples.of("reclaim")[0] <= samples.of("unload")[0]


# ---- a run ----


def test_every_contender_runs_every_case(measured: tuple[dict[str, Any], str]) -> None:
    data, output = measured
    assert data["schema"] == "sandhost-bench/1"
    assert data["machine"]["cpu"]
    assert data["machine"]["wasmtime"]
    found = {(r["contender"], r["dirty_pages"], r["threads"]) for r in data["rows"]}
    names = {"immediate", "warm", "lazy"}
    contenders = {f"sandhost {n}" for n in names} | {"wasmtime-py", "wasmtime-py pooled"}
    assert found == {(c, p, t) for c in contenders for p in (0, 16) for t in (1, 2)}
    for row in data["rows"]:
        assert len(row["repetitions"]) == 2
        assert row["ns"]["cycle"]["samples"] >= 2
        assert ("reclaim" in row["ns"]) == row["contender"].startswith("sandhost")
    assert max(map(len, output.splitlines())) <= 80


def test_reported_reclaim_is_what_the_kernel_counts(measured: tuple[dict[str, Any], str]) -> None:
    checks = {
        (row["contender"], row["dirty_pages"]): row["reclaim_check"]
        for row in measured[0]["rows"]
        if row["reclaim_check"]
    }
    assert all(c["mismatches"] == 0 for c in checks.values())
    assert all(c["guests"] for (name, _), c in checks.items() if name.startswith("sandhost"))
    back = checks["sandhost immediate", 16]
    assert back["batch_reported_bytes"] == back["batch_guests"] * 16 * 4096
    assert abs(back["batch_back_bytes"] - back["batch_reported_bytes"]) < 256 << 10


def test_a_reclaim_that_is_not_true_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Guest.close

    def lie(guest: Guest) -> Reclaim:
        reclaim = honest(guest)
        return reclaim._replace(pages=reclaim.pages + 1) if reclaim.pages else reclaim

    monkeypatch.setattr(Guest, "close", lie)
    ours = Ours("immediate", built_in(16))
    found = check(ours, 5, 2)
    ours.close()
    assert (found.guests, found.mismatches) == (5, 5)
    assert found.example is not None
    assert "16 private pages before close, 17 are reported" in found.example
    result = run(*SHORT, "--dirty", 16, "--threads", 1, "--peers", "none")
    assert result.exit_code != 0
    assert "differ from the kernel's counts" in result.output


def test_pages_that_stay_though_reported_as_returned_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = Guest.close

    def lie(guest: Guest) -> Reclaim:
        reclaim = honest(guest)
        return reclaim._replace(pages=reclaim.kept_bytes // 4096, kept_bytes=0)

    monkeypatch.setattr(Guest, "close", lie)
    ours = Ours("warm", built_in(16))
    found = check(ours, 3, 2)
    ours.close()
    assert found.mismatches == 3
    assert found.example is not None
    assert "16 private pages after close" in found.example


def test_a_plugin_of_ones_own_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "mine.wasm"
    path.write_bytes(guest_bytes("bench"))
    out = tmp_path / "out.json"
    options = ["--threads", "1", "--policy", "warm", "--peers", "wasmtime", "--json", out]
    result = run(
        path, "--invoke", "dirty {pages}", "--setup", "sum", "--dirty", 3, *SHORT, *options
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [(r["plugin"], r["dirty_pages"]) for r in rows] == [("mine", 3), ("mine", 3)]


def test_json_goes_to_stdout_alone(tmp_path: Path) -> None:
    del tmp_path
    result = run(
        *SHORT, "--dirty", 0, "--threads", 1, "--policy", "warm", "--peers", "none", "--json", "-"
    )
    assert json.loads(result.stdout)["rows"][0]["contender"] == "sandhost warm"


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    result = run(*SHORT, "--dirty", 0, "--policy", "warm", "--peers", "none", "--picture", path)
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"\x89PNG")


# ---- what changed ----


@pytest.fixture
def stable(measured: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """Return a run whose repetitions spread by 2 %."""
    data = copy.deepcopy(measured[0])
    for row in data["rows"]:
        base = row["repetitions"][0]
        row["repetitions"] = [
            {key: value * (1 + 0.005 * k) for key, value in base.items()} for k in range(5)
        ]
    return data


def scaled(data: dict[str, Any], factor: float, *, peers: bool, figure: str | None = None) -> Any:
    data = copy.deepcopy(data)
    for row in data["rows"]:
        if not peers and not row["contender"].startswith("sandhost"):
            continue
        for repetition in row["repetitions"]:
            for key in repetition:
                if figure in (None, key):
                    repetition[key] *= 1 / factor if key == "cycles_per_s" else factor
    return data


def test_the_same_run_has_not_changed(stable: dict[str, Any]) -> None:
    assert compare(stable, stable).changed == []


def test_a_slower_operation_is_named_and_no_other(stable: dict[str, Any]) -> None:
    slower = compare(stable, scaled(stable, 1.3, peers=False, figure="unload"))
    assert {(c.figure, c.verdict) for c in slower.changed} == {("unload", "slower")}
    faster = compare(scaled(stable, 1.3, peers=False), stable)
    assert {c.verdict for c in faster.changed} == {"faster"}
    assert len(faster.changed) == len(faster.changes)


def test_a_slower_machine_is_no_change(stable: dict[str, Any]) -> None:
    comparison = compare(stable, scaled(stable, 1.4, peers=True))
    assert comparison.changed == []
    assert comparison.drift == pytest.approx(1.4)


def test_repetitions_that_overlap_are_no_change(stable: dict[str, Any]) -> None:
    noisy = scaled(stable, 1.3, peers=False)
    for row, then in zip(noisy["rows"], stable["rows"], strict=True):
        row["repetitions"][0] = then["repetitions"][2]
    assert compare(stable, noisy).changed == []


def test_another_machine_is_said(stable: dict[str, Any]) -> None:
    other = copy.deepcopy(stable)
    other["machine"]["kernel"] = "1.0"
    assert any("kernel" in line for line in compare(other, stable).differences)


def test_against_an_earlier_run_is_printed(
    measured: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps(measured[0]))
    result = run(*SHORT, "--dirty", 0, "--threads", 1, "--peers", "wasmtime", "--against", old)
    assert result.exit_code == 0, result.output
    assert "changed beyond noise" in result.output


# ---- bad input ----


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dirty", "x"],
        ["--dirty", "-1"],
        ["--dirty", "100000"],
        ["--memory", "16 XB"],
        ["--memory", "100"],
        ["--policy", "eager"],
        ["--threads", "0"],
        ["--threads", "1,,2"],
        ["--peers", "python"],
        ["--invoke", "add 1 2"],
        ["--deadline", "1 s"],
        [__file__, "--invoke", "f", "--deadline", "soon"],
        [__file__, "--invoke", "f", "--deadline", "0"],
        ["--json", "/no/such/folder/out.json"],
        ["--against", "/no/such/file.json"],
        ["/no/such/plugin.wasm"],
        [__file__, "--memory", "1 MiB"],
        [__file__, "--invoke", "f {pages}"],
        [__file__, "--invoke", "f", "--dirty", "1"],
    ],
)
def test_bad_arguments_give_one_line(arguments: list[str]) -> None:
    result = run(*arguments, *SHORT)
    assert result.exit_code != 0
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize("call", [["--invoke", "spin"], ["--invoke", "add", "--setup", "spin"]])
def test_a_call_that_never_ends_meets_the_deadline(tmp_path: Path, call: list[str]) -> None:
    path = tmp_path / "spin.wat"
    path.write_text(
        '(module (func (export "spin") (loop (br 0))) (func (export "add") (loop (br 0))))'
    )
    result = run(path, *call, "--deadline", "30 ms", *SHORT)
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert "ran past its deadline of 30" in result.output
    assert "--deadline" in result.output


def test_there_is_a_deadline_unless_it_is_waived(tmp_path: Path) -> None:
    path = tmp_path / "add.wasm"
    path.write_bytes(guest_bytes("add"))
    options = {"dirty": None, "memory": None, "invoke": "add 1 2", "setup": ()}
    deadlines = [
        _workloads(path, {**options, "deadline": text})[0].limits for text in (None, "2 s", "none")
    ]
    assert deadlines == [Limits(deadline="10 s"), Limits(deadline="2 s"), None]


def test_a_file_of_something_else_is_no_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"schema": "other"}')
    assert "was not written by" in run("--against", path).output
    path.write_text("no json")
    assert "is no JSON" in run("--against", path).output


def test_a_call_with_the_wrong_arguments_gives_one_line(tmp_path: Path) -> None:
    path = tmp_path / "add.wasm"
    path.write_bytes(guest_bytes("add"))
    result = run(path, "--invoke", "add 1", *SHORT)
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert "takes 2 arguments" in result.output
