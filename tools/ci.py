"""`./run ci`: every step that must hold, side by side."""

import argparse
import concurrent.futures
import functools
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .checks import check
from .install import PIP, UNPINNED, environment, requirements_of, wheel
from .machine import OTHER_PYTHONS, PYTHONS, compiler, find_python
from .places import CACHE, ROOT
from .processes import Failed, output_of, quietly, seconds
from .testing import native_tests, pytest, test, test_environment

BETWEEN = ("3.12",)
"""Where the service, whose tests take longest, is not tested: it is on the Python before and after."""
SANITIZED_TIERS = ("integration", "stress")
"""Those that run the compiled extension."""
NOT_SANITIZED = (
    "integration/test_bench",
    "integration/test_demo",
    "integration/test_pressure",
    "integration/test_monitoring",
    "integration/test_container",
    "integration/test_systemd",
    "integration/test_docs*",
    "integration/test_bag_*",
    "integration/test_client",
    "integration/test_cli_client",
    "integration/test_overload_asyncio",
    "integration/test_serve_*",
    "stress/test_serve_*",
)
"""Of these: what measures this process's memory or time, runs other servers, or is Python alone."""


def lowest() -> int:
    """Test the lower bounds that pyproject.toml promises."""
    bounds = [
        re.sub(r">=([^,]+).*", r"==\1", word)
        for word in requirements_of("dependencies", "serve", "client")
    ]
    python = find_python(PYTHONS[0]) or sys.executable
    tools = requirements_of("test")
    package = wheel()
    folder = environment("lowest", [*bounds, *tools], package=package, python=python, pip=UNPINNED)
    return pytest(folder, ("unit",))


def on_python(version: str) -> int:
    """Test the same wheel on another Python, if the machine has it."""
    if find_python(version) is None:
        print(f"  Python {version} is not on this machine")
        return 0
    tiers = ("unit", "property", "integration")
    service = ["--ignore-glob=tests/integration/test_serve_*"] if version in BETWEEN else []
    return pytest(test_environment(version), tiers, *service, SANDHOST_TEST_FEW_EXAMPLES="1")


def sanitized() -> int:
    """Test the extension built with AddressSanitizer and UndefinedBehaviorSanitizer."""
    # libstdc++ beside it: libasan looks for its throw at the start, and matplotlib brings it later.
    libraries = [
        Path(output_of([compiler(), f"-print-file-name={name}"]).stdout.strip())
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(library.is_absolute() for library in libraries):
        print("  the compiler has no libasan or libstdc++ here")
        return 0
    return pytest(
        test_environment(sanitize="address,undefined"),
        SANITIZED_TIERS,
        "--capture=sys",  # lets what the sanitizers say through
        *(f"--ignore-glob=tests/{name}.py" for name in NOT_SANITIZED),
        # One measures private memory to 1 MiB, of which libasan takes more; the other limits the address space.
        "--deselect=tests/integration/test_leaks.py::"
        "test_a_failure_leaves_nothing_behind_however_often_it_happens[invalid module]",
        "--deselect=tests/integration/test_cli_group.py::test_doctor_fails_where_guests_cannot_live",
        # greenlet copies stacks, which libasan takes amiss.
        "-k",
        "not greenlet and not out_of_turn",
        LD_PRELOAD=" ".join(str(library.resolve()) for library in libraries),
        # Guests fault on purpose, and wasmtime's handler turns that into a trap. Python leaks by design.
        ASAN_OPTIONS="handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_sigfpe=0:"
        "allow_user_segv_handler=1:use_sigaltstack=0:detect_leaks=0:detect_stack_use_after_return=0:"
        "quarantine_size_mb=1:thread_local_quarantine_size_kb=64",
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
        PYTHONMALLOC="malloc",
    )


def source_archive() -> int:
    """Build the package from its source archive, and compare with the one built from the tree."""
    builder = environment("sdist", ["scikit-build-core", "cffi"])
    shutil.rmtree(CACHE / "sdist", ignore_errors=True)
    (CACHE / "sdist").mkdir(parents=True)
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(CACHE / 'sdist')!r})"
    quietly("make the source archive", [builder / "bin/python", "-c", code])
    archive = next((CACHE / "sdist").glob("*.tar.gz"))
    command = [
        builder / "bin/python",
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "-w",
        CACHE / "sdist",
        archive,
    ]
    quietly("build the package from it", command, env=PIP)
    listing = (
        "import sys, zipfile; print(*sorted(zipfile.ZipFile(sys.argv[1]).namelist()), sep='\\n')"
    )
    there, here = (
        output_of([sys.executable, "-c", listing, path]).stdout
        for path in (next((CACHE / "sdist").glob("*.whl")), wheel())
    )
    if there != here:
        print(f"from the archive:\n{there}\nfrom the tree:\n{here}")
        raise Failed("the source archive lacks files, or has files too many")
    return 0


def guests() -> int:
    """Test with the compilers from PyPI: guests against a fresh build, profiles with `go tool pprof`."""
    folder = environment("guests", [], package=wheel(), extras="test,guests")
    with_tools = (
        "unit/guests",
        "integration/test_snapshot_languages.py",
        "integration/test_observe_go.py",
    )
    return pytest(folder, with_tools)


STEPS: dict[str, Callable[[], int]] = {
    "guests": guests,
    "sanitized extension": sanitized,
    "tests": lambda: test([]),
    **{f"Python {version}": functools.partial(on_python, version) for version in OTHER_PYTHONS},
    "native, address and undefined": lambda: native_tests("asan"),
    "native, threads": lambda: native_tests("tsan"),
    "static checks": check,
    "lowest dependencies": lowest,
    "source archive": source_archive,
}
"""Longest first, so that none is alone at the end."""


def ci(words: Sequence[str]) -> int:
    """`./run ci`: every step, whatever failed before it; pytest's closing line comes last."""
    parser = argparse.ArgumentParser(prog="./run ci", description="Everything that must hold.")
    parser.add_argument("--only", metavar="STEP", action="append", choices=STEPS)
    chosen = parser.parse_args(words).only or list(STEPS)
    if len(chosen) == 1:
        return STEPS[chosen[0]]()
    began = time.monotonic()
    with_what = output_of([compiler(), "--version"]).stdout.splitlines()[0]
    print(f"Python {sys.version.split()[0]}, {with_what}", flush=True)
    failed, closing = [], ""
    with concurrent.futures.ThreadPoolExecutor(processors()) as pool:
        running = [pool.submit(step_apart, title) for title in chosen]
        try:
            for done in concurrent.futures.as_completed(running):
                title, took, status, output = done.result()
                print(f"{title}, {took}:\n{output.rstrip()}", flush=True)
                if status:
                    last = (output.rstrip().splitlines() or ["printed nothing"])[-1]
                    failed.append(f"{title}: {last.removeprefix('./run ci: ')}")
                if title == "tests":
                    closing = closing_line(output)
        finally:
            pool.shutdown(cancel_futures=True)
    print(f"\n{seconds(began)} for {len(chosen)} steps")
    for line in failed:
        print(f"FAILED {line}")
    if closing:
        print(closing)
    return 1 if failed else 0


def step_apart(title: str) -> tuple[str, str, int, str]:
    """Run one step in a process of its own; return it, its time, its status and what it printed."""
    began = time.monotonic()
    result = output_of([sys.executable, ROOT / "run", "ci", "--only", title])
    return title, seconds(began), result.returncode, result.stdout


def processors() -> int:
    """Return how many steps run side by side: most of them use one processor."""
    return len(os.sched_getaffinity(0))


def closing_line(output: str) -> str:
    """Return the line in which pytest counts the tests."""
    counts = re.compile(r"=* ?\d+ (?:passed|failed|error).* in [\d.]+s")
    return next((line for line in reversed(output.splitlines()) if counts.match(line)), "")
