"""`sandhost snapshot`: what it writes, a host loads and forks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import sandhost
from sandhost.cli import cli

COUNTER = b"""(module
  (global $count (mut i32) (i32.const 0))
  (memory (export "memory") 1)
  (func (export "start_at") (param i32) (global.set $count (local.get 0)))
  (func (export "next") (result i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count))
  (func (export "seed") (param i64) (i64.store (i32.const 0) (local.get 0)))
  (func (export "seeded") (result i64) (i64.load (i32.const 0)))
  (func (export "spin") (loop (br 0)))
  (func (export "trap") unreachable))"""


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    file = tmp_path / "counter.wat"
    file.write_bytes(COUNTER)
    return file


def snapshot(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["snapshot", *map(str, arguments)])


def test_a_written_snapshot_goes_on_where_the_function_ended(counter: Path, tmp_path: Path) -> None:
    out = tmp_path / "counter.snapshot"
    result = snapshot(counter, "--init", "start_at", "--arg", "41", "--reseed", "seed", "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: ")
    with sandhost.Host(cache=False) as host:
        plugin = host.load(counter)
        with host.load_snapshot(out) as loaded, loaded.spawn() as one, loaded.spawn() as other:
            assert loaded.plugin is plugin
            assert [one.call("next"), one.call("next"), other.call("next")] == [42, 43, 42]
            assert one.call("seeded") != other.call("seeded")


def test_json_is_one_record(counter: Path, tmp_path: Path) -> None:
    out = tmp_path / "counter.snapshot"
    result = snapshot(counter, "--init", "start_at", "--arg", "1", "-o", out, "--json")
    record = json.loads(result.stdout)
    assert record["function"] == "start_at"
    assert record["bytes"] == out.stat().st_size
    assert record["memory_bytes"] == 65536
    assert record["warm_ns"] > 0


def test_a_reactor_is_initialized_and_its_output_is_on_stderr(tmp_path: Path) -> None:
    out = tmp_path / "out.snapshot"
    file = tmp_path / "reactor.wat"
    file.write_text("""(module
      (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 8) "ready\\n")
      (func (export "_initialize")
        (i32.store (i32.const 0) (i32.const 8)) (i32.store (i32.const 4) (i32.const 6))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))""")
    result = snapshot(file, "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stderr == "ready\n"
    assert out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--init", "nothing"], "exports no function 'nothing'"),
        (["--init", "start_at"], "takes 1 argument, 0 were given"),
        (["--init", "start_at", "--arg", "x"], "'x' is no integer"),
        (["--init", "next", "--reseed", "sed"], "did you mean 'seed'?"),
        (["--arg", "1"], "name it with --init"),
        ([], "has no _initialize"),
        (["--init", "next", "--memory", "1M"], "is not a size"),
    ],
)
def test_wrong_usage_is_told_before_anything_runs(
    counter: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    out = tmp_path / "out.snapshot"
    result = snapshot(counter, *options, "-o", out)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not out.exists()


def test_an_output_that_cannot_be_is_refused_first(counter: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "no" / "out", tmp_path):
        result = snapshot(counter, "--init", "next", "-o", out)
        assert (result.exit_code, "directory" in result.stderr) == (2, True)


def test_what_ends_the_plugin_is_the_exit_status(counter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.snapshot"
    assert snapshot(counter, "--init", "trap", "-o", out).exit_code == 134
    late = snapshot(counter, "--init", "spin", "--deadline", "50 ms", "-o", out)
    assert late.exit_code == 124
    assert "--deadline" in late.stderr
    assert snapshot(tmp_path / "none.wasm", "-o", out).exit_code == 125
    assert not out.exists()


def test_help_names_what_it_needs() -> None:
    help_text = snapshot("--help").stdout
    for option in ("--init", "--arg", "-o, --output", "--reseed", "--deadline"):
        assert option in help_text
