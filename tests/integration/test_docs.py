"""What the documents show must run."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ROOT
from helpers.pages import examples_of, output_of

EXAMPLES = [
    pytest.param(example, id=f"{document.stem}-{number}")
    for document in sorted((ROOT / "docs").glob("*.md"))
    if document.stem not in ("client", "serving")  # they want a server: test_docs_client.py, …
    for number, example in enumerate(examples_of(f"docs/{document.name}"))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, tmp_path: Path) -> None:
    output_of(example, tmp_path)
