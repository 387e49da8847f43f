"""`sandhost inspect`: what a module is, and what it would need."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import printable
from ..units import format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from ..modules.types import Import
    from .survey import Survey

__all__ = ["inspect"]

_TRIED_BYTES = 8 << 20  # compiles in a few seconds; larger modules only when asked
_MOST_ROWS = 100
_MOST_STUBS = 8
_KINDS = {
    "command": "command: its _start runs once, and then the guest is done",
    "reactor": "reactor: _initialize runs first, then its functions are called",
    "library": "library: its functions are called",
    "unknown": "unknown: it cannot be read to its end",
}
_PYTHON = {"i32": "int", "i64": "int", "f32": "float", "f64": "float", "v128": "bytes"}


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--compile/--no-compile",
    "compiles",
    default=None,
    help="Compile it to be sure that it is valid.  [default: up to 8 MiB]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record.")
def inspect(file: Path, compiles: bool | None, as_json: bool) -> int:
    """Show what a module is and what it would need.

    FILE is a module, binary or text. Nothing of it runs. The exit status is 1 when sandhost cannot
    load it; imports that a host would have to define are no such reason.
    """
    from ..modules.compiled import read_source
    from .survey import as_record, survey

    _, wasm = read_source(file)
    found = survey(wasm)
    tried = False
    if not found.obstacles and (compiles or (compiles is None and len(wasm) <= _TRIED_BYTES)):
        tried = True
        found = replace(found, obstacles=_try_to_load(file, wasm, found))
    if as_json:
        from .output import print_json

        print_json({"file": str(file), **as_record(found), "compiled": tried})
    else:
        from .output import show

        for part in _render(file, found, tried):
            show(part)
    return 1 if found.obstacles else 0


def _try_to_load(file: Path, wasm: bytes, found: Survey) -> tuple[str, ...]:
    """Load it into a host that defines all it imports; return what is in the way."""
    from ..errors import ConfigError, ModuleError
    from ..host import Host
    from .loading import loading

    with Host(max_guests=1) as host:
        try:
            for wanted in found.host_functions:
                host.function(wanted.module, wanted.name, str(wanted.type))(_never_called)
            loading(host, wasm, name=str(file))
        except (ConfigError, ModuleError) as error:
            return (str(error),)
    return ()


def _never_called(*_arguments: object) -> None: ...


# ---- the page ----


def _render(file: Path, found: Survey, tried: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    info = found.info
    title = Text.assemble((printable(file.name), "bold"), ("  " + format_bytes(found.size), "dim"))
    if info is not None and info.name:
        title.append(f"  named {printable(info.name)}", "dim")
    yield title
    yield Text(f"  {_KINDS[found.kind]}")
    if info is not None:
        counted = f"  {info.functions} function{'s' * (info.functions != 1)}"
        if info.start is not None:
            counted += f", of which number {info.start} runs at every start"
        yield Text(counted)
        for name, make in _PARTS.items():
            table = make(found)
            if table is not None:
                yield _heading(name)
                yield table
    elif found.sections:
        yield _heading("Sections")
        yield _table(("section", "bytes"), [(n, str(b)) for n, b in found.sections], right=(1,))
    yield _heading("What it needs")
    yield from _needs(file, found, tried)


def _heading(name: str) -> RenderableType:
    from rich.text import Text

    return Text(f"\n{name}", "bold cyan")


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: tuple[int, ...] = ()
) -> Table:
    """Build a table of names that may be hostile: as text, never as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position in right else "left", overflow="fold")
    for row in rows[:_MOST_ROWS]:
        table.add_row("", *(Text(printable(cell, 80)) for cell in row))
    if len(rows) > _MOST_ROWS:
        table.add_row("", Text(f"… {len(rows) - _MOST_ROWS} more, see --json", "dim"))
    return table


def _imports(found: Survey) -> Table | None:
    from .survey import origin, type_text

    assert found.info is not None
    by_module: dict[str, list[Import]] = {}
    for wanted in found.info.imports:
        by_module.setdefault(wanted.module, []).append(wanted)
    rows = [
        (module if first else "", w.name, w.kind, type_text(w.type), origin(w))
        for module, group in by_module.items()
        for first, w in zip([True] + [False] * len(group), group)
    ]
    return _table(("module", "name", "kind", "type", "from"), rows) if rows else None


def _exports(found: Survey) -> Table | None:
    from .survey import type_text

    assert found.info is not None
    rows = [(e.name, e.kind, type_text(e.type)) for e in found.info.exports]
    return _table(("name", "kind", "type"), rows) if rows else None


def _memories(found: Survey) -> Table | None:
    assert found.info is not None
    rows = []
    for index, memory in enumerate(found.info.memories):
        most = memory.maximum_bytes
        remarks = [
            remark
            for remark, holds in (
                ("64-bit addresses", memory.is64),
                ("imported", memory.imported),
                ("shared", memory.shared),
            )
            if holds
        ]
        rows.append(
            (
                str(index),
                format_bytes(memory.minimum_bytes),
                "no maximum" if most is None else format_bytes(most),
                format_bytes(memory.page_size),
                ", ".join(remarks),
            )
        )
    columns = ("memory", "starts with", "grows to", "wasm page", "")
    return _table(columns, rows, right=(0, 1, 2, 3)) if rows else None


def _tables(found: Survey) -> Table | None:
    from .survey import type_text

    assert found.info is not None
    rows = [(str(index), type_text(table)) for index, table in enumerate(found.info.tables)]
    return _table(("table", "elements"), rows, right=(0,)) if rows else None


def _globals(found: Survey) -> Table | None:
    from collections import Counter

    from .survey import type_text

    assert found.module is not None
    counted = Counter(type_text(described) for described in found.module.globals)
    rows = [(str(count), name) for name, count in counted.most_common()]
    return _table(("count", "type"), rows, right=(0,)) if rows else None


def _data(found: Survey) -> Table | None:
    assert found.info is not None
    data = found.info.data
    kept_bytes = sum(k.size for k in found.kept)
    rows = [
        ("active", str(data.active_segments), format_bytes(data.active_bytes), ""),
        (
            "  in the image",
            str(data.active_segments - len(found.kept)),
            format_bytes(found.image_bytes),
            "shared by all guests, copied page by page when written",
        ),
    ]
    if found.kept:
        rows.append(
            (
                "  not liftable",
                str(len(found.kept)),
                format_bytes(kept_bytes),
                f"copied at each spawn: segment {found.kept[0].index}, {found.kept[0].reason}",
            )
        )
    rows.append(("passive", str(data.passive_segments), format_bytes(data.passive_bytes), ""))
    if not data.active_segments:
        rows = rows[-1:]
    if not data.active_segments and not data.passive_segments:
        return None
    return _table(("data", "segments", "bytes", ""), rows, right=(1, 2))


def _customs(found: Survey) -> Table | None:
    assert found.info is not None
    rows = [(c.name, format_bytes(c.size)) for c in found.info.custom_sections]
    return _table(("section", "bytes"), rows, right=(1,)) if rows else None


_PARTS: dict[str, Callable[[Survey], Table | None]] = {
    "Imports": _imports,
    "Exports": _exports,
    "Memories": _memories,
    "Tables": _tables,
    "Globals": _globals,
    "Data": _data,
    "Custom sections": _customs,
}


def _needs(file: Path, found: Survey, tried: bool) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from .output import visible

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column("")
    table.add_column("", style="dim", no_wrap=True)
    table.add_column("")
    if found.info is not None:
        least = format_bytes(found.spawn_bytes) if found.spawn_bytes else "none of its own"
        table.add_row("", "memory at spawn", Text(least))
        wasi = f"yes, {len(found.wasi_functions)} functions" if found.wasi_functions else "no"
        table.add_row("", "WASI", Text(wasi))
        wanted = len(found.host_functions)
        table.add_row("", "host functions", Text(str(wanted) if wanted else "none"))
    if found.obstacles:
        reasons = "\n".join(visible(reason) for reason in found.obstacles[:10])
        table.add_row("", "can be loaded", Text.assemble(("no: ", "bold red"), reasons))
    elif tried:
        table.add_row("", "can be loaded", Text("yes", "bold green"))
    else:
        unsure = "nothing speaks against it; --compile makes sure"
        table.add_row("", "can be loaded", Text(unsure, "yellow"))
    yield table
    if found.obstacles or found.info is None:
        return
    stubs = [_stub(wanted) for wanted in found.host_functions[:_MOST_STUBS]]
    if stubs:
        yield _heading("Define before load")
        more = len(found.host_functions) - len(stubs)
        tail = f"\n  # … and {more} more" if more else ""
        yield Text("\n".join(stubs) + tail)
    else:
        command = _command(file, found)
        if command:
            yield Text(f"\n  {command}", "green")


def _command(file: Path, found: Survey) -> str | None:
    """Return the shell command that tries it, None when nothing in it can be called."""
    import shlex

    from ..modules.types import FuncType

    start = f"sandhost run {printable(shlex.quote(str(file)), 200)}"
    if found.kind == "command":
        return start
    assert found.info is not None
    for export in found.info.exports:
        if isinstance(export.type, FuncType) and export.name != "_initialize":
            arguments = " ".join(export.type.params).upper()
            return f"{start} --invoke {printable(shlex.quote(export.name))} {arguments}".rstrip()
    return None


def _stub(wanted: Import) -> str:
    """Write the head of a Python function that this import would accept."""
    from ..modules.types import FuncType

    assert isinstance(wanted.type, FuncType)
    name = re.sub(r"\W", "_", wanted.name, flags=re.ASCII)[:40] or "function"
    if name[0].isdigit() or keyword.iskeyword(name):
        name = f"_{name}"
    params = ", ".join(f"a{k}: {_PYTHON[kind]}" for k, kind in enumerate(wanted.type.params))
    results = [_PYTHON[kind] for kind in wanted.type.results]
    returned = "None" if not results else results[0]
    if len(results) > 1:
        returned = f"tuple[{', '.join(results)}]"
    return (
        f"  @host.function({ascii(wanted.module)[:90]}, {ascii(wanted.name)[:90]})\n"
        f"  def {name}({params}) -> {returned}: ..."
    )
