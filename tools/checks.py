"""`./run check`: lint, format, types, layers, syntax."""

import argparse
from collections.abc import Sequence

from .install import environment, requirements_of
from .machine import PYTHONS, find_python
from .places import CACHE, ROOT
from .processes import Failed, quietly

_FOLDERS = (
    "benchmarks",
    "deploy",
    "docs",
    "examples",
    "guests",
    "native",
    "sandhost",
    "tests",
    "tools",
)


def check(words: Sequence[str] = ()) -> int:
    """`./run check`: all static checks, also after one has failed."""
    argparse.ArgumentParser(
        prog="./run check", description="Lint, format, types, layers, syntax."
    ).parse_args(words)
    failed = []
    for title, command in checks().items():
        try:
            quietly(title, command, env={"PYTHONPATH": str(ROOT)})
        except Failed:
            failed.append(title)
    if failed:
        raise Failed(", ".join(failed))
    return 0


def checks() -> dict[str, Sequence[object]]:
    """Return the static checks: what each is called and its command."""
    needs = requirements_of("dependencies", "metrics", "serve", "client", "dev")
    tools = environment("check", needs) / "bin"
    c_files = sorted(
        path for folder in ("native", "tests/native") for path in (ROOT / folder).glob("*.[ch]")
    )
    mypy_cache = CACHE / "mypy"
    oldest = find_python(PYTHONS[0])
    return {
        "ruff check": [tools / "ruff", "check", "--quiet", "--output-format", "concise", "."],
        "ruff format": [tools / "ruff", "format", "--check", "--output-format", "concise", "."],
        "mypy --strict": [tools / "mypy", "--cache-dir", mypy_cache],
        "import-linter": [tools / "lint-imports", "--no-cache", "--no-logo"],
        "clang-format": [
            tools / "clang-format",
            "--dry-run",
            "-Werror",
            "-ferror-limit=10",
            *c_files,
        ],
        **({f"syntax of Python {PYTHONS[0]}": _compiled_by(oldest)} if oldest else {}),
    }


def _compiled_by(python: str) -> Sequence[object]:
    """What no linter knows of an old Python's grammar, as where a comprehension may wait."""
    cached = f"pycache_prefix={CACHE / 'pycache'}"
    return [python, "-X", cached, "-m", "compileall", "-q", *_FOLDERS]
