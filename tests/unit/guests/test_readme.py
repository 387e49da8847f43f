"""The table in guests/README.md names every guest, its exports and imports."""

from __future__ import annotations

import re
from typing import Any

import pytest
import wasmtime
from helpers.guest_sources import GUESTS, build, needs, wasm_of

UNNAMEABLE = ("gc_types", "types")
"""Guests whose signatures wasmtime's C API cannot name: to ask for them ends the process."""


def signature(name: str, kind: Any) -> str:
    if not isinstance(kind, wasmtime.FuncType):
        return name
    results = ", ".join(map(str, kind.results))
    return f"{name}({', '.join(map(str, kind.params))})" + (f" -> {results}" if results else "")


def table_rows() -> dict[str, list[str]]:
    """The cells of README.md's tables by guest."""
    lines = (GUESTS / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if line.startswith("| ")
    ]
    return {row[0]: row[1:] for row in rows if row[0] != "guest"}


def test_readme_names_every_guest_with_its_behaviour() -> None:
    promised = {name: cells[0] + "." for name, cells in table_rows().items()}
    assert promised == {name: guest.behaviour() for name, guest in build.all_guests().items()}


@pytest.mark.parametrize(
    "name", sorted(set(build.all_guests()) - {"hostile_names", "hostile_import"})
)
def test_readme_names_the_exports_and_imports_of(name: str, engine: wasmtime.Engine) -> None:
    if name == "tokenize":
        needs("go")
    module = wasmtime.Module(engine, wasm_of(name))
    _, exports, imports = table_rows()[name]
    if name in UNNAMEABLE:
        assert re.findall(r"`(.*?)`", exports) == [export.name for export in module.exports]
    else:
        assert re.findall(r"`(.*?)`", exports) == [
            signature(one.name, one.type) for one in module.exports
        ]
    if imports.startswith("WASI"):
        assert {one.module for one in module.imports} == {"wasi_snapshot_preview1"}
        assert imports == f"WASI preview 1: {len(module.imports)} functions"
    else:
        wanted = [signature(f"{one.module}.{one.name}", one.type) for one in module.imports]
        assert re.findall(r"`(.*?)`", imports) == wanted
        assert (imports == "nothing") == (not wanted)
