"""What the documents show must run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

EXAMPLES = [
    pytest.param(example, id=f"{document.stem}-{number}")
    for document in sorted((ROOT / "docs").glob("*.md"))
    for number, example in enumerate(
        re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
    )
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
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
