"""`sandhost inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers import GUESTS, guest_file

from sandhost.cli import cli


def inspect(path: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["inspect", str(path), *options])


def record(guest: str) -> dict[str, Any]:
    result = inspect(guest_file(guest), "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (0 if found["loadable"] else 1)
    return found


@pytest.mark.parametrize(
    "path",
    sorted(GUESTS.glob("wat/*.wat")) + sorted(GUESTS.glob("built/*.wasm")),
    ids=lambda p: p.stem,
)
def test_every_guest_can_be_inspected(path: Path) -> None:
    page = inspect(path)
    assert page.exit_code in (0, 1)
    assert page.stderr == ""
    assert "can be loaded" in page.stdout
    assert all(c == "\n" or c.isprintable() for c in page.stdout), "nothing steers a terminal"
    assert all(line == line.rstrip() for line in page.stdout.splitlines())
    found = json.loads(inspect(path, "--json").stdout)
    assert found["loadable"] == (page.exit_code == 0)


@pytest.mark.parametrize(
    ("guest", "kind"), [("echo", "command"), ("wordcount", "reactor"), ("add", "library")]
)
def test_commands_reactors_and_libraries_are_told_apart(guest: str, kind: str) -> None:
    assert record(guest)["kind"] == kind


@pytest.mark.parametrize(
    ("guest", "reason"),
    [
        ("shared_memory", "shared memory"),
        ("gc_types", "GC proposal"),
        ("imported_table", "imports the table env.table"),
        ("imported_global", "imports the global env.base"),
        ("oob_data", "data segment 1 writes"),
    ],
)
def test_what_cannot_be_loaded_is_said_by_name(guest: str, reason: str) -> None:
    found = record(guest)
    assert not found["loadable"]
    assert reason in " ".join(found["obstacles"])


def test_what_the_host_must_define_is_no_obstacle() -> None:
    found = record("hostcall")
    assert found["loadable"]
    assert [f["name"] for f in found["needs"]["host_functions"]] == ["nop", "inc"]
    page = inspect(guest_file("hostcall")).stdout
    assert "host must define" in page
    assert "def inc(a0: int) -> int: ..." in page


def test_wasi_is_recognised() -> None:
    assert record("echo")["needs"]["wasi"]
    assert not record("add")["needs"]["wasi"]


def test_memories_are_described() -> None:
    assert [m["minimum_pages"] for m in record("multi_memory")["memories"]] == [1, 2, 1]
    assert record("memory64")["memories"][0]["is64"]
    assert record("one_byte_pages")["memories"][0]["page_bytes"] == 1
    assert record("imported_memory")["memories"][0]["imported"]
    assert record("bss")["needs"]["memory_bytes"] == 16 << 20


def test_data_that_is_not_lifted_is_named_with_its_reason() -> None:
    data = record("imported_global")["data"]
    assert data["image_bytes"] == 0
    assert data["not_lifted"][0]["reason"] == "whose address is an imported global"
    data = record("bench")["data"]
    assert data["image_bytes"] == data["active_bytes"] == 64 << 10
    assert data["not_lifted"] == []


def test_invalid_code_is_found_by_compiling(tmp_path: Path) -> None:
    wasm = GUESTS / "built" / "add.wasm"
    broken = tmp_path / "broken.wasm"
    broken.write_bytes(
        wasm.read_bytes().replace(b"\x20\x00\x20\x01\x6a\x0b", b"\x20\x00\x20\x09\x6a\x0b")
    )
    assert inspect(broken).exit_code == 1
    assert "unknown local" in inspect(broken).stdout
    unsure = inspect(broken, "--no-compile")
    assert unsure.exit_code == 0
    assert "--compile makes sure" in unsure.stdout


def test_files_that_are_no_modules_are_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(9))
    for path in (tmp_path, tmp_path / "missing", tmp_path / "zeros"):
        result = inspect(path)
        assert result.exit_code == 125
        assert result.stderr.startswith("sandhost: error:")
        assert result.stdout == ""


def test_a_truncated_module_is_described_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = guest_file("wordcount").read_bytes()
    for length in range(8, len(whole), 97):
        (tmp_path / "cut.wasm").write_bytes(whole[:length])
        result = inspect(tmp_path / "cut.wasm", "--no-compile")
        assert result.exit_code in (0, 1)
        assert "can be loaded" in result.stdout
