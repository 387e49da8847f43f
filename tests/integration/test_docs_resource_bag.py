"""What docs/resource-bag.md and examples/bag_grpc.py show runs, and prints what a reader expects."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ROOT
from helpers.pages import examples_of, output_of

EXAMPLES = examples_of("docs/resource-bag.md")

EXPECTED = [
    "working\ngave back a name\nconnection closed\nFalse\n",
    "b'0' b'1'\nreleased a cursor\n0 live\n",
    "HTTP/1.1 200 OK\nreleased a cursor\n0 live\n",
    "timed out, 0 guests left\n",
]


def test_each_example_of_the_page_is_here() -> None:
    assert len(EXAMPLES) == len(EXPECTED)


@pytest.mark.parametrize("number", range(len(EXPECTED)))
def test_an_example_of_the_page_prints_what_it_should(number: int, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number])
    assert output_of(script, tmp_path) == EXPECTED[number]


def test_the_service_with_a_guest_for_each_rpc_leaves_none(tmp_path: Path) -> None:
    assert output_of(ROOT / "examples/bag_grpc.py", tmp_path).splitlines() == [
        "one: b'1'",
        "all: b'5'",
        "each: [b'1', b'2', b'3']",
        "for ever: [b'1', b'2', b'3']",
        "4 requests, 0 guests left",
    ]
