"""What the README and the other pages show must run."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pages import examples_of, output_of


def output_of_example(number: int, tmp_path: Path, page: str = "README.md") -> str:
    whole = [example for example in examples_of(page) if example.startswith("import ")]
    return output_of(whole[number], tmp_path)


def test_the_example_on_the_event_loop_prints_the_sum(tmp_path: Path) -> None:
    assert output_of_example(2, tmp_path) == f"{sum(10 * n + 10 for n in range(1000))}\n"


def test_the_example_of_handles_counts_rows_refuses_a_forged_one_and_collects(
    tmp_path: Path,
) -> None:
    rows, refused, figures = output_of_example(3, tmp_path).splitlines()
    assert rows == "3"
    assert refused == "handle 0x800000100000005 is none: it was released, or never given out"
    assert figures == "1 0"


def test_the_example_in_the_readme_prints_what_a_reader_expects(tmp_path: Path) -> None:
    hello, five, late, reclaim = output_of_example(0, tmp_path).splitlines()
    assert hello == "hello from the plugin"
    assert five == "5"
    assert late.startswith("the call ran past its deadline of 250 ms")
    assert reclaim.startswith("Reclaim(bytes=")


def test_the_example_of_an_interpreter_prints_what_a_reader_expects(tmp_path: Path) -> None:
    assert output_of_example(1, tmp_path) == "hello\n {'sum': 42} None\n"


def test_the_example_of_many_tenants_is_calm(tmp_path: Path) -> None:
    assert output_of_example(4, tmp_path) == f"42\nCALM {2**30}\n"


def test_the_example_of_events_prints_a_life(tmp_path: Path) -> None:
    *events, lost = output_of_example(0, tmp_path, "docs/observing.md").splitlines()
    kinds = ["spawn", "commit", "reset", "close"]
    assert events == [f"{kind} grower acme" for kind in kinds]
    assert lost == "{}"


def test_the_example_of_logged_events_runs(tmp_path: Path) -> None:
    assert output_of_example(1, tmp_path, "docs/observing.md") == ""


def test_the_example_of_looking_at_a_host_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert output_of_example(-1, tmp_path, "docs/observing.md") == "0 0\n"


def test_the_example_of_buffers_goes_to_a_guest_and_back(tmp_path: Path) -> None:
    assert output_of_example(0, tmp_path, "docs/pages.md") == "HELLO\n0 1\n"
