"""The examples of a page: found, and run as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers import ROOT


def examples_of(page: str) -> list[str]:
    """The blocks of Python of a page of this project."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def output_of(example: str | Path, tmp_path: Path) -> str:
    """What a script prints that runs in a folder of its own, without errors or warnings."""
    script = example if isinstance(example, Path) else tmp_path / "example.py"
    if isinstance(example, str):
        script.write_text(example)
    done = subprocess.run(
        [sys.executable, "-W", "error", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "SANDHOST_CACHE_DIR": str(tmp_path / "cache")},
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout
