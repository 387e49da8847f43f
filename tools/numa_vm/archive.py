"""The virtual machine's only file system: an archive that the kernel unpacks into memory.

It holds this Python with its standard library, the package as installed, the shared libraries that
these need, and the program that runs as `/init`; all at the paths where they are here.
"""

import os
import re
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..processes import output_of

LEFT_OUT = {"__pycache__", "ensurepip", "idlelib", "site-packages", "test", "tests", "tkinter"}


def write(target: Path, folder: Path, program: Path) -> None:
    """Write the archive for the environment in `folder`, with `program` as its init."""
    site = Path(
        output_of(
            [folder / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        ).stdout.strip()
    )
    python = Path(sys.executable).resolve()
    files = [python, *below(Path(sysconfig.get_path("stdlib"))), *below(site)]
    start = f"#!{python} -I\nimport sys\nsys.path.append({str(site)!r})\n"
    with target.open("wb") as out:
        made: set[Path] = set()
        for path in sorted({*files, *libraries(files)}):
            for parent in reversed(path.parents[:-1]):
                if parent not in made:
                    made.add(parent)
                    out.write(entry(str(parent)[1:], stat.S_IFDIR | 0o755, b""))
            out.write(entry(str(path)[1:], stat.S_IFREG | 0o755, path.read_bytes()))
        for name in ("dev", "proc", "sys", "tmp"):
            out.write(entry(name, stat.S_IFDIR | 0o755, b""))
        out.write(entry("init", stat.S_IFREG | 0o755, start.encode() + program.read_bytes()))
        out.write(entry("TRAILER!!!", 0, b""))


def below(folder: Path) -> Iterator[Path]:
    """Every file in a folder that a program may want."""
    for root, folders, names in os.walk(folder):
        folders[:] = [n for n in folders if n not in LEFT_OUT or root != str(folder)]
        folders[:] = [n for n in folders if n != "__pycache__" and not n.startswith("config-")]
        yield from (Path(root, name) for name in names)


def libraries(files: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that programs and libraries among these need, and the loader."""
    found: set[Path] = set()
    for path in files:
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        listed = output_of(["ldd", path]).stdout
        found |= {Path(name) for name in re.findall(r"(/\S+) \(0x", listed)}
    return found


def entry(name: str, mode: int, content: bytes) -> bytes:
    """Return one file as the kernel's initramfs format has it: cpio, "newc"."""
    encoded = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return padded(head) + padded(content)


def padded(content: bytes) -> bytes:
    """Return it with zeros up to a multiple of four."""
    return content + bytes(-len(content) % 4)
